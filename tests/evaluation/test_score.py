"""Scores against Hugging Face's logits, and whatever the batch or the mesh."""

import jax
import numpy as np
import pytest

from polylm_jax.data.tokenizer import load
from polylm_jax.errors import UserError
from polylm_jax.evaluation.score import encode_pair, score
from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import constrainer, parameter_shardings
from tests import golden
from tests.data.sentences import SENTENCES

FLOAT32 = Compute(dtype="float32")


def pairs_of(tokens):
    """Cuts of the rows at several places, of several lengths."""
    rows = tokens.tolist()
    cuts = [(1, 2), (1, len(rows[0])), (3, 9), (7, 8), (20, 30)]
    return [(row[:cut], row[cut:end]) for row in rows for cut, end in cuts]


def hugging_face_scores(content, pairs):
    """From its logits of the whole rows, which see nothing of what follows."""
    logits = content["logits"].astype(np.float64)
    logits -= np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logits -= content["logits"].max(-1, keepdims=True)
    for number, (head, tail) in enumerate(pairs):
        row = logits[number // 5, len(head) - 1 : len(head) - 1 + len(tail)]
        yield row[np.arange(len(tail)), tail].sum(), (row.argmax(-1) == tail).all()


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("batch", [1, 4])
def test_scores_equal_hugging_faces(name, batch):
    size, params, content = golden.load(name)
    pairs = pairs_of(content["tokens"])
    found = score(Decoder(size, FLOAT32), params, pairs, batch)
    expected = list(hugging_face_scores(content, pairs))
    np.testing.assert_allclose([f.log_likelihood for f in found], [e[0] for e in expected], 1e-4)
    assert [f.greedy for f in found] == [e[1] for e in expected]
    assert [f.tokens for f in found] == [len(tail) for _, tail in pairs]


def test_what_the_model_would_say_itself_is_greedy():
    size, params, content = golden.load("a")
    prompt, answer = content["prompt_2"].tolist(), content["greedy_2"].tolist()
    [found] = score(Decoder(size, FLOAT32), params, [(prompt, answer)], 1)
    assert found.greedy


def test_a_mesh_scores_what_one_device_does():
    size, params, content = golden.load("b")  # 131 pieces: split over the batch only
    pairs = pairs_of(content["tokens"])
    expected = score(Decoder(size, FLOAT32), params, pairs, 4)
    mesh = make_mesh(MeshShape(4, 2, 1), jax.devices())
    with jax.set_mesh(mesh):
        decoder = Decoder(size, FLOAT32, constrain=constrainer(mesh))
        split = jax.device_put(params, parameter_shardings(size, mesh))
        found = score(decoder, split, pairs, 8)
    np.testing.assert_allclose(
        [f.log_likelihood for f in found], [e.log_likelihood for e in expected], 1e-5
    )


def test_a_long_context_loses_its_beginning():
    size, params, content = golden.load("a")
    decoder, row = Decoder(size, FLOAT32), content["tokens"][0].tolist()
    assert len(row) == size.context
    [whole] = score(decoder, params, [(row[:-4], [*row[-4:], 5])], 1)
    [longer] = score(decoder, params, [([9, 9, 9, *row[:-4]], [*row[-4:], 5])], 1)
    assert whole == longer


def test_a_boundary_inside_a_piece_is_cut_as_the_whole_is_tokenized(tiny):
    tokenizer = load(str(tiny["tokenizer.path"]))
    for sentences in SENTENCES.values():
        text = sentences[0]
        for cut in range(0, len(text), 7):
            head, tail = encode_pair(tokenizer, text[:cut], text[cut:])
            whole = tokenizer.encode([text])[0]
            assert tail
            assert (head[1:] if cut == 0 else head) + tail == whole


@pytest.mark.parametrize("pair", [([], [3]), ([3], []), ([3], [4] * 38)])
def test_a_pair_that_cannot_be_scored_is_one_sentence(pair):
    size, params, _ = golden.load("a")
    with pytest.raises(UserError, match="pair 2"):
        score(Decoder(size, FLOAT32), params, [([3], [4]), pair], 1)
