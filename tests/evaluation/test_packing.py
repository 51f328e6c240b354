"""Trees in rows say what one text at a time says, however they are packed."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polylm_jax.evaluation.packing import alike, plan, tree, windows
from polylm_jax.evaluation.score import score_batch, score_trees
from polylm_jax.model.attention import TREE_BLOCK, Trees, staircase
from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.model.parameters import shapes
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import attender, constrainer, parameter_shardings
from polylm_jax.sizes import Size
from tests import golden
from tests.evaluation.plain import plain

FLOAT32 = Compute(dtype="float32")
CONTEXT = 37  # of golden model a


def items(least=1, most=6):
    """Items whose choices share stems of any length; few ids, so that they often do by chance."""
    ids = st.lists(st.integers(3, 6), max_size=9)
    some = st.lists(st.integers(3, 6), min_size=1, max_size=9)
    choice = st.tuples(ids, some)
    item = st.tuples(some, st.lists(choice, min_size=1, max_size=4)).map(
        lambda drawn: [([*drawn[0], *head], tail) for head, tail in drawn[1]]
    )
    return st.lists(item, min_size=least, max_size=most)


def scored(decoder, params, drawn, width, rows, ways=1):
    """Sum and greediness of each choice of each item, by trees."""
    trees, found = [tree(pairs) for pairs in drawn], {}
    planned = plan([one.size for one in trees], width, rows, ways)
    keep = lambda _, sums: found.update(sums)  # noqa: E731
    score_trees(decoder, {"params": params}, trees, planned, keep)
    return [found[number] for number in range(len(trees))]


@pytest.fixture(scope="module")
def model():
    size, params, _ = golden.load("a")
    return Decoder(size, FLOAT32), params


def one_by_one(model, drawn):
    pairs = [pair for pairs in drawn for pair in pairs]
    alone = iter(plain(*model, pairs))
    return [[next(alone) for _ in pairs] for pairs in drawn]


def same(found, alone):
    for some, others in zip(found, alone, strict=True):
        for (sum_, greedy), one in zip(some, others, strict=True):
            np.testing.assert_allclose(sum_, one.log_likelihood, 1e-5, 1e-5)
            assert greedy == one.greedy


@settings(max_examples=12, deadline=None)
@given(items())
def test_trees_in_rows_equal_one_text_at_a_time(model, drawn):
    same(scored(*model, drawn, 48, 2), one_by_one(model, drawn))


DRAWN = [
    [([3, 4, 5, 6], [7]), ([3, 4, 5, 6], [8]), ([3, 4, 5, 6], [9])],  # letters behind a passage
    [([2], [3, 4, 5, 6, 7]), ([2], [3, 4, 9, 6, 7])],  # nothing before
    [([3], [4, 5]), ([3, 4], [5])],  # one text twice, cut elsewhere
    [([5], [6]), ([5], [6])],  # the same choice twice
    [([9, 8], [7, 6, 5]), ([9, 8], [7])],  # one begins the other
    [(list(range(3, 30)), [1] * 9), ([4], [5] * 30)],  # more than a row
]


@pytest.mark.parametrize(("width", "rows"), [(16, 1), (64, 8), (128, 3)])
def test_width_and_batch_change_nothing(model, width, rows):
    same(scored(*model, DRAWN, width, rows), one_by_one(model, DRAWN))


def test_meshes_score_what_one_device_does():
    size, params, _ = golden.load("release")
    alone = one_by_one((Decoder(size, FLOAT32), params), DRAWN[:5])
    for shape in (2, 2, 2), (1, 2, 1):
        mesh = make_mesh(MeshShape(*shape), jax.devices()[: int(np.prod(shape))])
        with jax.set_mesh(mesh):
            split = jax.device_put(params, parameter_shardings(size, mesh))
            decoder = Decoder(
                size, FLOAT32, constrain=constrainer(mesh), attend=attender(FLOAT32, mesh)
            )
            same(scored(decoder, split, DRAWN[:5], 16, 4, 4), alone)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_a_cpu_looks_back_no_farther_than_its_trees_begin(shape):
    draw, length = np.random.default_rng(0), 10 * TREE_BLOCK
    rows = []
    # a tree of the whole row, then of ever fewer tokens
    for most in (length, 300, 90, 7):
        documents, branches = [], []
        while len(documents) < length:
            size, stem = draw.integers(most // 2, most + 1), draw.integers(1, 1 + most // 2)
            documents += [len(documents)] * size
            branches += [0] * stem + (1 + np.arange(size - stem) // (1 + size // 4)).tolist()
            branches = branches[: len(documents)]
        rows.append([documents[:length], branches[:length]])
    trees = Trees(*np.array(rows, np.int32).swapaxes(0, 1))
    query, key, value = draw.normal(size=(3, 4, length, 2, 8)).astype(np.float32)
    mesh = make_mesh(MeshShape(*shape), jax.devices()[: int(np.prod(shape))])
    with jax.set_mesh(mesh):
        found = jax.jit(attender(FLOAT32, mesh))(query, key, value, trees)
    np.testing.assert_allclose(found, staircase(query, key, value, trees), 1e-5, 1e-5)


def test_no_second_copy_of_the_parameters_is_made():
    size = Size(vocabulary=2048, context=64, layers=8, heads=2, d_model=128, d_ff=512)
    row, flat = jax.ShapeDtypeStruct((2, 64), np.int32), jax.ShapeDtypeStruct((128,), np.int32)
    arrays = (row, row, row, flat, flat, jax.ShapeDtypeStruct((), np.int32))
    asked = score_batch.lower(Decoder(size, FLOAT32), {"params": shapes(size)}, *arrays)
    held = sum(4 * leaf.size for leaf in jax.tree.leaves(shapes(size)))
    assert asked.compile().memory_analysis().temp_size_in_bytes < held / 2


def test_what_is_shared_is_computed_once():
    [letters, *_] = [tree(pairs) for pairs in DRAWN]
    assert (len(letters.tokens), len(letters.targets)) == (4, 3)
    passage = tree([([2, *range(50)], [60, 61, n]) for n in range(4)])
    assert passage.tokens.tolist() == [2, *range(50), 60, 61]
    assert len(passage.targets) == 2 + 4


@settings(max_examples=50)
@given(items())
def test_pairs_are_together_where_that_takes_fewer_tokens(drawn):
    pairs = [pair for pairs in drawn for pair in pairs]
    groups = alike(pairs, 48)
    assert sorted(number for group in groups for number in group) == list(range(len(pairs)))
    for group in groups:
        one = tree([pairs[number] for number in group])
        apart = [tree([pairs[number]]) for number in group]
        assert len(group) == 1 or len(one.tokens) <= 48
        assert len(group) == 1 or len(one.tokens) < sum(len(of.tokens) for of in apart)


def test_choices_find_each_other_among_other_pairs():
    passages = [[2, *range(10 * n, 10 * n + 9)] for n in range(1, 9)]
    pairs = [(passage, [n, n + 1]) for n in range(3) for passage in passages]
    assert sorted(map(sorted, alike(pairs, 64))) == [[n, n + 8, n + 16] for n in range(8)]
    assert max(map(len, alike(pairs, 12))) == 2
    # what begins with the same id alone does not keep apart what has more in common
    assert alike([([2], [3, 4]), ([2], [5, 6, 7]), ([2], [5, 6, 8])], 64) == [[0], [1, 2]]


@pytest.mark.parametrize("mean", [35, 100, 180, 350])
def test_padding_is_little_and_programs_are_few(mean):
    draw = np.random.default_rng(mean)
    sizes = (mean * draw.lognormal(0, 0.25, 1000)).astype(int).clip(8, 900).tolist()
    sizes[7] = 2500
    packed = plan(sizes, 512, 4, 1)
    assert sorted(n for one in packed for row in one.trees for n in row) == list(range(1000))
    for one in packed:
        assert len(one.trees) <= one.rows
        assert all(sum(sizes[n] for n in row) <= one.width for row in one.trees)
    assert sum(sizes) / sum(one.rows * one.width for one in packed) > 0.88
    assert len({(one.rows, one.width) for one in packed}) <= 4
    assert all(one.rows % 8 == 0 for one in plan(sizes, 512, 4, 8))
    # nor is the last batch of a small benchmark half empty
    few = plan(sizes[8:208], 512, 4, 1)
    assert sum(sizes[8:208]) / sum(one.positions for one in few) > 0.88


def rolling_as_lm_eval(ids, prefix, longest):
    """lm_eval.utils.get_rolling_token_windows and make_disjoint_window, context_len 1, said anew:
    (context, continuation) of each window."""
    whole, found = [prefix, *ids], []
    done = 0
    while done < len(ids):
        count = min(longest, len(ids) - done)
        end = done + count
        begin = max(0, end - longest) if done else 0
        found.append((whole[begin : done + 1], whole[done + 1 : end + 1]))
        done = end
    return found


@given(st.integers(1, 60), st.integers(1, 20))
def test_long_texts_have_lm_evals_windows(length, context):
    ids = list(range(10, 10 + length))
    parts = windows([2], ids, context)
    assert parts == rolling_as_lm_eval(ids, 2, context)
    assert all(len(head) + len(tail) - 1 <= context for head, tail in parts)


def test_a_long_context_loses_its_beginning():
    assert windows([1, 2, 3, 4], [5, 6], 3) == [([3, 4], [5, 6])]
