"""Hugging Face folders in every form become the same run, and runs become those folders."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from polylm_jax.__main__ import main
from polylm_jax.interop import convert
from polylm_jax.interop.hugging_face import params_from
from polylm_jax.interop.tensor_files import Stored
from polylm_jax.runs.log import of_kind, read_metrics
from polylm_jax.runs.status import status_of
from tests.conftest import gin_flags
from tests.interop.conftest import params_of


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def bare(weights):
    return {name.removeprefix("transformer."): value for name, value in weights.items()}


def with_masks(weights):
    mask = np.tril(np.ones((1, 1, 48, 48), np.uint8))
    masks = {f"transformer.h.{i}.attn.bias": mask for i in range(2)}
    return weights | masks | {"transformer.h.0.attn.masked_bias": np.float32([-1e4])}


def with_head(weights):
    return weights | {"lm_head.weight": weights["transformer.wte.weight"].copy()}


@pytest.mark.parametrize("form", [dict, bare, with_masks, with_head])
def test_every_form_of_a_folder_gives_the_same_parameters(
    form, release, weights, hugging_face, tmp_path
):
    folder = hugging_face(form(weights))
    run = tmp_path / "run"
    assert main(["import", f"--from={folder}", f"--run={run}", "--gin.mesh.tensor=2"]) == 0
    same(params_of(run, release[0]), params_from(weights, release[0]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_as_it_is(dtype, release, weights, hugging_face, tmp_path):
    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    halves = {name: value.astype(kind) for name, value in weights.items()}
    folder, run = hugging_face(halves), tmp_path / "run"
    assert main(["import", f"--from={folder}", f"--run={run}"]) == 0
    same(params_of(run, release[0]), params_from(halves, release[0]))
    out = tmp_path / "out"
    assert main(["export", f"--run={run}", f"--to={out}", f"--dtype={dtype}"]) == 0
    written = load_file(out / "model.safetensors")
    same({name: written[name].view(np.uint16) for name in weights},
         {name: value.view(np.uint16) for name, value in halves.items()})  # fmt: skip


def test_shards_are_read_and_written_with_an_index(
    release, weights, hugging_face, tmp_path, monkeypatch
):
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    folder = hugging_face({f: {n: weights[n] for n in part} for f, part in parts.items()})
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    run, out, again = tmp_path / "run", tmp_path / "out", tmp_path / "again"
    assert main(["import", f"--from={folder}", f"--run={run}"]) == 0
    monkeypatch.setattr(convert, "SHARD", 20_000)
    assert main(["export", f"--run={run}", f"--to={out}"]) == 0
    files = sorted(out.glob("*.safetensors"))
    assert files[1].name == f"model-00002-of-{len(files):05}.safetensors"
    one_tensor = max(value.nbytes for value in weights.values())
    assert all(file.stat().st_size < max(20_000, one_tensor) + 4096 for file in files)
    written = json.loads((out / "model.safetensors.index.json").read_text())
    for name, file in written["weight_map"].items():
        np.testing.assert_array_equal(load_file(out / file)[name], weights[name])
    assert main(["import", f"--from={out}", f"--run={again}"]) == 0
    same(params_of(again, release[0]), params_of(run, release[0]))
    (folder / "b.safetensors").unlink()
    assert main(["import", f"--from={folder}", f"--run={tmp_path}/none"]) == 1


def test_a_trained_run_comes_back_bit_for_bit_and_trains_on(
    trained, release, tiny, tmp_path, capsys
):
    out, back = tmp_path / "out", tmp_path / "back"
    assert main(["export", f"--run={trained}", f"--to={out}"]) == 0
    card = (out / "README.md").read_text()
    assert "| en | " in card
    assert "curriculum.non_english = ((" in card
    assert "| row store | `" in card
    config = json.loads((out / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["n_ctx"]) == (2, 2, 32)
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["padding_side"]) == ("</s>", "left")
    assert "tokenizer.json gives" in card
    assert main(["import", f"--from={out}", f"--run={back}"]) == 0
    size = convert.read_size(str(out))
    exported = params_of(trained, size)
    same(params_of(back, size, (1, 1, 2)), exported)
    settings = tiny | {"train.folder": back, "train.steps": 2, "train.validate_rows": 1}
    assert main(["train", *gin_flags(settings)]) == 0
    assert "Going on from step 0" in capsys.readouterr().err
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max(), params_of(back, size), exported)
    assert 0 < changed["embedding"] < 0.1


def test_a_run_begins_with_an_imported_model(trained, tiny, tmp_path, capsys):
    out, back, run = (tmp_path / name for name in ("out", "back", "run"))
    assert main(["export", f"--run={trained}", f"--to={out}"]) == 0
    assert main(["import", f"--from={out}", f"--run={back}"]) == 0
    settings = tiny | {"train.folder": run, "train.steps": 2, "train.validate_rows": 1}
    settings |= {"train.start": back}
    moments = settings | {"train.start_moments": True}
    assert main(["train", *gin_flags(moments)]) == 1
    assert "was imported and has no moments" in capsys.readouterr().err
    assert main(["train", *gin_flags(settings)]) == 0
    before = of_kind(read_metrics(trained), "valid")[-1]
    first = of_kind(read_metrics(run), "valid")[0]
    assert (first["step"], first["bits_per_byte"]) == (0, before["bits_per_byte"])
    assert f"began with the parameters of {back} at step 0" in "\n".join(status_of(str(run)).lines)


def test_a_model_is_converted_in_parts(release, weights, hugging_face, tmp_path, monkeypatch):
    """The largest part read is PART bytes, whatever the tensor, and the result is the same."""
    monkeypatch.setattr(convert, "PART", 2048)
    sizes, read = [], Stored.read

    def recorded(stored, start, stop):
        sizes.append(4 * (stop - start))
        return read(stored, start, stop)

    monkeypatch.setattr(Stored, "read", recorded)
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["import", f"--from={hugging_face(weights)}", f"--run={run}"]) == 0
    assert max(sizes) <= 2048 < max(value.nbytes for value in weights.values())
    assert sum(sizes) == sum(value.nbytes for value in weights.values())
    assert main(["export", f"--run={run}", f"--to={out}"]) == 0
    same(load_file(out / "model.safetensors"), weights)


def dropped(weights, name):
    return {key: value for key, value in weights.items() if key != name}


LAST = "transformer.h.1.mlp.c_proj.bias"
BROKEN = {
    "missing": (lambda w: dropped(w, LAST), {}, f"the tensor {LAST} is missing"),
    "extra": (
        lambda w: w | {"transformer.h.2.ln_1.bias": w[LAST]},
        {},
        "the tensor transformer.h.2.ln_1.bias has no place in the model",
    ),
    "shape": (
        lambda w: w | {LAST: w[LAST][:-1]},
        {},
        f"the tensor {LAST} has shape (23,), config.json's is (24,)",
    ),
    "type": (lambda w: w | {LAST: w[LAST].astype(np.float64)}, {}, "holds F64; save it as"),
    "untied": (
        lambda w: w | {"lm_head.weight": w["transformer.wte.weight"] + 1},
        {},
        "has an lm_head.weight that is not the embedding",
    ),
    "activation": (dict, {"activation_function": "relu"}, "activation_function = 'relu'"),
    "epsilon": (dict, {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon = 1e-06"),
    "family": (dict, {"model_type": "llama"}, "model_type = 'llama'; the decoder knows 'gpt2'"),
    "vocabulary": (dict, {"vocab_size": 1000}, "a tokenizer of 1024 pieces but a model of 1000"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_named_and_no_run_is_left(
    case, weights, hugging_face, tmp_path, capsys
):
    change, config, sentence = BROKEN[case]
    folder, run = hugging_face(change(weights), **config), tmp_path / "run"
    assert main(["import", f"--from={folder}", f"--run={run}"]) == 1
    assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["hugging_face"]


@pytest.mark.parametrize("damage", ["cut", "header", "doubled"])
def test_a_broken_safetensors_file_is_named(damage, weights, hugging_face, tmp_path, capsys):
    folder = hugging_face(weights)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    if damage == "doubled":
        shutil.copy(file, folder / "other.safetensors")
        file.rename(file := folder / "one.safetensors")
        index = {"weight_map": {"a": "one.safetensors", "b": "other.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        file.write_bytes(content[:-1] if damage == "cut" else b"\xff" * 8 + content[8:])
    assert main(["import", f"--from={folder}", f"--run={tmp_path}/run"]) == 1
    error = capsys.readouterr().err
    assert str(file) in error
    assert "both hold the tensor" in error if damage == "doubled" else "cut short" in error


def test_nothing_is_overwritten(weights, hugging_face, tmp_path, capsys):
    folder, run = hugging_face(weights), tmp_path / "run"
    assert main(["import", f"--from={folder}", f"--run={run}"]) == 0
    assert main(["import", f"--from={folder}", f"--run={run}"]) == 1
    assert main(["export", f"--run={run}", f"--to={folder}"]) == 1
    assert capsys.readouterr().err.count("already exists") == 2


def test_a_full_disk_is_one_sentence_and_nothing_is_left(
    weights, hugging_face, tmp_path, capsys, largest_file
):
    folder, run, out = hugging_face(weights), tmp_path / "run", tmp_path / "out"
    assert main(["import", f"--from={folder}", f"--run={run}"]) == 0
    there = sorted(tmp_path.iterdir())
    export = ["export", f"--run={run}", f"--to={out}"]
    for verb, most, sentence in (
        (export, 60_000, "there is no room for the 0.00 GB of"),
        ([*export, "--format=gguf", "--dtype=f32"], 60_000, "there is no room for the 0.00 GB of"),
        (["import", f"--from={folder}", f"--run={out}"], 20_000, "could not be written to"),
    ):
        capsys.readouterr()
        largest_file(most)
        assert main(verb) in (1, 73)
        said = capsys.readouterr().err.splitlines()[-1]
        assert sentence in said
        assert "free some" in said
        assert sorted(tmp_path.iterdir()) == there


def test_values_too_large_for_float16_are_refused(weights, hugging_face, tmp_path, capsys):
    huge = weights | {"transformer.ln_f.bias": weights["transformer.ln_f.bias"] + 1e5}
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["import", f"--from={hugging_face(huge)}", f"--run={run}"]) == 0
    assert main(["export", f"--run={run}", f"--to={out}", "--dtype=float16"]) == 1
    assert "final_norm_bias has values that float16 cannot hold" in capsys.readouterr().err
    assert not out.exists()
