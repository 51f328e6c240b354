import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from polylm_jax.data.rows import RowSettings, build, open_store, verify
from polylm_jax.data.tokenizer import TokenizerTraining, load, train
from polylm_jax.errors import UserError
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
    monkeypatch.setattr("polylm_jax.data.rows.BATCH_CHARACTERS", batch_characters)
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


def test_an_interrupted_build_leaves_nothing(corpus, tokenizer, settings, tmp_path, monkeypatch):
    plain = type(tokenizer).encode

    def interrupted(self, texts):
        if TEXTS["he"][0] in texts:
            raise KeyboardInterrupt
        return plain(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(settings, corpus, tokenizer)
    assert not list(tmp_path.iterdir())
    build(settings, corpus, tokenizer)


def test_a_killed_build_leaves_nothing_that_opens(corpus, tokenizer, settings, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    program = f"""
import os
from polylm_jax.data import rows, tokenizer
rows.write_manifest = lambda *_: os._exit(9)
settings = rows.RowSettings({settings.path!r}, {LENGTH}, 7)
rows.build(settings, {corpus!r}, tokenizer.load({str(tmp_path / "tokenizer.model")!r}))
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    assert killed.returncode == 9
    assert list(tmp_path.glob("rows.tmp-*"))
    with pytest.raises(UserError, match="run polylm rows first"):
        open_store(settings.path)
    build(settings, corpus, tokenizer)
    verify(open_store(settings.path))


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


def test_too_little_text(corpus, tokenizer, settings, tmp_path):
    with pytest.raises(UserError, match=r"corpus/de has [\d,]+ tokens .* row needs 100,001; add"):
        build(replace(settings, length=100_000), corpus, tokenizer)
    assert not list(tmp_path.iterdir())


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
    with pytest.raises(UserError, match=r"rows.length must be at least 1"):
        RowSettings(length=0)


def test_the_tokenizer_is_named_by_its_fingerprint(corpus, tokenizer, settings, tmp_path):
    build(settings, corpus, tokenizer)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    again = load(str(tmp_path / "tokenizer.model"))
    assert open_store(settings.path).tokenizer_fingerprint == again.fingerprint
    other = train(TokenizerTraining(path=str(tmp_path / "other"), pieces=550), corpus)
    with pytest.raises(UserError, match="delete it or give another path"):
        build(settings, corpus, other)
