"""A Hugging Face GPT-2, imported, answers as it did there; exported, it is what it was.

The answers of the peer are checked in (golden/release.npz); test_judges.py asks it again, of the
folder that we export.
"""

import numpy as np
import pytest

from polylm_jax.__main__ import main
from polylm_jax.data import tokenizer
from polylm_jax.decode.search import Sampling, generate
from polylm_jax.decode.weights import for_decoding
from polylm_jax.model.decoder import Compute, Decoder
from tests import golden
from tests.evaluation.plain import scores
from tests.interop.conftest import params_of

FLOAT32 = Compute(dtype="float32")
NEW_TOKENS, PENALTY = 12, 1.3  # as in make_release.py


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


def generated(size, params, prompts, penalty):
    sampling = Sampling(new_tokens=NEW_TOKENS, repetition_penalty=penalty)
    return generate(
        Decoder(size, FLOAT32), for_decoding(params, size, "float32"), prompts, sampling
    )


def test_logits_and_answers_equal_the_checked_in_ones(imported, release):
    size, content = release
    _, params = imported
    found = scores(Decoder(size, FLOAT32), params, content["tokens"])
    np.testing.assert_allclose(found, content["logits"], atol=1e-4)
    found = golden.select(content, "prompt_")
    prompts = [found[str(i)].tolist() for i in range(len(found))]
    assert len(prompts) >= 50
    assert len({len(prompt) for prompt in prompts}) > 20
    for name, penalty in (("greedy", 1.0), ("penalty", PENALTY)):
        assert generated(size, params, prompts, penalty) == answers(content, name)
