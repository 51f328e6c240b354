"""Scores against Hugging Face's logits, and whatever the rows or the mesh."""

import jax
import numpy as np
import pytest

from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.evaluation.likelihood import Score, likelihoods
from polylm_jax.evaluation.score import NotFinite, Subject, encode_pairs
from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import constrainer, parameter_shardings
from polylm_jax.sizes import Size
from tests import golden, scripted
from tests.data.sentences import SENTENCES
from tests.evaluation.plain import plain

FLOAT32 = Compute(dtype="float32")


def score(decoder, params, pairs, length=64, rows=1, ways=1):
    """Scores in the order of the pairs."""
    subject = Subject(decoder, params, None, ways)
    found = likelihoods(subject, pairs, length, rows)
    return [found[place] for place in range(len(pairs))]


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
@pytest.mark.parametrize("rows", [1, 4])
def test_scores_equal_hugging_faces(name, rows):
    size, params, content = golden.load(name)
    pairs = pairs_of(content["tokens"])
    found = score(Decoder(size, FLOAT32), params, pairs, 64, rows)
    expected = list(hugging_face_scores(content, pairs))
    np.testing.assert_allclose([f.log_likelihood for f in found], [e[0] for e in expected], 1e-4)
    assert [f.greedy for f in found] == [e[1] for e in expected]
    assert [f.tokens for f in found] == [len(tail) for _, tail in pairs]


def test_what_the_model_would_say_itself_is_greedy():
    size, params, content = golden.load("a")
    prompt, answer = content["prompt_2"].tolist(), content["greedy_2"].tolist()
    [found] = score(Decoder(size, FLOAT32), params, [(prompt, answer)])
    assert found.greedy


def test_a_mesh_scores_what_one_device_does():
    size, params, content = golden.load("b")  # 131 pieces: split over the batch only
    pairs = pairs_of(content["tokens"])
    expected = score(Decoder(size, FLOAT32), params, pairs)
    mesh = make_mesh(MeshShape(4, 2, 1), jax.devices())
    with jax.set_mesh(mesh):
        decoder = Decoder(size, FLOAT32, constrain=constrainer(mesh))
        split = jax.device_put(params, parameter_shardings(size, mesh))
        found = score(decoder, split, pairs, ways=8)
    np.testing.assert_allclose(
        [f.log_likelihood for f in found], [e.log_likelihood for e in expected], 1e-5
    )


def test_a_long_context_loses_its_beginning():
    size, params, content = golden.load("a")
    decoder, row = Decoder(size, FLOAT32), content["tokens"][0].tolist()
    assert len(row) == size.context
    [whole] = score(decoder, params, [(row[:-4], [*row[-4:], 5])])
    [longer] = score(decoder, params, [([9, 9, 9, *row[:-4]], [*row[-4:], 5])])
    assert whole == longer


def by_the_rule(pieces, context, continuation):
    """Ids by lm-eval's rule, and by itself a continuation of which it leaves nothing."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    if context == "":
        return [2], pieces.encode(continuation)
    head = pieces.encode(context)
    return head, pieces.encode(context + continuation)[len(head) :] or pieces.encode(continuation)


def test_joins_have_the_numbers_of_lm_eval():
    size = Size(1024, context=64, layers=1, heads=2, d_model=16, d_ff=32)
    decoder = Decoder(size, FLOAT32)
    params = jax.jit(decoder.init)(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    params = jax.tree.map(lambda x: 8 * x, params)  # so that other ids have other scores

    codes = ("zh", "ja", "th")
    text = [sentence for code in codes for sentence in SENTENCES[code]] * 3
    cuts = [
        (text[:cut], text[cut : cut + more])
        for text in (SENTENCES[code][0] for code in codes)
        for cut in range(9)
        for more in (1, 7)
    ]
    for flags in {}, scripted.SPACED:
        model, pieces = scripted.tokenizer(
            **flags, sentence_iterator=iter(text), vocab_size=900, model_type="bpe"
        )
        wanted = [by_the_rule(pieces, *cut) for cut in cuts]
        for part in np.split(np.arange(len(cuts)), len(codes)):
            wholes = [(pieces.encode("".join(cuts[i])), *wanted[i]) for i in part[2:]]
            assert sum(whole != [*head, *tail] for whole, head, tail in wholes) > 3  # in a token
        found = score(decoder, params, encode_pairs(Tokenizer(model), cuts))
        for one, right in zip(found, plain(decoder, params, wanted), strict=True):
            np.testing.assert_allclose(one.log_likelihood, right.log_likelihood, 1e-4)
            assert one.tokens == right.tokens > 0


def test_what_is_known_is_not_asked_and_changes_nothing():
    size, params, content = golden.load("a")
    pairs = [*pairs_of(content["tokens"]), ([3], []), ([3], [4, 5] * 40)]
    subject, told = Subject(Decoder(size, FLOAT32), params, None, 1), []
    whole = likelihoods(subject, pairs, 48, 1, told.append)
    empty = {len(pairs) - 2: Score(0.0, 0, True)}
    assert whole == dict(one for some in told for one in some.items()) | empty
    assert whole[len(pairs) - 1].tokens == 80
    again, known = [], set(whole) - set(told[-1])
    found = likelihoods(subject, pairs, 48, 1, again.append, known)
    assert found == told[-1] | empty
    assert len(again) < len(told)


def test_scores_that_are_no_numbers_are_one_sentence():
    size, params, _ = golden.load("a")
    lost = params | {"embedding": np.full_like(params["embedding"], np.nan)}
    with pytest.raises(NotFinite, match="not finite"):
        score(Decoder(size, FLOAT32), lost, [([3], [4])])
