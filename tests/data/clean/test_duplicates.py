"""Copies are found as exact Jaccard and a plain union-find have them, and no cluster is lost."""

import random
import subprocess
import sys
from collections import defaultdict
from itertools import combinations

import numpy as np
import pytest

from polylm_jax.data.clean import clusters, duplicates, products
from polylm_jax.data.clean.duplicates import CANDIDATE
from polylm_jax.data.clean.engine import Beam
from polylm_jax.data.clean.text import Batch, fold, shingle_sizes
from tests.data.sentences import SENTENCES

BANDS, ROWS = 14, 8


def keys(texts, languages=None):
    numbers = np.zeros(len(texts), np.uint64) if languages is None else np.array(languages, "u8")
    return duplicates.keys(fold(Batch.of(texts)), numbers, BANDS, ROWS)


def edited(text, rate, chance):
    """The text with a share of its letters replaced."""
    return "".join(chance.choice("abcdefgh") if chance.random() < rate else c for c in text)


@pytest.fixture(scope="module")
def family():
    """216 texts with edits of all strengths, and their sets of shingles."""
    chance = random.Random(5)
    words = [
        w for code in ("en", "de", "fr", "ru", "tr") for s in SENTENCES[code] for w in s.split()
    ]
    texts = []
    for _ in range(36):
        base = " ".join(chance.choice(words) for _ in range(chance.randint(40, 200)))
        texts.append(base)
        for rate in (0, 0.0003, 0.001, 0.002, 0.004):
            texts.append(edited(base, rate, chance))
    folded = fold(Batch.of(texts))
    plain = [folded.text(i) for i in range(len(texts))]
    sizes = shingle_sizes(folded)
    sets = [
        {t[i : i + n] for i in range(max(len(t) - n, 0) + 1)}
        for t, n in zip(plain, sizes, strict=True)
    ]
    return texts, sets


def jaccard(one, other):
    return len(one & other) / len(one | other)


def test_pairs_alike_share_a_key_and_signatures_agree_as_the_texts_do(family):
    texts, sets = family
    found = keys(texts)
    hit, of, errors = defaultdict(int), defaultdict(int), []
    batch = fold(Batch.of(texts))
    signatures = duplicates.signatures(*duplicates.shingles(batch), BANDS * ROWS)
    for i, j in combinations(range(len(texts)), 2):
        if i // 6 != j // 6:
            assert not (found[i] == found[j]).any()
            continue
        alike = jaccard(sets[i], sets[j])
        errors.append((signatures[i] == signatures[j]).mean() - alike)
        for least in (0.8, 0.9):
            of[least] += alike >= least
            hit[least] += alike >= least and bool((found[i] == found[j]).any())
    assert of[0.9] > 100
    assert hit[0.9] == of[0.9]
    assert hit[0.8] >= 0.97 * of[0.8]
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.06


def test_equal_texts_share_all_keys_in_their_language_only():
    text = "One house, two houses. " * 3
    found = keys(
        [text, text.upper(), text, "Quite another text that has nothing to do with it."],
        [1, 1, 2, 1],
    )
    assert (found[0] == found[1]).all()
    assert not np.intersect1d(found[0], found[2]).size
    assert not np.intersect1d(found[0], found[3]).size


def test_a_text_without_words_is_nobodys_copy_and_a_short_one_only_of_its_like():
    found = keys(["", "  ", "!!! ...", "a", "a", "b"])
    assert (found[:3] == duplicates.NONE).all()
    assert (found[3] == found[4]).all()
    assert (found[3] != found[5]).all()
    assert (found[3:] != duplicates.NONE).all()


def test_few_shingles_fill_a_whole_signature():
    for count in (1, 2, 50):
        shingles = np.arange(count, dtype=np.uint64)
        [signature] = duplicates.signatures(shingles, np.array([0, count]), 112)
        assert (signature != 2**32 - 1).all()
        assert len(set(signature.tolist())) <= count


def union_find(pairs):
    """Root of each document, by the textbook."""
    above = {}

    def root(node):
        while above.setdefault(node, node) != node:
            node = above[node]
        return node

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        above[high] = low
    return {node: root(node) for node in above}


def by_stars(edges, parts=3):
    """Clusters by rounds of stars, each document's edges in its own part."""
    for rounds in range(60):
        ways = duplicates.both_ways(edges)
        large = [
            duplicates.large_star(ways[ways[:, 0] % parts == p])
            for p in range(parts)
            if (ways[:, 0] % parts == p).any()
        ]
        if not sum(left for _, left in large):
            return duplicates.distinct(edges), rounds
        edges = np.concatenate([some for some, _ in large])
        edges = np.concatenate(
            [
                duplicates.small_star(edges[edges[:, 0] % parts == p])
                for p in range(parts)
                if (edges[:, 0] % parts == p).any()
            ]
        )
    raise AssertionError("the stars do not settle")


def graphs():
    chance = np.random.default_rng(3)
    yield "chain", np.array([(i + 1, i) for i in range(500)], np.uint64)
    order = chance.permutation(500).astype(np.uint64)
    yield "hostile chain", np.sort(np.column_stack([order[1:], order[:-1]]), 1)[:, ::-1]
    yield (
        "ring of rings",
        np.array(
            [(i, i // 7 * 7) for i in range(1, 700) if i % 7]
            + [(7 * i, 7 * i - 7) for i in range(1, 50)],
            np.uint64,
        ),
    )
    some = chance.integers(0, 3000, (1500, 2)).astype(np.uint64)
    some = some[some[:, 0] != some[:, 1]]
    yield "random", np.sort(some, 1)[:, ::-1]


@pytest.mark.parametrize(
    ("kind", "edges"), list(graphs()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_stars_and_memory_give_the_clusters_of_union_find(kind, edges):
    wanted = {(a, b) for a, b in union_find(edges.tolist()).items() if a != b}
    stars, _ = by_stars(np.ascontiguousarray(edges))
    assert set(map(tuple, stars.tolist())) == wanted
    assert set(map(tuple, duplicates.connected(edges).tolist())) == wanted


def test_sizes_count_every_document_of_a_cluster_once():
    labels = np.array([(3, 1), (9, 1), (5, 4)], np.uint64)
    assert duplicates.with_sizes(labels).tolist() == [
        [1, 1, 3], [3, 1, 3], [4, 4, 2], [5, 4, 2], [9, 1, 3],
    ]  # fmt: skip


def test_edges_bind_a_key_to_its_smallest_document():
    pairs = np.array([(7, 3), (7, 1), (8, 2), (7, 1), (9, 5), (9, 4)], np.uint64)
    assert duplicates.edges(pairs).tolist() == [[3, 1], [5, 4]]


def test_a_pass_that_ended_goes_on_with_another_number_of_slices(tmp_path, monkeypatch):
    """Of another number, a slice has other keys, so none that is done says that another is."""
    folder = str(tmp_path)
    products.save(f"{folder}/keys.npy", np.arange(200, dtype=np.uint64)[:, None] // 2 + 1)
    keys, put = [clusters.Keys(0, f"{folder}/keys.npy")], clusters.put

    def ended(path, content):
        put(path, content)
        raise RuntimeError

    monkeypatch.setattr(clusters, "put", ended)
    with pytest.raises(RuntimeError):
        clusters.find(Beam(), keys, 200, 200 * duplicates.PAIR / 4, folder)
    monkeypatch.undo()
    clusters.find(Beam(), keys, 200, 1e9, folder)
    assert (clusters.of(folder, 0, 200)[1] == 2).all()


def test_one_survives_a_cluster_in_any_order_and_any_grouping():
    chance = np.random.default_rng(11)
    every = np.zeros(400, CANDIDATE)
    every["cluster"] = chance.integers(0, 40, 400)
    every["passes"] = chance.integers(0, 2, 400)
    every["bits"] = chance.choice([1.5, 2.0, np.nan], 400)
    every["length"] = chance.integers(1, 4, 400)
    every["document"] = chance.permutation(400)
    wanted = {}
    for one in every:
        rank = (
            -int(one["passes"]),
            np.nan_to_num(one["bits"], nan=9),
            -int(one["length"]),
            one["document"],
        )
        if one["cluster"] not in wanted or rank < wanted[one["cluster"]][0]:
            wanted[one["cluster"]] = rank, one["document"]
    for _ in range(3):
        chance.shuffle(every)
        parts = np.concatenate([duplicates.best(some) for some in np.split(every, [7, 150, 151])])
        found = duplicates.best(parts)
        assert dict(zip(found["cluster"], found["document"], strict=True)) == {
            c: d for c, (_, d) in wanted.items()
        }


CHILD = """
import sys
import numpy as np
from polylm_jax.data.clean import clusters, products
from polylm_jax.data.clean.engine import Beam
folder, chance, each = sys.argv[1], np.random.default_rng(0), 500_000 // 8
hot = chance.integers(1, 2**64, 15, dtype=np.uint64)
keys = []
for shard in range(8):
    found = chance.integers(1, 2**64, (each, 15), dtype=np.uint64)
    found[: each // 4] = hot
    products.save(f"{folder}/{shard}.npy", found)
    keys.append(clusters.Keys(shard, f"{folder}/{shard}.npy"))
clusters.find(Beam(), keys, 500_000 * 15, 256e6, folder)
for shard in range(8):
    cluster, size = clusters.of(folder, shard, each)
    assert (cluster[: each // 4] == 1).all()
    assert (size[: each // 4] == 125_000).all()
    assert not cluster[each // 4 :].any()
# not ru_maxrss, which a process has from the one that started it
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak.split()[1]) // 1024)
"""


@pytest.mark.rare
def test_half_a_million_documents_with_a_hot_cluster_fit_a_gigabyte(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1000
