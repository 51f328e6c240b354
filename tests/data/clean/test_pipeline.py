"""The four passes: nothing is lost, one of a cluster survives, and the bytes do not depend on how
the work was done."""

import gzip
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from polylm_jax.data import corpus
from polylm_jax.data.clean import engine, inputs, measuring, parts, pipeline, products, report
from polylm_jax.data.clean.deciding import HELD
from polylm_jax.data.clean.engine import Beam
from polylm_jax.data.clean.jobs import alone, planned
from polylm_jax.data.clean.language import Identification
from polylm_jax.data.clean.settings import Clean
from polylm_jax.data.clean.thresholds import Thresholds
from polylm_jax.data.sides import threshold
from polylm_jax.errors import UserError
from tests.data.sentences import SENTENCES

LIMITS = {code: {"words": (20.0, None), "digits": (None, 0.3)} for code in ("de", "en", "zh")}


def document(code, chance, sentences=12):
    return " ".join(chance.choice(SENTENCES[code]) for _ in range(sentences))


def write(folder, shards=2):
    """Documents of three languages, with copies, near copies in other shards, and rubbish."""
    chance = random.Random(7)
    for code in ("de", "en", "zh"):
        (folder / code).mkdir(parents=True)
        texts = [document(code, chance, 30) for _ in range(18)]
        near = [text[:-9] + "?" for text in texts[:4]]
        texts += (
            texts[:5]
            + near
            + ["12 34 56 " * 40, "kurz", "", "\ud800 half" if code == "en" else "x"]
        )
        chance.shuffle(texts)
        for number in range(shards):
            lines = [json.dumps({"text": text}) for text in texts[number::shards]]
            (folder / code / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def job(folder, output, beam=None, **settings):
    named = {f"{folder}/{code}": code for code in settings.pop("order", ("de", "en", "zh"))}
    tokenizer = settings.pop("tokenizer", "")
    clean = Clean(inputs=settings.pop("inputs", named), output=str(output), **settings)
    with mock.patch.object(inputs, "JOINED", 0):  # so that there are several shards
        return planned(clean, Identification(), tokenizer, beam or Beam())


def run(work, limits=LIMITS):
    notes = pipeline.measure(work)
    pipeline.derive(work, Thresholds(), notes)
    pipeline.duplicates(work, notes)
    pipeline.write(work, notes, limits)
    return corpus.manifest(work.clean.output)


def content(output):
    """All that a run is for: the corpus, the verdicts, the thresholds."""
    files = [
        path for path in Path(output).rglob("*") if path.is_file() and ".clean" not in path.parts
    ]
    return {
        path.relative_to(output).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files
    }


def verdicts(output):
    rows = []
    for path in sorted(Path(output, "verdicts").glob("*")):
        table = products.load_table(str(path))
        rows += [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return rows


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    return write(tmp_path_factory.mktemp("web") / "in")


@pytest.fixture(scope="module")
def done(web, tmp_path_factory):
    output = tmp_path_factory.mktemp("done") / "out"
    return output, run(job(web, output))


def test_what_is_held_out_takes_one_look_at_each_shard_in_however_many_languages(web, tmp_path):
    work, chance = job(web, tmp_path / "out"), np.random.default_rng(0)
    kept, rows = [9, 0, 12, 7], []
    for piece in work.pieces:
        held = np.zeros(sum(kept), HELD)
        held["language"] = chance.permutation(np.repeat(np.arange(4), kept))
        held["hash"], held["text"] = chance.integers(0, 2**63, len(held)), 100
        products.save(f"{tmp_path}/{piece.number:08}.held.npy", held)
        rows.append(held)
    note = {"languages": ["de", "en", "fr", "zh"], "kept": kept, "decided": ""}
    deciding = mock.Mock(folder=str(tmp_path))
    with mock.patch.object(products, "load", wraps=products.load) as load:
        edges, tasks = pipeline._shared(work, deciding, [note] * len(rows))
    assert len(load.call_args_list) == len(rows)
    together = np.concatenate(rows)
    for number, language in ((0, "de"), (2, "fr"), (3, "zh")):
        own = together[together["language"] == number]
        assert edges[language] == threshold([own], 0.1, 20e6)
        assert [task.shares[language].number for task in tasks] == [*range(len(rows))]
    assert not {"en"} & (edges.keys() | tasks[0].shares.keys())


def test_every_document_has_one_verdict_and_what_is_kept_is_in_the_corpus(done):
    output, manifest = done
    rows = verdicts(output)
    assert len(rows) == 3 * (18 + 5 + 4 + 4)
    assert all(row["kept"] == (not row["reason"]) for row in rows)
    assert all(row["reason"] == row["reasons"].split(" ")[0] for row in rows)
    for code in LIMITS:
        kept = {row["id"] for row in rows if row["kept"] and row["language"] == code}
        texts, ids = [], []
        for split in ("train", "valid"):
            texts += list(corpus.documents(str(output), code, split))
            for shard in manifest["sources"][code][split]["shards"]:
                ids += _ids(output / code / shard["file"])
        assert set(ids) == kept
        assert len(texts) == len(ids) == len(kept) == 18
    short = [row for row in rows if row["words"] < 20]
    assert short
    assert all("words" in row["reasons"].split() for row in short)


def _ids(path):
    import zstandard

    lines = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read().splitlines()
    return [json.loads(line)["id"] for line in lines]


def test_a_cluster_has_one_survivor_and_it_is_its_best(done):
    rows = verdicts(done[0])
    by_id = {row["id"]: row for row in rows}
    clusters = {}
    for row in rows:
        if row["cluster"]:
            clusters.setdefault(row["cluster"], []).append(row)
    assert len(clusters) >= 3 * 5
    for members in clusters.values():
        survivors = {row["survivor"] for row in members}
        assert len(survivors) == 1
        survivor = by_id[survivors.pop()]
        assert survivor in members
        assert [row["id"] for row in members if "duplicate" not in row["reasons"].split()] == [
            survivor["id"]
        ]
        assert all(row["cluster_size"] == len(members) for row in members)
        assert survivor["characters"] == max(
            row["characters"] for row in members if row["reasons"] in ("", "duplicate")
        )


def test_another_order_of_inputs_gives_the_same_bytes_and_so_does_work_that_is_shared_out(
    web, done, tmp_path, monkeypatch
):
    monkeypatch.setattr(pipeline, "_FEW", 0)
    monkeypatch.setattr(pipeline.clusters, "PART", 2**10)
    run(job(web, tmp_path / "out", order=("zh", "de", "en"), shuffle_megabytes=1))
    assert content(tmp_path / "out") == content(done[0])


def test_parts_of_a_file_come_to_the_same_verdicts(web, done, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART", 2**13)
    whole = job(web, tmp_path / "out")
    run(whole)
    assert len(whole.pieces) > 12
    of_part = {"cluster": None}  # it is named by the number of a shard
    rows = [str(row | of_part) for row in verdicts(tmp_path / "out")]
    assert rows == [str(row | of_part) for row in verdicts(done[0])]


def test_a_changed_threshold_reruns_the_last_pass_only(web, done, tmp_path):
    output = tmp_path / "out"
    work = job(web, output)
    run(work)
    before = content(output)
    folders = (Path(work.measured), Path(work.clusters))
    made = {path: path.stat().st_mtime_ns for folder in folders for path in folder.iterdir()}
    assert len(made) > 5 * len(work.pieces)
    # nor is what it decides nothing about written again
    of_others = [path for path in output.rglob("*00*") if path.parent.name in ("en", "zh")]
    of_others += sorted((output / "verdicts").iterdir())[2:]
    assert len(of_others) > 8
    made |= {path: path.stat().st_mtime_ns for path in of_others}
    changed = run(work, LIMITS | {"de": {"words": (10**6, None)}})
    assert "de" not in changed["sources"]
    assert not (output / "de").exists() or not list((output / "de").iterdir())
    assert {path: path.stat().st_mtime_ns for path in made} == made
    run(work)
    assert content(output) == before


def test_a_change_that_was_cut_off_and_taken_back_leaves_the_same_bytes(
    web, done, tmp_path, monkeypatch
):
    run(job(web, tmp_path / "out"))
    some = np.median([row["words"] for row in verdicts(done[0]) if row["language"] == "de"])
    put, verdict = products.put, "verdicts/00000001.parquet"

    def cut(path, content):
        if path.endswith(verdict):  # its text is written, and all of the shard before it
            raise RuntimeError
        put(path, content)

    monkeypatch.setattr(products, "put", cut)
    with pytest.raises(RuntimeError):
        run(job(web, tmp_path / "out"), LIMITS | {"de": {"words": (float(some), None)}})
    monkeypatch.undo()
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert any(
        content(tmp_path / "out").get(name) != hash_ for name, hash_ in content(done[0]).items()
    )
    run(job(web, tmp_path / "out"))
    assert content(tmp_path / "out") == content(done[0])


def test_a_run_that_is_whole_does_nothing(web, done, monkeypatch):
    def none(*_):
        raise AssertionError("work is done again")

    monkeypatch.setattr(pipeline, "each", none)
    monkeypatch.setattr(pipeline, "grouped", none)
    monkeypatch.setattr(pipeline, "looped", none)
    before = content(done[0])
    name_of = mock.Mock(wraps=pipeline.verdicts.name_of)
    monkeypatch.setattr(pipeline.verdicts, "name_of", name_of)
    run(job(web, done[0]))
    assert content(done[0]) == before
    # to tidy up looks at each file once, not at each shard for each of them
    assert name_of.call_count == 6


@pytest.mark.rare
def test_clusters_are_the_same_by_rounds_of_stars(web, done, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.clusters, "_AT_ONCE", 0)
    monkeypatch.setattr(pipeline.clusters, "PART", 2**10)
    run(job(web, tmp_path / "out"))
    assert content(tmp_path / "out") == content(done[0])


# children that are ready when they begin
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__, "apache_beam.runners.portability.fn_api_runner"])


def telling(web, output, pipe):
    """A run that tells each file before it writes it."""
    put = products.put

    def told(path, content):
        pipe.send(path)
        put(path, content)

    products.put = told
    run(job(web, output))


def killed(web, output, is_time):
    """Whether a run was ended by SIGKILL, once is_time(path) of a file that it was to write."""
    here, there = FORKS.Pipe(duplex=False)
    child = FORKS.Process(target=telling, args=(web, output, there))
    child.start()
    there.close()
    with suppress(EOFError):
        while not is_time(here.recv()):
            pass
    child.kill()
    child.join()
    return child.exitcode == -signal.SIGKILL


def crash_at(monkeypatch, module, call):
    """Lets the n-th file that is put fail, as if the process had ended there."""
    put, count = module.put, [0]

    def crash(*arguments):
        count[0] += 1
        if count[0] == call:
            raise RuntimeError
        put(*arguments)

    monkeypatch.setattr(module, "put", crash)


def test_a_run_that_is_killed_goes_on_to_the_same_bytes(web, done, tmp_path):
    assert killed(web, tmp_path / "out", lambda path: "/verdicts/" in path)
    assert not (tmp_path / "out" / "manifest.json").exists()
    run(job(web, tmp_path / "out"))
    assert content(tmp_path / "out") == content(done[0])


@pytest.mark.parametrize("moment", [4, 31])
def test_a_run_that_ends_anywhere_goes_on_to_the_same_bytes(
    web, done, tmp_path, monkeypatch, moment
):
    crash_at(monkeypatch, products, moment)
    with pytest.raises(RuntimeError):
        run(job(web, tmp_path / "out"))
    monkeypatch.undo()
    run(job(web, tmp_path / "out"))
    assert content(tmp_path / "out") == content(done[0])


@pytest.mark.rare
def test_twenty_kills_end_in_the_same_bytes(web, done, tmp_path):
    chance, kills = random.Random(1), 0
    while kills < 20:
        output = tmp_path / f"out{kills}"
        for _ in range(3):
            left = iter(range(chance.randrange(60), -1, -1))
            kills += killed(web, output, lambda path, left=left: not next(left))
        run(job(web, output))
        assert content(output) == content(done[0])


@pytest.mark.rare
@pytest.mark.parametrize(
    "beam",
    [
        Beam(workers=2),
        Beam(runner="apache_beam.runners.dask.dask_runner.DaskRunner"),
        Beam(runner="BundleBasedDirectRunner"),
    ],
    ids=lambda beam: beam.runner.rpartition(".")[2],
)
def test_runners_and_processes_give_the_same_bytes(web, done, tmp_path, beam):
    if "dask" in beam.runner:
        pytest.importorskip("distributed")
    run(job(web, tmp_path / "out", beam))
    assert content(tmp_path / "out") == content(done[0])


def test_broken_inputs_are_counted_and_named_and_the_rest_is_kept(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    chance = random.Random(2)
    good = [json.dumps({"text": document("de", chance)}) for _ in range(12)]
    (folder / "a.jsonl").write_bytes(
        "\n".join(good[:6]).encode() + b'\n{"text": 5}\nno json\n\xff\xfe{}\n'
    )
    cut = gzip.compress("\n".join(good).encode())
    (folder / "b.jsonl.gz").write_bytes(cut[: len(cut) // 2])
    (folder / "c.jsonl").write_bytes(b"")
    awkward = [
        "\x00".join(document("de", chance).split()),
        "\ud800" + document("de", chance),
        document("de", chance, 3) + "\ufeff" + document("de", chance, 3),
        "x" * 5_000_000,
        "wort " * 2_100_000,
        "‮" + document("de", chance),
    ]
    lines = [json.dumps({"text": text}) for text in awkward]
    (folder / "d.jsonl").write_text("\n".join(lines) + "\n")
    work = job(folder, tmp_path / "out", inputs={str(folder): "de"})
    notes = pipeline.measure(work)
    assert [note["broken"] for note in notes] == [3, 1, 1, 0]
    assert "a.jsonl@" in notes[0]["first_broken"][0]
    assert "b.jsonl.gz" in notes[1]["first_broken"][0]
    run(work, {"de": {}})
    rows = verdicts(tmp_path / "out")
    [long] = [row for row in rows if row["characters"] > 10**7]
    assert long["reason"] == "longest"
    texts = list(corpus.documents(str(tmp_path / "out"), "de", "train"))
    assert not any(mark in text for text in texts for mark in "\x00\ufeff\u202e")
    with pytest.raises(UserError, match=r"^a\.jsonl@.*--gin\.clean\.bad=skip\.$"):
        pipeline.measure(job(folder, tmp_path / "strict", inputs={str(folder): "de"}, bad="refuse"))


def test_verdicts_are_one_table_whatever_a_shard_has(web, tmp_path):
    from pyarrow import parquet

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").touch()
    (tmp_path / "in" / "b.jsonl").write_bytes((web / "de" / "0.jsonl").read_bytes())
    run(job(web, tmp_path / "out", inputs={str(tmp_path / "in"): "de"}))
    assert parquet.read_table(tmp_path / "out" / "verdicts").num_rows == 16


def test_what_is_off_drops_nothing(web, done, tmp_path):
    run(job(web, tmp_path / "out", off=("duplicate", "words")))
    rows = verdicts(tmp_path / "out")
    assert {row["reason"] for row in rows} == {"", "digits"}
    own = {row["id"]: row["cluster_size"] for row in verdicts(done[0])}
    assert {row["id"]: row["cluster_size"] for row in rows} == own


def test_limits_of_every_language_come_after_its_own(web, tmp_path):
    run(job(web, tmp_path / "out"), {"*": {"words": (10**6, None)}, "zh": {"words": (5, None)}})
    rows = verdicts(tmp_path / "out")
    assert {row["language"] for row in rows if row["kept"]} == {"zh"}


def test_text_that_changed_after_it_was_measured_is_told(tmp_path):
    (tmp_path / "in").mkdir()
    for n in range(3):
        (tmp_path / "in" / f"{n}.txt").write_text(document("de", random.Random(n)))
    work = job(tmp_path / "in", tmp_path / "out", inputs={str(tmp_path / "in"): "de"})
    notes = pipeline.measure(work)
    pipeline.duplicates(work, notes)
    (tmp_path / "in" / "1.txt").write_text(document("de", random.Random(9)))
    with pytest.raises(UserError, match=r"txt has changed while it was cleaned; run it again\.$"):
        pipeline.write(work, notes, {})


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "/x/y"), "No space left on device: /x/y"),
        (MemoryError(), "MemoryError"),
        (ModuleNotFoundError("No module named 'scipy'"), "No module named 'scipy'"),
    ],
)
def test_what_hinders_a_worker_is_one_sentence(web, tmp_path, monkeypatch, caplog, error, words):
    def full(*_):
        raise error

    monkeypatch.setattr(products, "save_table", full)
    with pytest.raises(UserError) as told:
        pipeline.measure(job(web, tmp_path / "out"))
    assert str(told.value) == (
        f"a worker could not go on ({words}); mend that and run the same command again: what is "
        "finished is kept."
    )
    assert not caplog.records


@pytest.mark.rare
def test_processes_say_no_more_than_one_does(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.jsonl").write_text("no json\n")
    flags = [
        f"--gin.clean.inputs={{'{tmp_path}/in': 'de'}}",
        f"--gin.clean.output={tmp_path}/out",
        "--gin.clean.bad=refuse",
        "--gin.beam.workers=2",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "polylm_jax", "clean", *flags], capture_output=True, text=True
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("clean measure")]
    assert done.returncode == 1
    assert [line[:14] for line in said] == ["polylm clean: "], done.stderr


def test_all_documents_the_same_leave_one(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    text = document("de", random.Random(3))
    (folder / "a.jsonl").write_text((json.dumps({"text": text}) + "\n") * 300)
    run(job(folder, tmp_path / "out", inputs={str(folder): "de"}))
    rows = verdicts(tmp_path / "out")
    assert sum(row["kept"] for row in rows) == 1
    assert {row["reason"] for row in rows} == {"", "duplicate"}


def test_a_benchmarks_item_takes_its_document_out(tmp_path):
    folder, tasks = tmp_path / "in", tmp_path / "tasks"
    folder.mkdir()
    tasks.mkdir()
    chance = random.Random(4)
    texts = [document("de", chance, 20) for _ in range(5)]
    item = "Wie viele Äpfel hat Karl, wenn er von sieben Äpfeln drei verschenkt und einen isst?"
    texts.append(f"{texts[0][:200]} {item.upper()} {texts[1][:200]}")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tasks / "mgsm.tsv").write_text(f"{item}\t3\n")
    work = job(folder, tmp_path / "out", inputs={str(folder): "de"}, evaluation=(str(tasks),))
    run(work, {})
    [row] = [row for row in verdicts(tmp_path / "out") if row["reason"]]
    assert row["reason"] == "contaminated"
    assert row["items"].startswith("mgsm.tsv:1 9")


def test_nonsense_is_refused_in_one_sentence(web, tmp_path):
    for settings, words in (
        ({"inputs": {}}, "clean.inputs is empty"),
        ({"inputs": {str(tmp_path / "none"): ""}}, "nothing at"),
        ({"inputs": {str(web): "qqq"}}, "no language's code"),
        ({"off": ("wrods",)}, 'the nearest is "words"'),
        ({"languages": ("english",)}, "no language's code"),
    ):
        with pytest.raises(UserError, match=words):
            job(web, tmp_path / "out", **settings)
    with pytest.raises(UserError, match="one thing under two names"):
        Clean(inputs={f"{web}/de": "de", f"{web}/de/": "en"})
    for output in (web / "de", web / "de" / "out", web):
        with pytest.raises(UserError, match="lies in what is cleaned"):
            job(web, output)
    for limits, words in (
        ({"de": {"words": (10.0, 3.0)}}, r'"words"\] = \(10\.0, 3\.0\) lets nothing pass'),
        ({"german": {"words": (1.0, None)}}, "is of no language"),
    ):
        with pytest.raises(UserError, match=words):
            pipeline.write(job(web, tmp_path / "out"), [], limits)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="did not make"):
        run(job(web, tmp_path / "other"))
    assert (tmp_path / "other" / "manifest.json").read_text() == "{}"
    with pytest.raises(UserError, match='the nearest is "digits"'):
        pipeline.derive(
            job(web, tmp_path / "out"), Thresholds(limits={"de": {"digit": (1, 2)}}), []
        )
    with pytest.raises(UserError, match=r"beam\.runner=Nonesuch"):
        pipeline.measure(job(web, tmp_path / "out", replace(Beam(), runner="Nonesuch")))


@pytest.mark.parametrize(
    ("languages", "mend"),
    [(("de", "nb"), "write nn or no"), (("zh-Hant",), "write zh,"), (("fil",), "take it out")],
)
def test_a_language_that_none_is_found_to_be_in_is_refused_before_all_of_it_is_dropped(
    web, tmp_path, languages, mend
):
    pytest.importorskip("fasttext")
    with pytest.raises(UserError, match=rf'"{languages[-1]}", which no text is found .*; {mend}'):
        pipeline.measure(job(web, tmp_path / "out", inputs={str(web): ""}, languages=languages))
    assert not (tmp_path / "out").exists()
    for inputs_, known in (
        ({f"{web}/de": "", f"{web}/en": languages[-1]}, languages),
        ({f"{web}/de": ""}, ("en", "nb", "no", "und", "code")),
    ):
        pipeline._check_languages(job(web, tmp_path / "out", inputs=inputs_, languages=known))


def test_text_that_is_not_fluent_is_told_by_models_of_clean_text(tiny, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    chance = random.Random(6)
    good = [document("de", chance, 20) for _ in range(20)]
    bad = [" ".join(chance.sample(text.split(), len(text.split()))) for text in good[:4]]
    lines = [json.dumps({"text": text}) + "\n" for text in good + bad]
    (folder / "a.jsonl").write_text("".join(lines))
    work = job(
        folder,
        tmp_path / "out",
        inputs={str(folder): "de"},
        fluent=str(tiny["corpus.path"]),
        tokenizer=str(tiny["tokenizer.path"]),
    )
    notes = pipeline.measure(work)
    scores = products.load_table(f"{work.measured}/{work.pieces[0].key}.scores.arrow")
    bits = scores["bits_per_byte"]
    assert bits[:20].max() < bits[20:].min()
    disorder = scores["disorder"]
    assert disorder[:20].max() < 0.9 < disorder[20:].min()
    limits = {"de": {"bits_per_byte": (None, float(bits[:20].max()))}}
    run(work, limits)
    assert [row["reason"] for row in verdicts(tmp_path / "out")[20:]] == ["bits_per_byte"] * 4
    assert notes[0]["documents"] == 24


def test_documents_of_wrong_pairs_are_told_from_those_of_right_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.measuring, "_PAIRS", 200)
    folder = tmp_path / "in"
    folder.mkdir()
    chance = random.Random(8)
    words = ["".join(chance.choices("abdefgiklmnoprstu", k=6)) for _ in range(120)]
    others = dict(
        zip(words, ("".join(chance.choices("oaeiukstnr", k=7)) for _ in words), strict=True)
    )
    firsts = [chance.choices(words, k=8) for _ in range(300)]
    seconds = [[others[word] for word in some] for some in firsts]
    seconds[:30] = seconds[1:30] + seconds[:1]
    blocks = [" ".join(a) + "\n" + " ".join(b) for a, b in zip(firsts, seconds, strict=True)]
    texts = ["\n\n".join(blocks[at : at + 10]) for at in range(0, 300, 10)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run(job(folder, tmp_path / "out", inputs={str(folder): "en-de"}), {})
    rows = verdicts(tmp_path / "out")
    assert [row["reason"] for row in rows] == ["misaligned"] * 3 + [""] * 27


def test_a_document_without_pairs_is_none_of_two_languages(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "only one"}\n{"text": "one\\neins"}\n')
    run(job(tmp_path, tmp_path / "out", inputs={str(tmp_path / "a.jsonl"): "en-de"}), {})
    assert [row["reason"] for row in verdicts(tmp_path / "out")] == ["misaligned", ""]


def made_up_pairs(count, seed=8):
    """Pairs of sentences of made-up words, word by word in two languages."""
    chance = random.Random(seed)
    words = ["".join(chance.choices("abdefgiklmnoprstu", k=6)) for _ in range(120)]
    others = {word: "".join(chance.choices("бвгдежзиклмно", k=7)) for word in words}
    firsts = [chance.choices(words, k=8) for _ in range(count)]
    return [(" ".join(some), " ".join(others[word] for word in some)) for some in firsts]


def test_single_wrong_pairs_are_left_out_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.measuring, "_PAIRS", 200)
    folder = tmp_path / "in"
    folder.mkdir()
    good = made_up_pairs(300)
    wrong = list(good)
    for at in range(4, 200, 20):  # one of ten, in every second of the first documents
        words = set(good[at][0].split())
        others = (second for first, second in good[at:] if not words & set(first.split()))
        wrong[at] = (good[at][0], next(others))
    wrong[11], wrong[255] = wrong[11][::-1], (good[255][0], good[255][1][:16])
    blocks = ["\n".join(pair) for pair in wrong]
    texts = ["\n\n".join(blocks[at : at + 10]) for at in range(0, 300, 10)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    work = job(folder, tmp_path / "out", inputs={str(folder): "en-ru"}, mask=False)
    monkeypatch.setattr(
        pipeline.pairing.bilingual,
        "directions",
        lambda firsts, *_: np.array([1 if one.isascii() else -1 for one in firsts]),
    )
    run(work, {})
    rows = verdicts(tmp_path / "out")
    assert all(row["kept"] and row["pairs"] == 10 for row in rows)
    told = {n: row["wrong_pairs"] for n, row in enumerate(rows) if row["wrong_pairs"]}
    assert told == dict.fromkeys(range(0, 20, 2), "5 alignment") | {
        1: "2 swapped",
        25: "6 lengths",
    }
    out = {10 * n + int(what.split()[0]) - 1 for n, what in told.items()}
    expected = [
        "\n\n".join(blocks[at] for at in range(first, first + 10) if at not in out)
        for first in range(0, 300, 10)
    ]
    both = [corpus.documents(str(tmp_path / "out"), "en-ru", split) for split in corpus.SPLITS]
    assert sorted(chain(*both)) == sorted(expected)
    notes = pipeline.measure(work)
    again = pipeline.write(work, notes, {})
    read, kept = (report.counted(again)["en-ru"][side][1] for side in ("read", "kept"))
    assert read == sum(len(text.encode()) for text in texts)
    assert kept == sum(len(text.encode()) for text in expected)
    of_rules = {"alignment": 10, "lengths": 1, "copied": 0, "swapped": 1, "foreign": 0}
    assert report.of_pairs(again) == {"en-ru": {"pairs": 300, "wrong": 12} | of_rules}
    samples = [one for one in report.samples(again) if one["reason"] == "swapped"]
    assert [one["text"] for one in samples] == [blocks[11]]
    # other limits take other pairs, and nothing is measured again
    other = {"alignment": (None, None), "swapped": (None, 1)}
    assert report.of_pairs(pipeline.write(work, notes, {"en-ru": other}))["en-ru"]["wrong"] == 1


def test_a_second_process_is_refused_and_the_first_leaves_no_lock(tmp_path):
    output = str(tmp_path / "out")
    told = rf"Process {os.getpid()} on .* is cleaning into .*out; wait"
    with alone(output), pytest.raises(UserError, match=told):
        alone(output).__enter__()
    with alone(output):
        pass


def test_scores_of_other_models_benchmarks_or_settings_are_measured_anew():
    """A run that is told of clean text later has its perplexity, too."""
    names = {
        measuring.settings_of(clean, language, models, index)
        for clean in (Clean(), Clean(scraps=30))
        for language in (Identification(), Identification(agree=True))
        for models in ("", "models-1")
        for index in ("", "index-1")
    }
    assert len(names) == 16


def test_another_model_of_languages_at_the_same_place_measures_anew(tmp_path):
    names = set()
    for size in (1, 2):
        (tmp_path / "lid.bin").write_bytes(bytes(size))
        settings = Identification(model=str(tmp_path / "lid.bin"))
        names.add(measuring.settings_of(Clean(), settings, "", ""))
    assert len(names) == 2


def test_pieces_are_dealt_so_that_each_process_has_about_as_much():
    pieces = [(number, size) for number in range(35) for size in (9, 1)]  # as train and valid are
    assert engine._dealt(Beam(), pieces) == pieces
    for workers in (2, 3, 4):  # Beam deals them out in turn
        dealt = engine._dealt(Beam(workers=workers), pieces)
        assert dealt == engine._dealt(Beam(workers=workers), pieces)
        assert sorted(dealt) == sorted(pieces)
        shares = [sum(size for _, size in dealt[first::workers]) for first in range(workers)]
        assert max(shares) < 1.2 * sum(shares) / workers
