import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import fsspec
import numpy as np
import pytest
import sentencepiece

from polylm_jax.__main__ import main
from polylm_jax.data import corpus as documents
from polylm_jax.data import documents as documents_room
from polylm_jax.data import packing, tokenizing
from polylm_jax.data.curriculum import locate
from polylm_jax.data.packing import build
from polylm_jax.data.rows import RowSettings, open_store, verify
from polylm_jax.data.schedule import Schedule
from polylm_jax.data.tokenizer import Tokenizer, TokenizerTraining, load, train
from polylm_jax.errors import UserError
from polylm_jax.files import resumed_folder
from polylm_jax.train.course import begun, going_on
from tests.conftest import gin_flags
from tests.data.sentences import SENTENCES
from tests.data.test_tokenizer import write_corpus

LENGTH = 16
TEXTS = {
    code: [" ".join(SENTENCES[code][i:] + SENTENCES[code][:i]) for i in range(6)]
    for code in ("de", "th", "he")
} | {"en-de": ["Good morning.\nGuten Morgen.\n"] * 20}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("rows") / "corpus", TEXTS)


@pytest.fixture(scope="session")
def tokenizer(corpus, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tokenizer") / "small")
    return train(TokenizerTraining(path=path, pieces=600), corpus)


@pytest.fixture
def settings(tmp_path):
    return RowSettings(path=str(tmp_path / "rows"), length=LENGTH, shard_rows=7)


def naive_rows(tokenizer, texts, length):
    """Rows as the design says, from plain SentencePiece and one list."""
    plain = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    stream = []
    for text in texts:
        stream += plain.encode_as_ids(text)
        stream.append(plain.eos_id())
    rows = []
    while len(stream) >= length + 1:
        rows.append(stream[: length + 1])
        stream = stream[length:]
    return np.array(rows).reshape(-1, length + 1)


@pytest.mark.parametrize(("length", "shard_rows"), [(16, 7), (16, 1), (1, 100), (33, 1000)])
@pytest.mark.parametrize("batch_characters", [1, 700, 10**9])
def test_rows_are_the_documents_strung_together(
    corpus, tokenizer, tmp_path, monkeypatch, length, shard_rows, batch_characters
):
    monkeypatch.setattr("polylm_jax.data.tokenizing.BATCH_CHARACTERS", batch_characters)
    build(RowSettings(str(tmp_path / "rows"), length, shard_rows), corpus, tokenizer)
    store = open_store(str(tmp_path / "rows"))
    assert store.sources == tuple(TEXTS)
    assert store.length == length
    for source, texts in TEXTS.items():
        for split in ("train", "valid"):
            expected = naive_rows(tokenizer, texts, length)
            assert store.rows(source, split) == len(expected)
            read = store.read(source, np.arange(len(expected)), split)
            assert read.dtype == np.int32
            np.testing.assert_array_equal(read, expected)
    verify(store)


def test_every_token_but_the_first_is_a_target_once(corpus, tokenizer, settings):
    entry = build(settings, corpus, tokenizer)["sources"]["de"]["train"]
    rows = open_store(settings.path).read("de", np.arange(entry["rows"]))
    stream = [rows[0, 0], *rows[:, 1:].ravel()]
    assert "".join(TEXTS["de"]).startswith(tokenizer.decode([[int(i) for i in stream]])[0])
    assert len(stream) == entry["tokens"] - entry["dropped_tokens"]
    np.testing.assert_array_equal(rows[:-1, -1], rows[1:, 0])


def test_any_order_and_any_thread(corpus, tokenizer, settings):
    build(settings, corpus, tokenizer)
    store = open_store(settings.path)
    expected = naive_rows(tokenizer, TEXTS["th"], LENGTH)
    orders = [np.random.default_rng(i).integers(0, len(expected), 50) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for order, read in zip(
            orders, pool.map(lambda o: store.read("th", o), orders), strict=True
        ):
            np.testing.assert_array_equal(read, expected[order])
    assert store.read("th", np.array([], int)).shape == (0, LENGTH + 1)


def test_a_source_that_is_no_more_is_missed_where_its_rows_are_asked_for(
    corpus, tokenizer, settings
):
    build(settings, corpus, tokenizer)
    store = open_store(settings.path)
    sources, which, indices = ("gone", "he", "th"), np.array([2, 1, 2, 1]), np.array([3, 0, 1, 2])
    read = store.read_mixed(sources, which, indices)
    np.testing.assert_array_equal(read[which == 1], store.read("he", indices[which == 1]))
    np.testing.assert_array_equal(read[which == 2], store.read("th", indices[which == 2]))
    with pytest.raises(UserError, match='no train rows of "gone"; it has de, th'):
        store.read_mixed(sources, which * 0, indices)


@pytest.mark.parametrize("index", [-1, 10**6])
def test_rows_that_are_not_there(corpus, tokenizer, settings, index):
    build(settings, corpus, tokenizer)
    with pytest.raises(IndexError, match="th train has rows 0 to"):
        open_store(settings.path).read("th", np.array([0, index]))


def test_a_source_that_is_not_there(corpus, tokenizer, settings):
    build(settings, corpus, tokenizer)
    with pytest.raises(UserError, match='no train rows of "ko"; it has de, th, he, en-de'):
        open_store(settings.path).rows("ko")


def test_the_manifest_counts(corpus, tokenizer, settings):
    manifest = build(settings, corpus, tokenizer)
    assert manifest == json.loads((Path(settings.path) / "manifest.json").read_text())
    for source, texts in TEXTS.items():
        entry = manifest["sources"][source]["train"]
        assert entry["documents"] == len(texts)
        assert entry["bytes"] == sum(len(text.encode()) for text in texts)
        assert entry["tokens"] == sum(map(len, tokenizer.encode(texts))) + len(texts)
        assert entry["tokens"] == entry["rows"] * LENGTH + 1 + entry["dropped_tokens"]
        assert 0 <= entry["dropped_tokens"] < LENGTH
        files = sorted(Path(settings.path, source).glob("train-*.tokens"))
        assert [shard["file"] for shard in entry["shards"]] == [file.name for file in files]
        assert [shard["bytes"] for shard in entry["shards"]] == [
            file.stat().st_size for file in files
        ]
        assert {shard["bytes"] for shard in entry["shards"][:-1]} == {2 * (7 * LENGTH + 1)}


def test_the_same_input_gives_the_same_files(corpus, tokenizer, settings, tmp_path):
    one = build(settings, corpus, tokenizer)
    other = replace(settings, path=str(tmp_path / "other"))
    assert build(other, corpus, tokenizer) == one
    same = subprocess.run(["diff", "-r", settings.path, other.path], capture_output=True)
    assert (same.returncode, same.stdout) == (0, b"")


def test_the_fingerprint_is_of_the_rows(corpus, tokenizer, settings, tmp_path):
    def fingerprint(name, text=corpus, **changes):
        return build(replace(settings, path=str(tmp_path / name), **changes), text, tokenizer)[
            "fingerprint"
        ]

    one = fingerprint("one")
    assert fingerprint("resharded", shard_rows=3) == one
    assert fingerprint("shorter", length=LENGTH - 1) != one
    changed = write_corpus(
        tmp_path / "corpus", TEXTS | {"th": [*TEXTS["th"][:-1], TEXTS["th"][-1] + "!"]}
    )
    assert fingerprint("changed", text=changed) != one


def test_a_large_vocabulary_takes_uint32(corpus, tokenizer, settings, tmp_path, monkeypatch):
    small = build(settings, corpus, tokenizer)
    monkeypatch.setattr(type(tokenizer), "size", 2**16 + 1)
    large = build(replace(settings, path=str(tmp_path / "large")), corpus, tokenizer)
    assert (small["dtype"], large["dtype"]) == ("uint16", "uint32")
    one, two = open_store(settings.path), open_store(str(tmp_path / "large"))
    everything = np.arange(one.rows("he"))
    np.testing.assert_array_equal(one.read("he", everything), two.read("he", everything))
    verify(two)


def test_a_store_that_is_there_is_kept_and_another_is_not_overwritten(
    corpus, tokenizer, settings, capsys
):
    manifest = build(settings, corpus, tokenizer)
    file = Path(settings.path) / "manifest.json"
    before = file.stat().st_mtime_ns
    assert build(settings, corpus, tokenizer) == manifest
    assert "kept" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="rows was made from other text or with other settings"):
        build(replace(settings, length=8), corpus, tokenizer)


def same_files(one, two):
    found = subprocess.run(["diff", "-r", one, two], capture_output=True, text=True)
    return (found.returncode, found.stdout) == (0, "")


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(packing, "PART_BYTES", 1000)


@pytest.mark.parametrize("part_bytes", [100, 999, 5000])
def test_parts_leave_no_mark(corpus, tokenizer, settings, tmp_path, monkeypatch, part_bytes):
    build(settings, corpus, tokenizer)
    monkeypatch.setattr(packing, "PART_BYTES", part_bytes)
    other = replace(settings, path=str(tmp_path / "other"))
    build(other, corpus, tokenizer)
    assert same_files(settings.path, other.path)


def test_workers_leave_no_mark(corpus, tokenizer, settings, tmp_path, small_parts):
    build(settings, corpus, tokenizer, workers=1)
    other = replace(settings, path=str(tmp_path / "other"))
    build(other, corpus, tokenizer, workers=2)
    assert same_files(settings.path, other.path)


def test_an_interrupted_build_goes_on(
    corpus, tokenizer, settings, tmp_path, monkeypatch, small_parts
):
    plain, calls = packing._tokenize, []

    def interrupted(job, part):
        calls.append(part)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return plain(job, part)

    monkeypatch.setattr(packing, "_tokenize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(settings, corpus, tokenizer, workers=1)
    with pytest.raises(UserError, match="run polylm rows first"):
        open_store(settings.path)
    with pytest.raises(UserError, match="run polylm rows first"):
        open_store(f"{settings.path}.partial")
    build(settings, corpus, tokenizer, workers=1)
    assert len(calls) - 1 == len(set(calls)) > 20
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_another_build_begins_anew(corpus, tokenizer, settings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(settings, corpus, tokenizer)
    build(replace(settings, length=8), corpus, tokenizer)
    other = RowSettings(str(tmp_path / "other"), 8, 7)
    build(other, corpus, tokenizer)
    assert same_files(settings.path, other.path)


# the program kills itself at the nth call of a function
KILLED = """
import itertools, os, signal
from polylm_jax.data import packing, rows, tokenizer
packing.PART_BYTES = 1000
plain, calls = packing.{name}, itertools.count(1)
def killed(*arguments, **named):
    if next(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*arguments, **named)
packing.{name} = killed
settings = rows.RowSettings({path!r}, {length}, 7)
packing.build(settings, {corpus!r}, tokenizer.load({model!r}), workers={workers})
"""


def started(tokenizer, folder, **values):
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    program = KILLED.format(length=LENGTH, model=str(folder / "tokenizer.model"), **values)
    return subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("name", "call"),
    [("_tokenize", 20), ("note", 5), ("_cut", 30), ("write_manifest", 1)],
)
def test_a_killed_build_goes_on(
    corpus, tokenizer, settings, tmp_path, small_parts, capsys, name, call
):
    process = started(
        tokenizer, tmp_path, name=name, call=call, path=settings.path, corpus=corpus, workers=1
    )
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(UserError, match="run polylm rows first"):
        open_store(settings.path)
    build(settings, corpus, tokenizer)
    assert ("going on" in capsys.readouterr().out) == (name != "write_manifest")
    other = replace(settings, path=str(tmp_path / "other"))
    build(other, corpus, tokenizer)
    assert same_files(settings.path, other.path)
    assert not list(tmp_path.glob("*.partial"))


def test_a_build_by_two_processes_killed_from_outside(tokenizer, settings, tmp_path, small_parts):
    texts = {code: TEXTS[code] * 20 for code in ("de", "th")}
    path = write_corpus(tmp_path / "corpus", texts)
    process = started(
        tokenizer,
        tmp_path,
        name="build",
        call=-1,
        path=settings.path,
        corpus=path,
        workers=2,
    )
    scratch = Path(f"{settings.path}.partial/scratch")
    while process.poll() is None and len(list(scratch.glob("*.part"))) < 20:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not Path(settings.path).exists()
    build(settings, path, tokenizer, workers=1)
    other = replace(settings, path=str(tmp_path / "other"))
    build(other, path, tokenizer, workers=1)
    assert same_files(settings.path, other.path)


def test_two_builds_at_once(corpus, tokenizer, settings):
    with (
        resumed_folder(settings.path, {}),
        pytest.raises(UserError, match=rf"Process {os.getpid()} on .* is making .*rows; wait"),
    ):
        build(settings, corpus, tokenizer)


@pytest.mark.parametrize(("name", "call"), [("replace", 6), ("_cut", 3)])
def test_a_full_disk(corpus, tokenizer, settings, tmp_path, monkeypatch, small_parts, name, call):
    owner = os if name == "replace" else packing
    plain, calls = getattr(owner, name), itertools.count(1)

    def full(file, *arguments, **named):
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(file, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(UserError, match=r"no room left for .*rows.partial; free some and run"):
            build(settings, corpus, tokenizer, workers=1)
    assert not Path(settings.path).exists()
    scratch = Path(f"{settings.path}.partial", "scratch")
    assert not list(scratch.glob("*.tmp-*"))
    if name == "replace":  # the first is the note of what the parts are made from
        assert len(list(scratch.glob("*.part"))) == call - 2
    build(settings, corpus, tokenizer)
    verify(open_store(settings.path))


def test_progress_is_one_line_in_a_log(corpus, tokenizer, settings, capsys, small_parts):
    build(settings, corpus, tokenizer)
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"rows: \S+, 100% of [\d.]+ MB, [\d,]+ tokens/s, 0 s left", line)


def test_damaged_text_is_named(tokenizer, settings, tmp_path):
    path = write_corpus(tmp_path / "corpus", {"de": TEXTS["de"]})
    file = Path(path, "de", "train.jsonl")
    for damaged in (file.read_bytes()[:-20], b'{"text": 5}\n', b"[]\n"):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"de/train.jsonl is damaged at its byte [\d,]+; run"):
            build(settings, path, tokenizer)
    file.unlink()
    with pytest.raises(UserError, match=r"de/train.jsonl is missing; run polylm corpus"):
        build(settings, path, tokenizer)


def test_held_out_text_is_in_no_training_row(tokenizer, settings, tmp_path):
    for code in ("de", "th"):
        (tmp_path / "text" / code).mkdir(parents=True)
        lines = [json.dumps({"text": f"{i}. {text}"}) for i, text in enumerate(SENTENCES[code] * 3)]
        (tmp_path / "text" / code / "a.jsonl").write_text("\n".join([*lines, *lines]))
    path = str(tmp_path / "corpus")
    documents.build(documents.Corpus(path, str(tmp_path / "text"), 0.3), large=False)
    build(settings, path, tokenizer)
    store = open_store(settings.path)
    for source in store.sources:
        rows = store.read(source, np.arange(store.rows(source)))
        stream = np.array([rows[0, 0], *rows[:, 1:].ravel()])
        [text] = tokenizer.decode([[int(i) for i in stream]])
        held_out = list(documents.documents(path, source, "valid"))
        assert len(held_out) > 2
        assert not [document for document in held_out if document in text]
        assert any(document in text for document in documents.documents(path, source, "train"))


@pytest.fixture
def remote(corpus, tokenizer, settings):
    """A store's copy in fsspec's memory."""
    build(settings, corpus, tokenizer)
    memory = fsspec.filesystem("memory")
    memory.put(settings.path, "/far/rows", recursive=True)
    yield memory
    memory.rm("/far", recursive=True)


def test_a_remote_store_gives_the_same_rows(settings, remote, corpus):
    near, far = open_store(settings.path), open_store("memory://far/rows")
    assert near.manifest == far.manifest
    for source in near.sources:
        order = np.random.default_rng(0).permutation(near.rows(source))
        read = far.read(source, order)
        assert read.dtype == np.int32
        np.testing.assert_array_equal(read, near.read(source, order))
        assert far.read(source, order[:0]).shape == (0, LENGTH + 1)
    assert near.origins(corpus, "th", 9) == far.origins(corpus, "th", 9)
    assert verify(far) == verify(near)


def test_a_damaged_remote_store(settings, remote):
    content = remote.cat_file("/far/rows/th/train-00001.tokens")
    remote.pipe_file("/far/rows/th/train-00001.tokens", content[:-1] + b"!")
    with pytest.raises(UserError, match=r"memory://far/rows/th/train-00001.tokens is damaged"):
        verify(open_store("memory://far/rows"))
    remote.pipe_file("/far/rows/th/train-00001.tokens", content[:-1])
    with pytest.raises(UserError, match=r"far/rows/th/train-00001.tokens has .* of its .* bytes"):
        open_store("memory://far/rows")
    with pytest.raises(UserError, match=r"no rows at memory://elsewhere; run"):
        open_store("memory://elsewhere")


def test_paths_that_cannot_be(corpus, tokenizer):
    with pytest.raises(UserError, match=r"nosuch://rows cannot be opened: Protocol not known"):
        open_store("nosuch://rows")


def test_where_rows_are_from(corpus, tokenizer, settings, small_parts):
    build(settings, corpus, tokenizer)
    store = open_store(settings.path)
    ids = tokenizer.encode(TEXTS["th"])
    number = np.repeat(np.arange(len(ids)), [len(document) + 1 for document in ids])
    for row in range(store.rows("th")):
        expected = sorted(set(number[row * LENGTH : (row + 1) * LENGTH + 1] + 1))
        found = store.origins(corpus, "th", row)
        assert [origin.line for origin in found] == expected
        assert {origin.file for origin in found} == {f"{corpus}/th/train.jsonl"}
    with pytest.raises(UserError, match=r"is not the text that .* was made from"):
        store.origins(write_corpus(Path(settings.path).with_name("new"), TEXTS), "th", 0)


def test_the_command_line(tiny, capsys):
    flags = gin_flags(tiny)
    assert main(["rows", "verify", *flags]) == 0
    assert "files of" in capsys.readouterr().out
    assert main(["rows", "show", "7", *flags]) == 0
    shown = capsys.readouterr().out
    found = re.search(r"Row 7 of the run is row ([\d,]+) of the [\d,]+ of (\S+):", shown)
    source, row = found[2], found[1].replace(",", "")
    assert "prose.txt" in shown
    assert main(["rows", *flags, "show", row, f"--source={source}"]) == 0
    assert capsys.readouterr().out.split("\n", 1)[1] == shown.split("\n", 1)[1]
    for wrong, sentence in [
        (["show"], "say which row"),
        (["show", "-1"], "N = -1; it must lie between 0"),
        (["show", "9999999", "--source=th"], '"th" has rows 0 to'),
        (["show", "1", "--source=xx"], 'no train rows of "xx"'),
    ]:
        assert main(["rows", *wrong, *flags]) == 1
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["shorter", "longer", "missing"])
def test_a_damaged_shard_is_named(corpus, tokenizer, settings, damage):
    build(settings, corpus, tokenizer)
    shard = Path(settings.path) / "th" / "train-00001.tokens"
    content = shard.read_bytes()
    shard.unlink()
    if damage != "missing":
        shard.write_bytes(content[:-2] if damage == "shorter" else content + b"\0\0")
    with pytest.raises(UserError, match=r"th/train-00001.tokens has .* delete .*rows and run"):
        open_store(settings.path)


def test_a_changed_shard_is_named(corpus, tokenizer, settings):
    build(settings, corpus, tokenizer)
    shard = Path(settings.path) / "th" / "valid-00000.tokens"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"th/valid-00000.tokens is damaged"):
        verify(open_store(settings.path))


def test_too_little_text(corpus, tokenizer, settings):
    words = r"one row needs 100,001 tokens .* fewer to train on \(de [\d,]+, th .*\); add text or"
    with pytest.raises(UserError, match=words):
        build(replace(settings, length=100_000), corpus, tokenizer)
    assert not Path(settings.path).exists()


def test_a_split_without_a_row_is_recorded(tokenizer, settings, tmp_path):
    path = write_corpus(tmp_path / "corpus", {"de": TEXTS["de"]})
    Path(path, "de", "valid.jsonl").write_text('{"text": "Ja"}\n')
    entry = build(settings, path, tokenizer)["sources"]["de"]["valid"]
    assert (entry["rows"], entry["shards"]) == (0, [])
    assert entry["dropped_tokens"] == entry["tokens"] > 0
    store = open_store(settings.path)
    assert store.rows("de", "valid") == 0
    assert store.rows("de") > 0


def test_no_store(tmp_path):
    with pytest.raises(UserError, match=r"no rows at .*nowhere; run polylm rows"):
        open_store(str(tmp_path / "nowhere"))


def test_settings_out_of_range():
    with pytest.raises(UserError, match=r"rows.length = 0; it must lie between 1"):
        RowSettings(length=0)


def test_the_tokenizer_is_named_by_its_fingerprint(corpus, tokenizer, settings, tmp_path):
    build(settings, corpus, tokenizer)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    again = load(str(tmp_path / "tokenizer.model"))
    assert open_store(settings.path).tokenizer_fingerprint == again.fingerprint
    other = train(TokenizerTraining(path=str(tmp_path / "other"), pieces=550), corpus)
    with pytest.raises(UserError, match="delete it or give another path"):
        build(settings, corpus, other)


@pytest.mark.parametrize("at_once", [30, 60, 2**16])
def test_long_documents_are_encoded_in_parts_as_whole_ones(
    tokenizer, settings, tmp_path, monkeypatch, at_once
):
    monkeypatch.setattr(tokenizing, "AT_ONCE", at_once)
    monkeypatch.setattr(packing, "PART_BYTES", 500)
    monkeypatch.setattr(documents_room, "STRETCH", 300)
    texts = {"de": [" ".join(TEXTS["de"][:n]) + "\n  end" for n in range(1, 6)], "th": TEXTS["th"]}
    for code, documents_of in texts.items():
        (tmp_path / "text" / code).mkdir(parents=True)
        lines = [json.dumps({"text": text}) for text in documents_of]
        (tmp_path / "text" / code / "a.jsonl").write_text("\n".join(lines))
    path = str(tmp_path / "corpus")
    documents.build(documents.Corpus(path, str(tmp_path / "text"), 0.0), large=False)
    manifest = build(settings, path, tokenizer)
    store = open_store(settings.path)
    # Thai has no spaces, so where it is cut is chance
    for source in ("de", "th") if at_once == 2**16 else ("de",):
        expected = naive_rows(tokenizer, texts[source], LENGTH)
        np.testing.assert_array_equal(store.read(source, np.arange(len(expected))), expected)
    entry = manifest["sources"]["de"]["train"]
    assert entry["documents"] == 5
    assert entry["bytes"] == sum(len(text.encode()) for text in texts["de"])
    lines = Path(path, "de", "train.jsonl").read_text("utf-8").splitlines()
    assert len(lines) > 10
    stream = np.concatenate([np.array(ids) for ids in tokenizer.encode(texts["de"])])
    assert entry["tokens"] == len(stream) + 5
    for row in range(store.rows("de")):
        for origin in store.origins(path, "de", row):
            [part] = tokenizer.encode([json.loads(lines[origin.line - 1])["text"]])
            read = store.read("de", np.array([row]))[0].tolist()
            assert {*part} & {*read}


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_a_tokenizer_that_adds_a_space_adds_none_inside(tmp_path, settings, monkeypatch, algorithm):
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES["en"]),
        model_writer=model,
        model_type=algorithm,
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    monkeypatch.setattr(tokenizing, "AT_ONCE", 25)
    # 000 is 0 and 00 or 00 and 0: which one is chance
    sentences = [sentence for sentence in SENTENCES["en"] if "000" not in sentence]
    text = "\n".join(" ".join(sentences) + "   three  \n\n spaces" for _ in range(3))
    path = write_corpus(tmp_path / "corpus", {"en": [text, "short"]})
    spaced = Tokenizer(model.getvalue())
    assert spaced.adds_space
    build(settings, path, spaced)
    expected = naive_rows(spaced, [text, "short"], LENGTH)
    read = open_store(settings.path).read("en", np.arange(len(expected)))
    np.testing.assert_array_equal(read, expected)


def test_sources_that_fill_no_row_are_left_out(tokenizer, settings, tmp_path, capsys):
    path = write_corpus(tmp_path / "corpus", {"de": TEXTS["de"], "sw": ["Ndiyo"], "cs": []})
    manifest = build(settings, path, tokenizer)
    assert list(manifest["sources"]) == ["de"]
    assert set(manifest["left_out"]) == {"sw", "cs"}
    assert manifest["left_out"]["sw"]["train"]["documents"] == 1
    assert "left out (sw 6, cs 0); add text or lower" in capsys.readouterr().out
    assert sorted(os.listdir(settings.path)) == ["de", "manifest.json"]
    store = open_store(settings.path)
    assert store.sources == ("de",)
    verify(store)
    with pytest.raises(UserError, match='no train rows of "sw"; it has de'):
        store.rows("sw")


@pytest.fixture
def extended(corpus, tokenizer, settings, tmp_path):
    """A store, and one that extends it by more German, some Korean and no Thai."""
    build(settings, corpus, tokenizer)
    more = write_corpus(tmp_path / "more", {"de": TEXTS["de"][::-1], "ko": SENTENCES["ko"]})
    new = replace(settings, path=str(tmp_path / "new"))
    build(new, more, tokenizer, extends=settings.path)
    return open_store(settings.path), open_store(new.path), more


def test_rows_are_added_and_the_old_ones_stay_where_they_are(extended, tokenizer):
    old, new, more = extended
    verify(new)
    assert new.sources == ("de", "ko", "th", "he", "en-de")
    for source in old.sources:
        had = old.rows(source)
        first = old.read(source, np.arange(had))
        np.testing.assert_array_equal(new.read(source, np.arange(had)), first)
        stream = [first[0, 0], *first[:, 1:].ravel()]
        added = TEXTS["de"][::-1] if source == "de" else []
        for ids in tokenizer.encode(added):
            stream += [*ids, 2]  # </s>
        rows = (len(stream) - 1) // LENGTH
        assert new.rows(source) == rows
        last = new.read(source, np.arange(rows))
        assert [last[0, 0], *last[:, 1:].ravel()] == stream[: rows * LENGTH + 1]
        entry = old.manifest["sources"][source]["train"]
        begun = {"rows": had, "sha256": entry["sha256"]}
        assert new.manifest["sources"][source]["train"]["extends"] == [begun]
    assert new.fingerprint != old.fingerprint
    assert new.origins(more, "de", new.rows("de") - 1)[-1].file == f"{more}/de/train.jsonl"
    with pytest.raises(UserError, match="row 0 of de is of the rows that"):
        new.origins(more, "de", 0)


def test_rows_of_other_settings_or_another_tokenizer_are_not_extended(
    extended, corpus, tokenizer, settings, tmp_path
):
    old, new, more = extended
    third = replace(settings, path=str(tmp_path / "third"))
    with pytest.raises(UserError, match=r"made with rows\.length = 16, not 8"):
        build(replace(third, length=8), more, tokenizer, extends=old.path)
    with pytest.raises(UserError, match=r"made with rows\.shard_rows = 7, not 9"):
        build(replace(third, shard_rows=9), more, tokenizer, extends=old.path)
    other = train(TokenizerTraining(path=str(tmp_path / "other"), pieces=500), corpus)
    with pytest.raises(UserError, match="made with another tokenizer"):
        build(third, more, other, extends=old.path)
    # and once more: the chain grows, and each run knows what it has read
    build(third, more, tokenizer, extends=new.path)
    entry = open_store(third.path).manifest["sources"]["de"]["train"]
    assert [one["rows"] for one in entry["extends"]] == [old.rows("de"), new.rows("de")]


def test_a_run_knows_the_rows_that_it_has_read_in_an_extended_store(extended):
    old, new, _ = extended
    schedule = Schedule(non_english=((0, 1.0),), smoothing=0.0)
    course = begun(schedule, old, {})
    prints = {"row store": old.fingerprint, "curriculum": course.curriculum.fingerprint()}
    meta = {"rows": 9, "fingerprints": prints} | json.loads(json.dumps(course.noted))
    with pytest.raises(UserError, match=r"train\.accept_changes = 3"):
        going_on(meta, 3, 0, schedule, new, "run")
    course, said = going_on(meta, 3, 3, schedule, new, "run")
    assert "More rows of de: those that are read are not read again." in said
    plan, total = course.curriculum, 9 + 40 * new.rows("de")
    source, row = locate(plan, 0, total)
    for name in ("de", "ko", "th"):
        read = row[source == plan.sources.index(name)].tolist()
        assert sorted(read[: new.rows(name)]) == list(range(new.rows(name)))
    # other rows of the same name are not taken for the same
    stages = json.loads(json.dumps(meta["stages"]))
    stages[0]["streams"]["th"] = "of another text"
    course, said = going_on(meta | {"stages": stages}, 3, 3, schedule, new, "run")
    assert "Other rows of th: they are read from the beginning." in said
