"""Rows of a corpus in shards, from and to any file system: the same bytes as here."""

import json
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from polylm_jax.__main__ import main
from polylm_jax.data import packing, shards
from polylm_jax.data.clean.engine import Beam
from polylm_jax.data.packing import build
from polylm_jax.data.rows import RowSettings, open_store, verify
from polylm_jax.data.sides import hashed
from polylm_jax.data.tokenizer import TokenizerTraining, load, train
from polylm_jax.errors import UserError
from polylm_jax.files import MANIFEST
from tests.data.sentences import SENTENCES

TEXTS = {
    code: [" ".join(SENTENCES[code][i:] + SENTENCES[code][:i]) for i in range(9)]
    for code in ("de", "th")
}
FAR = "memory://far"
HELD_OUT = 2**61  # below it are the hashes of text that is


def write(path, ending=".jsonl", count=3):
    """A corpus whose documents are one after another in `count` shards of each source."""
    entries = {}
    for source, texts in TEXTS.items():
        documents = [(text, f"{source}@{n}", n) for n, text in enumerate(texts)]
        some = [documents[n * 9 // count : (n + 1) * 9 // count] for n in range(count)]
        entries[source] = [
            shards.write_shard(path, source, n, count, one, HELD_OUT, ending)
            for n, one in enumerate(some)
        ]
    shards.write_manifest(path, entries)
    return path


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    monkeypatch.setattr(packing, "PART_BYTES", 700)
    memory = fsspec.filesystem("memory")
    yield memory
    if memory.exists("/far"):
        memory.rm("/far", recursive=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anywhere")
    return train(TokenizerTraining(str(folder / "made"), pieces=500), write(str(folder / "corpus")))


@pytest.fixture
def near(tmp_path, tokenizer):
    """Settings of rows here, which are made."""
    settings = RowSettings(str(tmp_path / "rows"), 16, 7)
    build(settings, write(str(tmp_path / "corpus")), tokenizer)
    return settings


def content(path):
    files, root = fsspec.core.url_to_fs(path)
    return {name.removeprefix(root): files.cat_file(name) for name in files.find(root)}


@pytest.mark.parametrize("ending", shards.ENDINGS)
def test_the_same_bytes_from_and_to_anywhere(near, tokenizer, memory, ending):
    if ending.endswith("zst"):
        pytest.importorskip("zstandard")
    far = replace(near, path=f"{FAR}/rows")
    corpus = write(f"{FAR}/corpus", ending)
    build(far, corpus, tokenizer)
    assert content(far.path) == content(near.path)
    assert not memory.exists("/far/rows.partial")
    store = open_store(far.path)
    assert verify(store) == len(content(near.path)) - 1
    found = [
        one for row in range(0, store.rows("th"), 3) for one in store.origins(corpus, "th", row)
    ]
    trained = [f"th@{n}" for n, text in enumerate(TEXTS["th"]) if hashed(text) >= HELD_OUT]
    assert list(dict.fromkeys(one.name for one in found)) == trained
    assert found[-1].file == f"{FAR}/corpus/th/train-00002-of-00003{ending}"
    assert found[-1].line == sum(int(name[3:]) >= 6 for name in trained)
    assert build(far, corpus, tokenizer) == store.manifest


def test_shards_leave_no_mark_but_in_the_manifest(near, tokenizer, tmp_path):
    other = replace(near, path=str(tmp_path / "other"))
    build(other, write(str(tmp_path / "one"), count=1), tokenizer)
    for name, bytes_of in content(near.path).items():
        assert name == f"/{MANIFEST}" or bytes_of == content(other.path)[name]
    plain = tmp_path / "plain"
    for source in TEXTS:
        (plain / source).mkdir(parents=True)
        for split in shards.SPLITS:
            file = tmp_path / "one" / source / f"{split}-00000-of-00001.jsonl"
            lines = file.read_bytes() if file.exists() else b""
            (plain / source / f"{split}.jsonl").write_bytes(lines)
    manifest = json.loads((tmp_path / "one" / MANIFEST).read_text())
    for source in TEXTS:
        for split in shards.SPLITS:
            del manifest["sources"][source][split]["shards"]
    (plain / MANIFEST).write_text(json.dumps(manifest))
    one = replace(near, path=str(tmp_path / "of_one_file"))
    build(one, str(plain), tokenizer)
    assert content(one.path) == content(other.path)


@pytest.mark.parametrize(("name", "call"), [("_tokenize", 5), ("_cut", 3), ("write_manifest", 1)])
def test_what_is_stopped_far_away_goes_on(near, tokenizer, memory, monkeypatch, name, call):
    far, corpus = replace(near, path=f"{FAR}/rows"), write(f"{FAR}/corpus")
    plain, calls = getattr(packing, name), []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(packing, name, stopped)
    with pytest.raises(KeyboardInterrupt):
        build(far, corpus, tokenizer)
    with pytest.raises(UserError, match="There are no rows at memory://far/rows; run"):
        open_store(far.path)
    build(far, corpus, tokenizer)
    assert content(far.path) == content(near.path)
    if name == "_tokenize":
        parts = [part for _, part in calls]
        assert len(parts) - 1 == len(set(parts))


def test_another_build_far_away_begins_anew_and_nothing_is_overwritten(
    near, tokenizer, memory, monkeypatch
):
    far, corpus = replace(near, path=f"{FAR}/rows"), write(f"{FAR}/corpus")
    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(replace(far, length=8, shard_rows=1), corpus, tokenizer)
    build(far, corpus, tokenizer)
    assert content(far.path) == content(near.path)
    with pytest.raises(UserError, match="memory://far/rows was made from other text or with"):
        build(replace(far, length=8), corpus, tokenizer)
    memory.pipe_file("/far/mine/notes", b"x")
    with pytest.raises(UserError, match="memory://far/mine was made from other text"):
        build(replace(far, path=f"{FAR}/mine"), corpus, tokenizer)


def test_rows_far_away_are_extended(near, tokenizer, tmp_path):
    far = replace(near, path=f"{FAR}/rows")
    for settings, old in ((near, near.path), (far, f"{FAR}/old")):
        if settings is far:
            build(replace(far, path=old), write(f"{FAR}/corpus"), tokenizer)
        more = replace(settings, path=f"{settings.path}.more")
        build(more, str(tmp_path / "corpus"), tokenizer, extends=old)
    assert content(f"{far.path}.more") == content(f"{near.path}.more")
    store = open_store(f"{far.path}.more")
    old = open_store(near.path)
    rows = np.arange(old.rows("de"))
    assert store.rows("de") > len(rows)
    np.testing.assert_array_equal(store.read("de", rows), old.read("de", rows))


@pytest.mark.parametrize("harm", ["cut", "gone", "short"])
def test_damaged_shards_of_a_corpus_are_named(near, tokenizer, memory, tmp_path, harm):
    corpus = Path(write(str(tmp_path / "harmed"), ".jsonl" if harm == "short" else ".jsonl.gz"))
    file = next(iter(sorted((corpus / "th").glob("train-00001*"))))
    if harm == "gone":
        file.unlink()
    else:
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:-1]) if harm == "short" else file.read_bytes()[:-20])
    words = {"cut": "is cut short at its byte", "gone": "is missing", "short": "is cut short"}[harm]
    with pytest.raises(UserError, match=rf"th/train-00001\S+ {words}.*; make the corpus"):
        build(replace(near, path=f"{FAR}/rows"), str(corpus), tokenizer)


def test_by_beam_the_same_bytes(near, tokenizer, tmp_path):
    pytest.importorskip("apache_beam")
    far = replace(near, path=f"{FAR}/rows")
    build(far, write(f"{FAR}/corpus"), tokenizer, beam=Beam())
    assert content(far.path) == content(near.path)
    store = open_store(far.path)
    assert verify(store, Beam()) == verify(store)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/far/rows/th/train-00000.tokens", bytes(2 * (7 * 16 + 1)))
    with pytest.raises(UserError, match=r"far/rows/th/train-00000.tokens is damaged; delete"):
        verify(store, Beam())


@pytest.mark.rare
def test_by_two_processes_of_beam_the_same_bytes(near, tokenizer, tmp_path):
    pytest.importorskip("apache_beam")
    other = replace(near, path=str(tmp_path / "other"))
    build(other, str(tmp_path / "corpus"), tokenizer, beam=Beam(workers=2))
    assert content(other.path) == content(near.path)


def test_the_verbs_read_a_corpus_far_away(tokenizer, memory, tmp_path, capsys):
    write(f"{FAR}/corpus", ".jsonl.gz")
    flags = [
        f"--gin.corpus.path={FAR}/corpus",
        f"--gin.rows.path={FAR}/rows",
        f"--gin.tokenizer.path={tmp_path}/made",
        "--gin.tokenizer.pieces=500",
        "--gin.rows.length=16",
    ]
    assert main(["tokenizer", *flags]) == 0
    assert load(f"{tmp_path}/made").model == tokenizer.model
    assert main(["rows", *flags]) == 0
    assert main(["rows", "verify", *flags]) == 0
    capsys.readouterr()
    assert main(["rows", "show", "0", "--source=th", *flags]) == 0
    said = capsys.readouterr().out
    assert TEXTS["th"][0][:8] in said
    assert "th@0" in said
    assert main(["corpus", *flags]) == 1
    assert "must be on this machine" in capsys.readouterr().err
