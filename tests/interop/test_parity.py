"""A Hugging Face GPT-2, imported, answers as it did there; exported, it is what it was.

The answers of the peer are checked in (golden/release.npz). Where torch and transformers are
installed, they are asked again, of the folder that we export, in a process of their own.
"""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from polylm_jax.__main__ import main
from polylm_jax.data import tokenizer
from polylm_jax.decode.search import Sampling, generate
from polylm_jax.decode.weights import for_decoding
from polylm_jax.model.decoder import Compute, Decoder, logits
from tests import golden
from tests.data.sentences import SENTENCES
from tests.interop.conftest import params_of

FLOAT32 = Compute(dtype="float32")
NEW_TOKENS, PENALTY = 12, 1.3  # as in make_release.py
PEER = """
import json, sys, numpy as np, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel
folder, question, answer, penalty = sys.argv[1:]
asked = json.load(open(question))
model = AutoModelForCausalLM.from_pretrained(folder).eval()
fast = AutoTokenizer.from_pretrained(folder)
assert type(model) is GPT2LMHeadModel and fast.is_fast
ids = [model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id]
assert ids == [fast.bos_token_id, fast.eos_token_id, fast.pad_token_id] == [1, 2, 0]
found = {"ids": [fast(text).input_ids for text in asked["texts"]]}
found["logits"] = model(torch.tensor(asked["tokens"])).logits.tolist()
for name, value in ("greedy", 1.0), ("penalty", float(penalty)):
    found[name] = [
        model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=12, repetition_penalty=value
        )[0, len(prompt):].tolist()
        for prompt in asked["prompts"]
    ]
json.dump(found, open(answer, "w"))
"""


@pytest.fixture
def imported(release, weights, hugging_face, tmp_path):
    run = tmp_path / "run"
    assert main(["import", f"--from={hugging_face(weights)}", f"--run={run}"]) == 0
    return run, params_of(run, release[0], (1, 1, 1))


def answers(content, name):
    """The peer's answers, as ours are: without the end of text."""
    found = golden.select(content, f"{name}_")
    return [without_end(found[str(i)].tolist()) for i in range(len(found))]


def without_end(ids):
    return ids[:-1] if ids and ids[-1] == tokenizer.EOS else ids


def scores_of(size, params, tokens):
    hidden, _ = Decoder(size, FLOAT32).apply({"params": params}, tokens)
    return logits(hidden, params["embedding"])


def generated(size, params, prompts, penalty):
    sampling = Sampling(new_tokens=NEW_TOKENS, repetition_penalty=penalty)
    return generate(
        Decoder(size, FLOAT32), for_decoding(params, size, "float32"), prompts, sampling
    )


def test_logits_and_answers_equal_the_checked_in_ones(imported, release):
    size, content = release
    _, params = imported
    np.testing.assert_allclose(
        scores_of(size, params, content["tokens"]), content["logits"], atol=1e-4
    )
    found = golden.select(content, "prompt_")
    prompts = [found[str(i)].tolist() for i in range(len(found))]
    assert len(prompts) >= 50
    assert len({len(prompt) for prompt in prompts}) > 20
    for name, penalty in (("greedy", 1.0), ("penalty", PENALTY)):
        assert generated(size, params, prompts, penalty) == answers(content, name)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))),
    reason="torch and transformers come with the extra `peer`",
)
def test_the_peer_reads_our_export_and_agrees(imported, release, tiny, tmp_path):
    size, content = release
    run, params = imported
    out, question, answer = (tmp_path / name for name in ("out", "question", "answer"))
    assert main(["export", f"--run={run}", f"--to={out}"]) == 0
    texts = [f"{a} {b}" for lines in SENTENCES.values() for a in lines for b in lines[:5]]
    found = golden.select(content, "prompt_")
    prompts = [found[str(i)].tolist() for i in range(len(found))]
    asked = {"texts": texts, "tokens": content["tokens"].tolist(), "prompts": prompts}
    question.write_text(json.dumps(asked))
    subprocess.run([sys.executable, "-c", PEER, out, question, answer, str(PENALTY)], check=True)
    theirs = json.loads(answer.read_text())
    assert len(texts) > 1000
    assert theirs["ids"] == tokenizer.load(str(tiny["tokenizer.path"])).encode(texts)
    np.testing.assert_allclose(
        scores_of(size, params, content["tokens"]), theirs["logits"], atol=1e-4
    )
    for name, penalty in (("greedy", 1.0), ("penalty", PENALTY)):
        ours = generated(size, params, prompts, penalty)
        assert ours == [without_end(ids) for ids in theirs[name]]
