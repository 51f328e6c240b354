"""A run of adapters is read as its base with them added, by whoever reads it, or not at all."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from polylm_jax.__main__ import main
from polylm_jax.errors import UserError
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.runs.log import of_kind, read_metrics
from polylm_jax.train import checkpoint
from polylm_jax.train.door import open_run, read_params, read_parts
from tests.conftest import gin_flags
from tests.interop.conftest import EVALUATION, LORA, params_of, with_adapters

RANK, ALPHA = LORA["lora.rank"], LORA["lora.alpha"]
# our kernel, in the words of GPT-2, and how many inputs and outputs it has
KERNELS = {
    "qkv": ("attn.c_attn", 16, 48),
    "attention_out": ("attn.c_proj", 16, 16),
    "mlp_in": ("mlp.c_fc", 16, 32),
    "mlp_out": ("mlp.c_proj", 32, 16),
}


def raw(run):
    """The arrays of a run's newest checkpoint as they lie there."""
    manager = checkpoint.open_existing(str(run))
    return jax.tree.map(np.asarray, manager.restore(manager.latest_step())["state"]["params"])


def read(run, shape, dtype="float32"):
    mesh = make_mesh(MeshShape(*shape), jax.devices()[: int(np.prod(shape))])
    return read_params(open_run(str(run)), mesh, dtype)


def parts(run):
    return list(read_parts(open_run(str(run))))


def said(capsys):
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def pair(trained, adapted, tmp_path):
    """A base and a run of its adapters, moved together; both may be changed."""
    shutil.copytree(trained, tmp_path / "trained" / "run")
    shutil.copytree(adapted, tmp_path / "adapted" / "run")
    return tmp_path / "trained" / "run", tmp_path / "adapted" / "run"


def test_what_is_read_is_the_base_plus_the_adapters_product(trained, adapted):
    base, adapters = raw(trained), raw(adapted)
    for shape in ((1, 1, 1), (2, 2, 2)):
        found = read(adapted, shape)
        for name, values in found["layers"].items():
            wanted = base["layers"][name].astype(np.float64)
            if name in KERNELS:
                _, inputs, outputs = KERNELS[name]
                a = adapters[f"{name}_a"].astype(np.float64).reshape(2, inputs, RANK)
                b = adapters[f"{name}_b"].astype(np.float64).reshape(2, RANK, outputs)
                change = (ALPHA / RANK * a @ b).reshape(wanted.shape)
                assert np.abs(change).max() > 1e-4
                wanted = wanted + change
            np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-7)
        for name in base.keys() - {"layers"}:
            np.testing.assert_array_equal(found[name], base[name])
    assert set(raw(adapted)) == {f"{name}_{part}" for name in KERNELS for part in "ab"}


def test_rounding_comes_once_and_parts_are_the_same(adapted):
    whole = read(adapted, (2, 2, 2))
    narrow = read(adapted, (2, 2, 2), "bfloat16")
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(np.asarray(x).astype(ml_dtypes.bfloat16), y),
        whole,
        narrow,
    )
    for name, layer, place, values in read_parts(open_run(str(adapted))):
        leaf = whole[name] if layer is None else whole["layers"][name][layer]
        np.testing.assert_allclose(values, np.asarray(leaf)[place], rtol=0, atol=1e-7)


def test_every_verb_reads_it_as_the_merged_model(adapted, tmp_path, monkeypatch, capsys):
    out, back = tmp_path / "out", tmp_path / "back"
    assert main(["export", f"--run={adapted}", f"--to={out}"]) == 0
    assert "rounding to float32 changed a weight by at most 0." in capsys.readouterr().out
    assert main(["import", f"--from={out}", f"--run={back}"]) == 0
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": text}) for text in ("A", "Der", "El")))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"context": "A", "continuation": " b"}))
    greedy = gin_flags({"sampling.temperature": 0.0, "compute.dtype": "float32"})
    texts = []
    for run in (adapted, back):
        file = tmp_path / f"{run.parent.name}-{run.name}.jsonl"
        given = [f"--run={run}", f"--prompts={prompts}", f"--out={file}"]
        assert main(["generate", *given, *greedy]) == 0
        texts.append([json.loads(line)["text"] for line in file.read_text().splitlines()])
    assert texts[0] == texts[1]
    assert main(["score", f"--run={adapted}", f"--pairs={pairs}", f"--out={tmp_path}/scores"]) == 0
    monkeypatch.setattr("builtins.input", lambda prompt: "/stop")
    assert main(["chat", f"--run={adapted}"]) == 0
    assert main(["status", f"--run={adapted}"]) == 0
    gguf = ["--format=gguf", "--dtype=f32"]
    for run in (adapted, back):
        assert main(["export", f"--run={run}", f"--to={tmp_path}/{run.name}.gguf", *gguf]) == 0
    one, other = (tmp_path / f"{run.name}.gguf" for run in (adapted, back))
    assert one.read_bytes() == other.read_bytes()


def test_it_is_evaluated_while_it_trains_and_afterwards(trained, adapted, tmp_path):
    before, after = of_kind(read_metrics(str(adapted)), "evaluation")
    small = "--gin_file=gin_configs/evaluation/small.gin"
    scores = []
    # adapters change nothing until they have learned
    for run, record in ((trained, before), (adapted, after)):
        flags = gin_flags(EVALUATION | {"evaluation.tasks": ("ntrex", "word_order")})
        assert main(["evaluate", f"--run={run}", f"--out={tmp_path}", small, *flags]) == 0
        results = json.loads((tmp_path / "results.json").read_text())["results"]
        found = [
            results["ntrex_th"]["bits_per_byte,none"],
            results["word_order_th"]["acc,none"],
        ]
        told = [record["by_language"][f"{task}/th"] for task in ("ntrex", "word_order")]
        np.testing.assert_allclose(found, told, 1e-5)
        scores.append(found[0])
    assert abs(scores[1] - scores[0]) > 1e-3


def test_a_peft_folder_is_what_merging_adds_to_the_exported_base(
    trained, adapted, tmp_path, capsys
):
    folders = {name: tmp_path / name for name in ("base", "merged", "narrow", "peft")}
    for run, name, flags in (
        (trained, "base", []),
        (adapted, "merged", []),
        (adapted, "narrow", ["--dtype=bfloat16"]),
        (adapted, "peft", ["--format=peft"]),
    ):
        capsys.readouterr()
        assert main(["export", f"--run={run}", f"--to={folders[name]}", *flags]) == 0
        if name == "narrow":
            told = float(capsys.readouterr().out.split("by at most ")[1].split(".\n")[0])
    weights = {
        name: load_file(folder / "model.safetensors")
        for name, folder in folders.items()
        if name != "peft"
    }
    config = json.loads((folders["peft"] / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True
    assert set(config["target_modules"]) == {name for name, _, _ in KERNELS.values()}
    tensors = load_file(folders["peft"] / "adapter_model.safetensors")
    scale, used = config["lora_alpha"] / config["r"], set()
    for name, values in weights["base"].items():
        module = "base_model.model." + name.removesuffix(".weight")
        wanted = values.astype(np.float64)
        if f"{module}.lora_A.weight" in tensors:
            a, b = (tensors[f"{module}.lora_{part}.weight"] for part in "AB")
            assert (len(a), b.shape[1]) == (config["r"], config["r"])
            used |= {f"{module}.lora_A.weight", f"{module}.lora_B.weight"}
            wanted = wanted + scale * (b.astype(np.float64) @ a).T  # as peft's Conv1D layers do
        np.testing.assert_allclose(weights["merged"][name], wanted, rtol=0, atol=1e-7)
    assert used == set(tensors)
    assert len(used) == 2 * 2 * 4
    change = [
        np.abs(values.astype(np.float32) - weights["merged"][name]).max()
        for name, values in weights["narrow"].items()
    ]
    assert told == pytest.approx(max(change), rel=1e-2)
    assert told > 0
    assert (folders["peft"] / "tokenizer.json").is_file()
    assert main(["export", f"--run={trained}", f"--to={tmp_path}/x", "--format=peft"]) == 1
    assert said(capsys) == (
        f"polylm export: {trained} has no adapters: all its weights were trained; leave out "
        "--format=peft."
    )
    assert not (tmp_path / "x").exists()


def test_both_runs_may_be_moved_and_the_base_may_train_on(pair, tiny, adapted):
    base, run = pair
    wanted = read(adapted, (1, 1, 1))
    on = tiny | {"train.folder": base, "train.steps": 3, "train.validate_rows": 1}
    assert main(["train", *gin_flags(on)]) == 0
    assert open_run(str(base)).step == 3
    found = open_run(str(run))
    assert (found.base.folder, found.base.step) == (str(base), 2)
    jax.tree.map(np.testing.assert_array_equal, read(run, (1, 1, 1)), wanted)
    # ... and so may the adapters
    assert main(["train", *with_adapters(tiny, base, run, 4)]) == 0
    assert open_run(str(run)).step == 4


def test_without_its_base_or_with_another_it_is_refused_in_one_sentence(
    pair, tiny, tmp_path, capsys
):
    base, run = pair
    manager = checkpoint.open_existing(str(base))
    identity = f"{checkpoint.read_meta(manager, 2)['params_checksum']:08x}"
    away = base.rename(tmp_path / "away")
    generate = ["generate", f"--run={run}", "--prompt=A"]
    assert main(generate) == 1
    assert said(capsys) == (
        f"polylm generate: {run} holds adapters to the parameters of {base}, where there is no "
        "run; put it, or a link to it, there."
    )
    other = tiny | {"train.folder": base, "train.steps": 1, "train.seed": 9}
    assert main(["train", *gin_flags(other)]) == 0
    for verb in (generate, ["export", f"--run={run}", f"--to={tmp_path}/out"]):
        assert main(verb) == 1
        assert said(capsys) == (
            f"polylm {verb[0]}: {run} holds adapters to other parameters than {base} has now; put "
            f"the run there that it began with (its parameters' checksum is {identity})."
        )
    assert main(["train", *with_adapters(tiny, base, run, 4)]) == 1
    assert "was trained beside another base; give the train.start" in said(capsys)
    shutil.rmtree(base)
    base.symlink_to(away)
    assert main(generate) == 0
    capsys.readouterr()
    assert main(["train", *with_adapters(tiny, base, run, 4, **{"lora.alpha": 1.0})]) == 1
    assert f"has adapters of lora.alpha = {ALPHA} (now 1.0); leave" in said(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("which", [0, 1], ids=["base", "adapters"])
def test_a_flipped_bit_of_either_is_refused(pair, which):
    files = [path for path in pair[which].glob("checkpoints/*/state/**/d/*") if path.is_file()]
    sentences: list[str] = []
    for path in sorted(files, key=lambda path: -path.stat().st_size):
        content = path.read_bytes()
        at = int(len(content) * 0.9)
        path.write_bytes(content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :])
        for reader in (lambda run: read(run, (1, 1, 1)), parts):
            try:
                reader(pair[1])
            except UserError as error:
                sentences.append(str(error))
        path.write_bytes(content)
        if sentences:  # else it was a moment's bit
            break
    assert len(sentences) == 2
    assert all(f"in {pair[which]}/checkpoints is damaged (" in one for one in sentences)


def test_a_run_begins_with_the_merged_parameters_and_adapters_stand_on_adapters(
    pair, tiny, tmp_path, capsys
):
    _, run = pair
    merged = read(run, (1, 1, 1))
    more = with_adapters(tiny, run, tmp_path / "second", 1)
    assert main(["train", *more]) == 0
    second = open_run(str(tmp_path / "second"))
    assert second.base.folder == str(run)
    assert second.meta["fingerprints"]["base"].count("+") == 1
    change = jax.tree.map(
        lambda x, y: np.abs(np.asarray(x) - y).max(), read(tmp_path / "second", (1, 1, 1)), merged
    )
    assert all((change["layers"][name] > 0) == (name in KERNELS) for name in change["layers"])
    still = {"optimizer.peak_learning_rate": 1e-30, "optimizer.start_learning_rate": 0.0}
    whole = tiny | still | {"train.start": run, "train.steps": 1}
    assert main(["train", *gin_flags(whole | {"train.folder": tmp_path / "whole"})]) == 0
    size = open_run(str(run)).size
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-7),
        params_of(tmp_path / "whole", size, (1, 1, 1)),
        merged,
    )
    moments = whole | {"train.folder": tmp_path / "no", "train.start_moments": True}
    assert main(["train", *gin_flags(moments)]) == 1
    assert "has the moments of its adapters alone; leave out train.start_moments." in said(capsys)
    no = with_adapters(tiny, run, tmp_path / "no", 1, **{"train.start_moments": True})
    assert main(["train", *no]) == 1
    assert "trains adapters, which have no moments in train.start" in said(capsys)
