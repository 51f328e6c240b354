"""Our files in the hands of transformers, tokenizers, peft, torch and llama.cpp: `make judges`.

They live in an environment of their own, .venv-judges; where it is not there, nothing is asked.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from polylm_jax.__main__ import main
from polylm_jax.data import tokenizer
from polylm_jax.decode.search import Sampling, generate
from polylm_jax.decode.weights import for_decoding
from polylm_jax.evaluation import harness
from polylm_jax.interop.convert import read_size
from polylm_jax.interop.fast_tokenizer import differing, tokenizer_json
from polylm_jax.interop.hard_texts import HARD_TEXTS
from polylm_jax.interop.hugging_face import EMBEDDING, HEAD, params_from
from polylm_jax.model.decoder import Compute, Decoder, logits
from polylm_jax.model.parameters import layer_parameters, outer_parameters
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.sizes import Size
from polylm_jax.train.door import open_run, read_params
from tests import golden, scripted
from tests.data.sentences import SENTENCES
from tests.interop.conftest import params_of, with_adapters

ROOT = Path(__file__).parents[2]
FLOAT32, NEW_TOKENS = Compute(dtype="float32"), 12
# Sentences, and pairs of them.
TEXTS = [f"{a}{b}" for lines in SENTENCES.values() for a in lines for b in ("", " " + lines[0])]


@functools.cache
def interpreter():
    """A Python that has the judges; None where there is none. JUDGES_PYTHON must be one."""
    probe = "import torch, transformers, tokenizers, xllamacpp, peft"
    named = os.environ.get("JUDGES_PYTHON")
    for python in [named] if named else [str(ROOT / ".venv-judges/bin/python"), sys.executable]:
        try:
            subprocess.run([python, "-c", probe], check=True, capture_output=True)
            return python
        except (OSError, subprocess.CalledProcessError):
            assert not named, f"{named} has no judges"
    return None


@pytest.fixture
def ask(tmp_path):
    """Function (judge, **arguments) -> its answer."""
    if interpreter() is None:
        pytest.skip("`make judges` installs the judges")

    def ask(judge, **arguments):
        question, answer = tmp_path / "question.json", tmp_path / "answer.json"
        question.write_text(json.dumps(arguments, default=str))
        script = Path(__file__).with_name("judge.py")
        subprocess.run([interpreter(), script, judge, question, answer], check=True, env=QUIET)
        return json.loads(answer.read_text())

    return ask


QUIET = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def imported(folder, run):
    assert main(["import", f"--from={folder}", f"--run={run}"]) == 0
    size = read_size(str(folder))
    return size, params_of(run, size, (1, 1, 1))


def exported(run, to, *flags):
    assert main(["export", f"--run={run}", f"--to={to}", *flags]) == 0
    return to


def scores_of(size, params, tokens):
    hidden, _ = Decoder(size, FLOAT32).apply({"params": params}, tokens)
    return logits(hidden, params["embedding"])


def continued(size, params, prompts, ids=None, **settings):
    decoder, params = Decoder(size, FLOAT32, ids=ids), for_decoding(params, size, "float32")
    return generate(decoder, params, prompts, Sampling(NEW_TOKENS, **settings))


def ended(answers):
    """Without the end of text, and what stands behind it in a batch."""
    return [ids[: ids.index(2)] if 2 in ids else ids for ids in answers]


@pytest.fixture
def vocabulary(tiny):
    return tokenizer.load(str(tiny["tokenizer.path"]))


def test_transformers_reads_an_exported_folder_and_agrees(
    ask, release, weights, hugging_face, vocabulary, tmp_path, capsys
):
    content, run = release[1], tmp_path / "run"
    size, params = imported(hugging_face(weights), run)
    out, saved = exported(run, tmp_path / "out"), tmp_path / "saved"
    prompts = [prompt.tolist() for prompt in golden.select(content, "prompt_").values()]
    others = differing(vocabulary.model, tokenizer_json(vocabulary.model))
    texts = [text for text in TEXTS + HARD_TEXTS if text and text not in others]
    short = [text for text in texts if len(vocabulary.encode([text])[0]) < 30]
    theirs = ask(
        "transformers",
        folder=out,
        texts=[*short[:8], *texts],
        prompts=prompts,
        tokens=content["tokens"].tolist(),
        new_tokens=NEW_TOKENS,
        save=saved,
    )
    assert theirs["specials"] == [[2, 2, 0]] * 3
    assert theirs["ids"][8:] == vocabulary.encode(texts)
    assert theirs["texts"][8:] == [text.replace("▁", " ") for text in texts]
    np.testing.assert_allclose(
        scores_of(size, params, content["tokens"]), theirs["logits"], atol=1e-4
    )
    greedy = continued(size, params, prompts)
    assert ended(theirs["greedy"]) == greedy
    penalised = continued(size, params, prompts, repetition_penalty=1.3)
    assert ended(theirs["penalty"]) == penalised
    batch = continued(size, params, vocabulary.encode(short[:8]))
    assert ended(theirs["in a batch"]) == batch
    assert theirs["from nothing"][0] == tokenizer.EOS
    assert ended([theirs["from nothing"][1:]]) == continued(size, params, [[tokenizer.EOS]])

    # what they save comes back, with the tokenizer that they do not save
    assert main(["import", f"--from={saved}", f"--run={tmp_path}/back"]) == 1
    assert "--tokenizer=FILE" in capsys.readouterr().err
    model = f"--tokenizer={out}/tokenizer.model"
    assert main(["import", f"--from={saved}", f"--run={tmp_path}/back", model]) == 0
    back = params_of(tmp_path / "back", size, (1, 1, 1))
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_folders_that_can_be_read_in_two_ways_are_read_as_by_transformers(
    ask, release, weights, hugging_face, tmp_path
):
    tokens = release[1]["tokens"]
    head_alone = {k: v for k, v in weights.items() if k != EMBEDDING} | {HEAD: weights[EMBEDDING]}
    stale = {k: v + 1 for k, v in weights.items()}
    folders = []
    for number, (content, changes) in enumerate(
        ((weights, {}), (head_alone, {}), (weights, {"reorder_and_upcast_attn": True}))
    ):
        folder = hugging_face(content, **changes)
        if number == 0:
            save_file(stale, folder / "old.safetensors")
            index = {"metadata": {}, "weight_map": dict.fromkeys(stale, "old.safetensors")}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        folders.append(folder.rename(tmp_path / f"folder_{number}"))
    theirs = ask("logits", folders=folders, tokens=tokens.tolist())
    for number, folder in enumerate(folders):
        size, params = imported(folder, tmp_path / f"run_{number}")
        np.testing.assert_allclose(scores_of(size, params, tokens), theirs[number], atol=1e-4)


@pytest.mark.parametrize("targets", [("qkv", "attention_out", "mlp_in", "mlp_out"), ("mlp_out",)])
def test_peft_loads_adapters_onto_the_exported_base(ask, tiny, trained, tmp_path, targets):
    run = tmp_path / "run"
    assert main(["train", *with_adapters(tiny, trained, run, 2, **{"lora.targets": targets})]) == 0
    folders = {
        "base": exported(trained, tmp_path / "base"),
        "adapters": exported(run, tmp_path / "peft", "--format=peft"),
        "merged": exported(run, tmp_path / "merged"),
    }
    tokens = np.random.default_rng(5).integers(3, 1024, (3, 24)).tolist()
    without, loaded, merged = ask(
        "peft", base=folders["base"], adapters=folders["adapters"], tokens=tokens
    )
    (theirs,) = ask("logits", folders=[folders["merged"]], tokens=tokens)
    model = open_run(str(run))
    params = read_params(model, make_mesh(MeshShape(1, 1, 1), jax.devices()[:1]))
    ours = scores_of(model.size, params, np.array(tokens))
    assert np.abs(np.array(without) - loaded).max() > 1e-2  # the adapters say something
    for found in (loaded, merged, theirs):
        np.testing.assert_allclose(found, ours, atol=1e-4)


def test_what_torch_saves_of_parameters_is_read_and_of_other_things_named(
    ask, release, weights, hugging_face, tmp_path, capsys
):
    folder = hugging_face(weights)
    nested = tmp_path / "nested.bin"
    ask("pickles", folder=folder, parameters=folder / "pytorch_model.bin", nested=nested)
    (folder / "model.safetensors").unlink()
    size, params = imported(folder, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, params, params_from(weights, size))
    nested.replace(folder / "pytorch_model.bin")
    assert main(["import", f"--from={folder}", f"--run={tmp_path}/other"]) == 1
    assert "holds its tensors under 'model'" in capsys.readouterr().err


def random_model(vocabulary, rows):
    """A model whose every tensor q8_0 takes, and that is seldom in doubt."""
    size = Size(vocabulary=rows, context=64, layers=2, heads=4, d_model=64, d_ff=96)
    chance, found = np.random.default_rng(3), {}
    for name, parameter in (outer_parameters(size) | layer_parameters(size)).items():
        for layer in range(size.layers if name in layer_parameters(size) else 1):
            scale = 0.2 if name in layer_parameters(size) else 0.3
            values = scale * chance.standard_normal(parameter.hugging_face_shape, np.float32)
            values += parameter.role == "scale"
            found[parameter.hugging_face.format(layer=layer)] = values
    changes = {"vocab_size": rows, "n_positions": 64, "n_head": 4, "n_embd": 64, "n_inner": 96}
    prompts = [chance.integers(3, vocabulary.size, 3 + i % 20).tolist() for i in range(40)]
    return found, changes, prompts


def test_ids_beyond_the_tokenizer_are_left_out_as_by_suppress_tokens(
    ask, hugging_face, vocabulary, tmp_path
):
    weights, changes, prompts = random_model(vocabulary, vocabulary.size + 64)
    weights[EMBEDDING][vocabulary.size :] *= 4
    folder = hugging_face(weights, **changes)
    arguments = {"prompts": prompts, "ids": vocabulary.size, "new_tokens": NEW_TOKENS}
    theirs = ask("searches", folder=folder, **arguments)
    size, params = imported(folder, tmp_path / "run")
    for beams in (1, 4):
        ours = continued(size, params, prompts, vocabulary.size, beams=beams)
        assert ended(theirs[str(beams)]) == ours
    assert continued(size, params, prompts) != continued(size, params, prompts, vocabulary.size)


@pytest.mark.parametrize("flags", [{}, scripted.SPACED])
def test_lm_eval_has_our_numbers_and_answers(ask, hugging_face, vocabulary, tmp_path, flags):
    """Of a tokenizer as ours are, and of one that puts a space before a text."""
    model = vocabulary.model
    if flags:
        text = [line for lines in SENTENCES.values() for line in lines] * 4
        model, _ = scripted.tokenizer(**flags, sentence_iterator=iter(text), vocab_size=1000)
    spoken = tokenizer.Tokenizer(model)
    weights, changes, _ = random_model(spoken, spoken.size)
    folder, run = hugging_face(weights, **changes), tmp_path / "run"
    (folder / "tokenizer.model").write_bytes(model)
    size, params = imported(folder, run)
    cases, _ = golden.lm_eval()
    pairs = [[a, b] for a, b, *_ in cases["pairs"] if a.strip() and len(b) > 5]
    texts = [text for text, _ in cases["texts"]]
    asked = [[prompt, settings] for prompt, settings, _ in cases["answers"]]
    theirs = ask(
        "lm_eval", folder=exported(run, tmp_path / "out", "--dtype=float32"), pairs=pairs,
        texts=texts, asked=asked,
    )  # fmt: skip
    subject = harness.Subject(Decoder(size, FLOAT32), params, spoken, 1)
    found = harness.log_likelihoods(subject, pairs)
    np.testing.assert_allclose([a for a, _ in found], [a for a, _ in theirs["pairs"]], atol=2e-3)
    sums = harness.rolling_log_likelihoods(subject, texts)
    np.testing.assert_allclose(sums, theirs["texts"], atol=5e-3)
    # where two tokens are as good, rounding decides
    answers = harness.answers_until(subject, asked)
    same = sum(a == b for a, b in zip(answers, theirs["answers"], strict=True))
    assert same >= len(asked) - 2, list(zip(answers, theirs["answers"], strict=True))


def test_llama_cpp_loads_a_gguf_and_finds_the_same_tokens(ask, hugging_face, vocabulary, tmp_path):
    weights, changes, prompts = random_model(vocabulary, vocabulary.size + 64)
    run = tmp_path / "run"
    size, params = imported(hugging_face(weights, **changes), run)
    assert size.vocabulary == vocabulary.size + 64
    ours = continued(size, params, prompts, vocabulary.size)
    texts = [text for text in TEXTS + HARD_TEXTS if text and "▁" not in text]
    # where two tokens are as good, rounding decides: a logit's standard deviation is 2.4
    for dtype, doubt, least in (("f32", 0.02, 36), ("f16", 0.05, 34), ("q8_0", 0.4, 16)):
        file = exported(run, tmp_path / f"{dtype}.gguf", "--format=gguf", f"--dtype={dtype}")
        theirs = ask("llama", file=file, texts=texts, prompts=prompts, new_tokens=NEW_TOKENS)
        gaps = [
            gap(size, params, *both)
            for both in zip(prompts, ours, ended(theirs["greedy"]), strict=True)
        ]
        assert gaps.count(0) >= least
        assert max(gaps) < doubt
        assert theirs["ids"] == vocabulary.encode(texts)
        assert theirs["texts"] == texts
        print(f"{dtype}: {gaps.count(0)} of {len(gaps)} answers equal, others within {max(gaps)}")


def gap(size, params, prompt, ours, theirs):
    """By how much our model likes its own token better where the two part; 0 where they do not."""
    if ours == theirs:
        return 0.0
    width = 48
    ours, theirs = [*ours, tokenizer.EOS], [*theirs, tokenizer.EOS]
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    text = [*prompt, *ours[:at]]
    row = scores_of(size, params, np.array([text + [0] * (width - len(text))]))[0, len(text) - 1]
    return float(row[ours[at]] - row[theirs[at]])
