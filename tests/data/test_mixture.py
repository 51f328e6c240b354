import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import seqio

from polylm_jax.__main__ import main
from polylm_jax.data.curriculum import BLOCK, consumed, share
from polylm_jax.data.feed import read_rows
from polylm_jax.data.mixture import register
from polylm_jax.data.rows import open_store
from polylm_jax.data.schedule import Schedule, make_curriculum
from polylm_jax.errors import UserError
from tests.conftest import gin_flags
from tests.data.sentences import SENTENCES

ROOT = Path(__file__).parents[2]
LENGTH = 16
FAR = 3 * BLOCK - 50  # the rows after it cross from one of the curriculum's blocks to the next
TEXTS = {code: SENTENCES[code] * 8 for code in ("en", "de", "th")} | {
    # one document, so none to hold out
    "en-de": ["\n".join(f"Good morning, {n}.\nGuten Morgen, {n}." for n in range(60))]
}
SCHEDULE = Schedule(
    non_english=((0, 0.3), (LENGTH * 1000, 0.3), (LENGTH * 2000, 0.6)),
    weights=((0, {"de": 2, "th": 1}),),
    extras={"en-de": ((0, 0.1),)},
    seed=3,
)


def open_run(path, schedule=SCHEDULE):
    store = open_store(path)
    rows = {source: store.rows(source) for source in store.sources}
    return store, make_curriculum(schedule, rows, store.length)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The path of a row store with several small files a source."""
    folder = tmp_path_factory.mktemp("mixture")
    for source, texts in TEXTS.items():
        (folder / "text" / source).mkdir(parents=True)
        pieces = [f"{number} {text}" for number, text in enumerate(texts)]
        (folder / "text" / source / "some.txt").write_text("\n\n".join(pieces), encoding="utf-8")
    settings = {
        "corpus.split": "\\n\\n",
        "corpus.text": folder / "text",
        "corpus.path": folder / "corpus",
        "tokenizer.path": folder / "tokenizer",
        "tokenizer.pieces": 600,
        "rows.path": folder / "rows",
        "rows.length": LENGTH,
        "rows.shard_rows": 7,
    }
    for verb in ("corpus", "tokenizer", "rows"):
        assert main([verb, *gin_flags(settings)]) == 0
    return str(folder / "rows")


@pytest.fixture(scope="module")
def run(path):
    return open_run(path)


@pytest.fixture(autouse=True)
def registries():
    """seqio's registries and caches are empty again once a test is over."""
    yield
    seqio.set_global_cache_dirs([])
    for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
        for name in list(registry.names()):
            registry.remove(name)


def read(dataset, count=None):
    """tokens [n, length + 1] and sources [n] of all examples or the first ones."""
    examples = list((dataset.take(count) if count else dataset).as_numpy_iterator())
    tokens = np.array([example["tokens"] for example in examples]).reshape(-1, LENGTH + 1)
    return tokens, np.array([example["source"] for example in examples], np.int32)


def assert_equal(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype == np.int32
        np.testing.assert_array_equal(one, other)


def all_rows(store, source, split="train"):
    return store.read(source, np.arange(store.rows(source, split)), split)


def in_any_order(tokens):
    return sorted(map(tuple, tokens.tolist()))


def digest(name):
    return hashlib.sha256(read(seqio.get_mixture_or_task(name).get_dataset(), 100)[0]).hexdigest()


@pytest.mark.parametrize("start", [0, 17, FAR])
def test_the_mixture_is_the_training_feed(run, start):
    register("polylm", *run, start)
    dataset = seqio.get_mixture_or_task("polylm").get_dataset()
    expected = read_rows(*run, start, start + 400)
    assert_equal(read(dataset, 400), expected)
    assert_equal(read(dataset, 400), expected)


def test_chance_has_no_influence(run):
    mixture = register("polylm", *run)
    dataset = mixture.get_dataset(shuffle=True, seed=5, use_cached=True)
    assert_equal(read(dataset, 50), read_rows(*run, 0, 50))


def test_two_epochs_have_every_row_of_a_source_twice(run):
    store, curriculum = run
    mixture = register("polylm", store, curriculum)
    index = curriculum.sources.index("th")
    tokens, sources = read(mixture.get_dataset(), 6000)
    mine = tokens[sources == index]
    count = store.rows("th")
    assert len(mine) > 2 * count
    for epoch in (mine[:count], mine[count : 2 * count]):
        assert in_any_order(epoch) == in_any_order(all_rows(store, "th"))
    assert in_any_order(mine[:count]) == in_any_order(mine[count : 2 * count])
    assert (mine[:count] != mine[count : 2 * count]).any()


@pytest.mark.parametrize("epochs", [1, 3])
def test_epochs_end_where_the_first_source_runs_out(run, epochs):
    curriculum, start = run[1], 5
    tokens, sources = read(register("polylm", *run, start).get_dataset(num_epochs=epochs))
    end = start + len(tokens)
    assert_equal((tokens, sources), read_rows(*run, start, end))
    assert (consumed(curriculum, end) <= epochs * curriculum.rows).all()
    assert (consumed(curriculum, end + 1) > epochs * curriculum.rows).any()


def test_a_run_that_refuses_to_repeat(path):
    store, curriculum = open_run(path, Schedule(on_end="refuse", weights=SCHEDULE.weights))
    mixture = register("polylm", store, curriculum)
    once = read(mixture.get_dataset(num_epochs=1))
    assert_equal(once, read_rows(store, curriculum, 0, len(once[0])))
    with pytest.raises(Exception, match="have been read; set curriculum"):
        read(mixture.get_dataset(), len(once[0]) + 1)


@pytest.mark.parametrize("shards", [1, 3, 4])
def test_shards_of_the_mixture_interleaved_are_the_run(run, shards):
    mixture = register("polylm", *run, start=FAR)
    parts = [
        read(mixture.get_dataset(shard_info=seqio.ShardInfo(index, shards)), 100)
        for index in range(shards)
    ]
    tokens, sources = (np.stack(part, axis=1) for part in zip(*parts, strict=True))
    expected = read_rows(*run, FAR, FAR + 100 * shards)
    assert_equal((tokens.reshape(-1, LENGTH + 1), sources.ravel()), expected)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_task_is_the_rows_of_a_source_in_the_stores_order(run, split):
    store, curriculum = run
    register("polylm", store, curriculum)
    for index, source in enumerate(("en", "de", "th")):
        assert curriculum.sources[index] == source
        task = seqio.TaskRegistry.get(f"polylm_{source}")
        tokens, sources = read(task.get_dataset(split=split, shuffle=False))
        expected = all_rows(store, source, {"train": "train", "validation": "valid"}[split])
        np.testing.assert_array_equal(tokens, expected)
        assert set(sources) == {index}
        assert task.num_input_examples(split) == len(expected)
        shuffled, _ = read(task.get_dataset(split=split, shuffle=True, seed=1))
        assert in_any_order(shuffled) == in_any_order(expected)


def test_a_source_with_no_row_held_out_has_no_validation_split(run):
    mixture = register("polylm", *run)
    assert run[0].rows("en-de", "valid") == 0
    assert tuple(seqio.TaskRegistry.get("polylm_en_de").splits) == ("train",)
    assert "en-de" in run[1].sources
    assert sorted(mixture.splits) == ["train", "validation"]


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_of_a_task_are_the_task(run, shards):
    store, curriculum = run
    register("polylm", store, curriculum)
    task = seqio.TaskRegistry.get("polylm_de")
    parts = [
        read(task.get_dataset(shuffle=False, shard_info=seqio.ShardInfo(index, shards)))[0]
        for index in range(shards)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), all_rows(store, "de"))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_shard_reads_only_its_part(run, monkeypatch):
    store, curriculum = run
    register("polylm", store, curriculum)
    seen = []
    plain = type(store).read
    monkeypatch.setattr(
        type(store),
        "read",
        lambda store, source, rows, split: seen.extend(rows) or plain(store, source, rows, split),
    )
    task = seqio.TaskRegistry.get("polylm_de")
    read(task.get_dataset(shuffle=False, shard_info=seqio.ShardInfo(1, 3)))
    count = store.rows("de")
    assert seen == list(range(count // 3, 2 * count // 3))
    assert len(task.source.list_shards("train")) == -(-count // 7)


def test_what_seqio_sees(run):
    store, curriculum = run
    mixture = register("polylm", store, curriculum, start=1500)
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {
        f"polylm_{source.replace('-', '_')}": rate
        for source, rate in zip(curriculum.sources, share(curriculum, 1500), strict=True)
    }
    assert rates["polylm_en_de"] == pytest.approx(0.1)
    assert rates["polylm_de"] == pytest.approx(2 * rates["polylm_th"])
    assert rates["polylm_en"] == pytest.approx(0.9 * 0.55)
    assert mixture.total_rate == pytest.approx(1)
    assert mixture.num_input_examples("train") == curriculum.rows.sum()
    assert mixture.output_features.keys() == mixture.get_dataset().element_spec.keys()


def test_validation_of_the_mixture_is_its_tasks_one_after_the_other(run):
    store, curriculum = run
    mixture = register("polylm", store, curriculum)
    tokens, sources = read(mixture.get_dataset(split="validation"))
    order = ["de", "en", "th"]
    expected = [all_rows(store, source, "valid") for source in order]
    np.testing.assert_array_equal(tokens, np.concatenate(expected))
    indices = [curriculum.sources.index(source) for source in order]
    np.testing.assert_array_equal(sources, np.repeat(indices, [len(rows) for rows in expected]))


def test_seqios_converter_of_packed_rows_takes_them_as_they_are(run):
    register("polylm", *run, start=17)
    batch = next(
        seqio.get_dataset(
            "polylm", {"targets": LENGTH}, seqio.PrePackedLMFeatureConverter(), batch_size=8
        ).as_numpy_iterator()
    )
    tokens, _ = read_rows(*run, 17, 25)
    np.testing.assert_array_equal(batch["decoder_input_tokens"], tokens[:, :-1])
    np.testing.assert_array_equal(batch["decoder_target_tokens"], tokens[:, 1:])
    np.testing.assert_array_equal(batch["decoder_positions"][3], np.arange(LENGTH))
    assert (batch["decoder_loss_weights"] == 1).all()
    assert (batch["decoder_segment_ids"] == 1).all()


def test_a_converter_that_takes_id_0_for_padding_fails(run):
    register("polylm", *run)
    with pytest.raises(ValueError, match="targets"):
        seqio.get_dataset("polylm", {"targets": LENGTH}, seqio.LMFeatureConverter())


def test_seqios_inspection_tool(run, capsys):
    # its flags have the names of those of the caching tool, which imports this module
    from seqio.scripts import inspect_tasks_main

    register("polylm", *run)
    flags = ["--noinspect_task_examples", "--print_length_statistics", "--length_percentiles=0.5"]
    inspect_tasks_main.FLAGS(["inspect", *flags, "--sequence_length={'tokens': 99}"])
    inspect_tasks_main.main(None)
    shown = capsys.readouterr().out
    for name in ("Task: polylm_de", "Task: polylm_en_de", "Mixture: polylm"):
        assert f"*** {name} ***" in shown
    # train and validation of the mixture and three Tasks, train of en-de
    assert shown.count(f", tokens, {LENGTH + 1:.1f}\n") == 9


def test_names_that_are_taken(run):
    register("polylm", *run)
    before = set(seqio.TaskRegistry.names())
    for name in ("polylm", "polylm_de"):
        with pytest.raises(UserError, match=f'seqio has a "{name}" already'):
            register(name, *run)
    assert set(seqio.TaskRegistry.names()) == before
    with pytest.raises(UserError, match="first row of a run is row 0"):
        register("other", *run, start=-1)


def test_a_fresh_process_and_beams_cache_give_the_same_rows(path, run, tmp_path):
    (tmp_path / "registers.py").write_text(
        "from polylm_jax.data.mixture import register\n"
        "from tests.data.test_mixture import digest, open_run\n"
        f"register('polylm', *open_run({path!r}), start={FAR})\n"
        "print('digest', digest('polylm'))\n"
    )
    flags = {"module_import": "registers", "tasks": "polylm_de", "min_shards": 2}
    flags["output_cache_dir"] = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-m", "seqio.scripts.cache_tasks_main"]
        + [f"--{name}={value}" for name, value in flags.items()],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    store, curriculum = run
    register("polylm", store, curriculum, start=FAR)
    assert f"digest {digest('polylm')}\n" in done.stdout

    seqio.set_global_cache_dirs([str(tmp_path / "cache")])
    task = seqio.TaskRegistry.get("polylm_de")
    for split, name in (("train", "train"), ("validation", "valid")):
        tokens, sources = read(task.get_dataset(split=split, use_cached=True, shuffle=False))
        assert in_any_order(tokens) == in_any_order(all_rows(store, "de", name))
        assert set(sources) == {curriculum.sources.index("de")}
        assert task.get_cached_stats(split)["examples"] == store.rows("de", name)
