"""The feed hands out the run's rows: the same ones on any mesh, any hosts, after any restart."""

import contextlib
import itertools
from dataclasses import dataclass
from hashlib import sha256

import jax
import numpy as np
import pytest

from polylm_jax.data.curriculum import consumed
from polylm_jax.data.feed import AHEAD, batches, read_rows
from polylm_jax.data.schedule import Schedule, make_curriculum
from polylm_jax.errors import UserError
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import batch_sharding

LENGTH, SOURCES = 8, ("en", "zh", "de", "ko")
MESHES = {"8x1x1": (8, 1, 1), "1x1x8": (1, 1, 8), "2x2x2": (2, 2, 2)}


@dataclass(frozen=True)
class Numbered:
    """A store whose tokens say which source and row they are of."""

    length: int = LENGTH
    count: int = 100
    marked: bool = False

    def read_mixed(self, sources, which, rows):
        assert rows.max() < self.count
        first = 1000 * np.array([SOURCES.index(source) for source in sources])[which] + rows
        return (first[:, None] * 10 + np.arange(self.length + 1)).astype(np.int32)


def plan_of(store, **fields):
    ramp = ((0, 0.3), (200 * LENGTH, 0.3), (1000 * LENGTH, 0.6))
    schedule = Schedule(**{"non_english": ramp, "smoothing": 0.5} | fields)
    return make_curriculum(schedule, dict.fromkeys(SOURCES, store.count), store.length)


@pytest.fixture(scope="module")
def store():
    return Numbered()


@pytest.fixture(scope="module")
def plan(store):
    return plan_of(store)


@pytest.fixture(params=MESHES.values(), ids=MESHES)
def sharding(request):
    return batch_sharding(make_mesh(MeshShape(*request.param)))


def hashes(tokens, source):
    rows = zip(tokens, source, strict=True)
    return [sha256(row.tobytes() + bytes([kind])).hexdigest() for row, kind in rows]


def take(feed, number):
    with contextlib.closing(feed):
        return [jax.device_get(batch) for batch in itertools.islice(feed, number)]


def test_rows_are_those_that_the_curriculum_locates(store, plan):
    tokens, source = read_rows(store, plan, 0, 300)
    assert (tokens.dtype, source.dtype) == (np.int32, np.int32)
    assert (tokens.shape, source.shape) == ((300, LENGTH + 1), (300,))
    places = tokens[:, 0] // 10
    names = [SOURCES[number] for number in places // 1000]
    assert names == [plan.sources[index] for index in source]
    english = places[source == 0]
    assert len(english) > 200
    assert sorted(english[:100]) == list(range(100))


@pytest.mark.parametrize("seed", range(5))
def test_rows_do_not_depend_on_how_a_range_is_cut(store, plan, seed):
    random, start, stop = np.random.default_rng(seed), 3_900, 5_000
    whole = hashes(*read_rows(store, plan, start, stop))
    cuts = [start, *sorted(random.choice(np.arange(start + 1, stop), 20, replace=False)), stop]
    found = {}
    for low, high in random.permutation(list(itertools.pairwise(cuts))).tolist():
        found |= zip(range(low, high), hashes(*read_rows(store, plan, low, high)), strict=True)
    assert [found[row] for row in range(start, stop)] == whole


def test_batches_are_the_rows_of_the_run_on_every_mesh(store, plan, sharding):
    for step, batch in enumerate(take(batches(store, plan, sharding, 16, 4_064), 5)):
        tokens, source = read_rows(store, plan, 4_064 + 16 * step, 4_064 + 16 * (step + 1))
        np.testing.assert_array_equal(batch["tokens"], tokens)
        np.testing.assert_array_equal(batch["source"], source)


def test_batches_lie_on_the_devices_as_the_sharding_says(store, plan, sharding):
    with contextlib.closing(batches(store, plan, sharding, 16, 0)) as feed:
        batch = next(feed)
    tokens, source = read_rows(store, plan, 0, 16)
    assert batch["tokens"].sharding.is_equivalent_to(sharding, 2)
    for whole, name in ((tokens, "tokens"), (source, "source")):
        assert len(batch[name].addressable_shards) == 8
        for shard in batch[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index])


def test_a_run_that_changes_mesh_and_batch_midway_reads_the_same_rows(store, plan):
    row, read = 0, []
    for shape, batch, steps in (((8, 1, 1), 16, 7), ((2, 2, 2), 4, 9), ((1, 1, 8), 50, 3)):
        sharding = batch_sharding(make_mesh(MeshShape(*shape)))
        for values in take(batches(store, plan, sharding, batch, row), steps):
            read += hashes(values["tokens"], values["source"])
        row += batch * steps
    assert read == hashes(*read_rows(store, plan, 0, row))


def test_a_feed_that_is_closed_and_opened_again_goes_on(store, plan, sharding):
    whole = take(batches(store, plan, sharding, 8, 0), 6)
    again = take(batches(store, plan, sharding, 8, 0), 2)
    again += take(batches(store, plan, sharding, 8, 16), 4)
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one["tokens"], other["tokens"])


@pytest.mark.parametrize("hosts", [1, 2, 3, 8])
def test_hosts_together_read_the_batch_and_each_only_its_devices_rows(store, plan, sharding, hosts):
    """A host is some of the mesh's devices; its rows come from the index map alone."""
    batch, first = 16, 1_000
    whole = read_rows(store, plan, first, first + batch)
    indices = sharding.devices_indices_map((batch, LENGTH + 1))
    seen = set()
    for devices in np.array_split(np.array(sharding.mesh.devices).ravel(), hosts):
        for device in devices:
            start, stop, _ = indices[device][0].indices(batch)
            part = read_rows(store, plan, first + start, first + stop)
            for mine, all_rows in zip(part, whole, strict=True):
                np.testing.assert_array_equal(mine, all_rows[start:stop])
            seen |= set(range(start, stop))
    assert seen == set(range(batch))


def test_rows_that_devices_share_are_read_once_and_few_are_read_ahead(plan, sharding):
    rows = []

    class Counting(Numbered):
        def read_mixed(self, sources, which, places):
            rows.append(len(places))
            return super().read_mixed(sources, which, places)

    take(batches(Counting(), plan, sharding, 8, 0), 4)
    assert sum(rows) <= 8 * (4 + AHEAD)


def test_another_seed_gives_other_rows_and_another_fingerprint(store, plan):
    other = plan_of(store, seed=1)
    assert hashes(*read_rows(store, plan, 0, 100)) != hashes(*read_rows(store, other, 0, 100))
    assert plan.fingerprint() != other.fingerprint()


def test_a_run_that_must_not_repeat_fails_at_the_batch_that_would(store, sharding):
    plan = plan_of(store, on_end="refuse")
    steps = next(n for n in itertools.count() if consumed(plan, 8 * (n + 1)).max() > 100)
    assert len(take(batches(store, plan, sharding, 8, 0), steps)) == steps
    with pytest.raises(UserError, match=r'all 100 rows of "en".*on_end'):
        take(batches(store, plan, sharding, 8, 0), steps + 1)
