"""A corpus in shards is one that any number of processes wrote and every reader reads."""

import gzip
import hashlib
import json

import fsspec
import pytest

from polylm_jax.data import corpus, shards
from polylm_jax.data.corpus import Corpus
from polylm_jax.data.sides import hashed
from polylm_jax.errors import UserError
from tests.data.sentences import SENTENCES

HALF = 2**63
DOCUMENTS = [(f"{n}. {text}\nДа.", f"a.warc@{n}", n) for n, text in enumerate(SENTENCES["de"] * 3)]


@pytest.fixture
def far():
    """A folder in fsspec's memory."""
    yield "memory://far/corpus"
    memory = fsspec.filesystem("memory")
    memory.rm("/far", recursive=True)


def written(path, ending=".jsonl.zst", count=4, held_out=HALF):
    if ending.endswith("zst"):
        pytest.importorskip("zstandard")
    each = [
        shards.write_shard(path, "de", n, count, DOCUMENTS[n::count], held_out, ending)
        for n in range(count)
    ]
    return shards.write_manifest(path, {"de": each}, made_by="a test")


def read(path):
    return {split: list(corpus.documents(path, "de", split)) for split in corpus.SPLITS}


@pytest.mark.parametrize("ending", shards.ENDINGS)
def test_what_is_written_is_read_anywhere(far, tmp_path, ending):
    manifest = written(far, ending)
    assert corpus.manifest(far) == manifest
    assert manifest["made_by"] == "a test"
    in_order = [text for n in range(4) for text, *_ in DOCUMENTS[n::4]]
    held_out = [hashed(text) < HALF for text in in_order]
    assert 3 < sum(held_out) < len(in_order) - 3
    for split, which in (("train", False), ("valid", True)):
        texts = [text for text, held in zip(in_order, held_out, strict=True) if held == which]
        assert list(corpus.documents(far, "de", split)) == texts
        entry = manifest["sources"]["de"][split]
        assert entry["documents"] == len(texts)
        assert entry["bytes"] == sum(len(text.encode()) for text in texts)
    near = str(tmp_path / "corpus")
    assert written(near, ending) == manifest
    assert read(near) == read(far)


def test_a_line_tells_where_it_is_from_and_the_hash_is_of_the_lines(tmp_path):
    hashes = set()
    for ending, unpack in ((".jsonl", bytes), (".jsonl.gz", gzip.decompress)):
        manifest = written(str(tmp_path / ending), ending)
        shard = manifest["sources"]["de"]["train"]["shards"][0]
        assert shard["file"] == f"train-00000-of-00004{ending}"
        content = unpack((tmp_path / ending / "de" / shard["file"]).read_bytes())
        assert len(content) == shard["content"]
        assert hashlib.sha256(content).hexdigest() == shard["sha256"]
        lines = [json.loads(line) for line in content.splitlines()]
        by_text = {text: (origin, f"{n:016x}") for text, origin, n in DOCUMENTS}
        assert all((line["from"], line["id"]) == by_text[line["text"]] for line in lines)
        hashes.add(manifest["sha256"])
    assert len(hashes) == 1
    assert written(str(tmp_path / "one"), ".jsonl", held_out=0)["sha256"] not in hashes


def test_a_line_is_what_json_makes_of_it_whatever_signs_it_has():
    every = [chr(code) for code in (*range(0x300), 0x2028, 0x4E00, 0xFEFF, 0xFFFF, 0x1F600)]
    for text in ("", "".join(every), *every, *("a" + sign + '\\"\n\t' for sign in every)):
        record = {"text": text, "from": text, "id": f"{9:016x}"}
        expected = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        assert shards.as_lines(text.encode(), text, 9) == expected


def test_a_shard_without_a_document_is_no_file(tmp_path):
    assert shards.write_shard(str(tmp_path), "de", 0, 2, [], 0) == {}
    entry = shards.write_shard(str(tmp_path), "de", 1, 2, DOCUMENTS, 0, ".jsonl")
    shards.write_manifest(str(tmp_path), {"de": [{}, entry]})
    assert [file.name for file in (tmp_path / "de").iterdir()] == ["train-00001-of-00002.jsonl"]
    assert read(str(tmp_path)) == {"train": [text for text, *_ in DOCUMENTS], "valid": []}


def test_a_long_document_has_several_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "STRETCH", 100)
    long = "words of a text " * 40
    entry = shards.write_shard(str(tmp_path), "de", 0, 1, [(long, "a", 7)], 0, ".jsonl")
    shards.write_manifest(str(tmp_path), {"de": [entry]})
    assert "".join(corpus.documents(str(tmp_path), "de", "train")) == long
    lines = (tmp_path / "de" / entry["train"]["file"]).read_text().splitlines()
    told = [(line["part"], line.get("more", False)) for line in map(json.loads, lines)]
    assert told == [(n, n < len(told)) for n in range(1, len(told) + 1)]
    assert entry["train"]["documents"] == 1


@pytest.mark.parametrize("ending", shards.ENDINGS[1:])
def test_a_shard_that_is_cut_or_gone_is_named(far, ending):
    written(far, ending)
    memory = fsspec.filesystem("memory")
    place = f"/far/corpus/de/train-00001-of-00004{ending}"
    memory.pipe_file(place, memory.cat_file(place)[:-9])
    with pytest.raises(UserError, match=rf"00001-of-00004{ending} is cut short at its byte \d+;"):
        read(far)
    memory.rm(place)
    with pytest.raises(UserError, match=rf"00001-of-00004{ending} is missing; make the corpus"):
        read(far)


@pytest.mark.parametrize("ending", shards.ENDINGS)
def test_files_are_verified_and_one_that_is_another_is_named(far, ending):
    manifest = written(far, ending)
    assert shards.verify(far, manifest) == 8
    place = f"{far}/de/{manifest['sources']['de']['valid']['shards'][1]['file']}"
    memory = fsspec.filesystem("memory")
    whole = memory.cat_file(place)
    other = memory.cat_file(place.replace("valid-00001", "valid-00002"))
    for content, words in ((other, "is not as it was written"), (whole[:-9], "")):
        memory.pipe_file(place, content)
        with pytest.raises(UserError, match=rf"valid-00001.*{words}"):
            shards.verify(far, manifest)
    memory.rm(place)
    with pytest.raises(UserError, match=r"valid-00001.* is missing"):
        shards.verify(far, manifest)


def test_a_corpus_in_one_file_a_split_is_verified(tmp_path):
    (tmp_path / "text").mkdir()
    for number, text in enumerate(SENTENCES["de"]):
        (tmp_path / "text" / f"de.{number}.txt").write_text(text)
    path = str(tmp_path / "corpus")
    manifest = corpus.build(Corpus(path, str(tmp_path / "text")), False, lambda line: None)
    assert shards.verify(path, manifest) == 2
    with open(tmp_path / "corpus" / "de" / "valid.jsonl", "a") as file:
        file.write("{}\n")
    with pytest.raises(UserError, match=r"train\.jsonl or .*valid\.jsonl is not as it was"):
        shards.verify(path, manifest)


def test_polylm_corpus_takes_the_place_of_shards_but_not_of_what_they_are_not(tmp_path):
    path, text = tmp_path / "corpus", tmp_path / "text"
    (text / "de").mkdir(parents=True)
    (text / "de" / "a.txt").write_text("Ein Text.")
    written(str(path), ".jsonl")
    (path / "de" / "train-00000-of-00009.jsonl").write_text("mine")
    with pytest.raises(UserError, match="has text that a corpus there would replace"):
        corpus.build(Corpus(str(path), str(text)), False, str)
    (path / "de" / "train-00000-of-00009.jsonl").unlink()
    corpus.build(Corpus(str(path), str(text)), False, str)
    assert sorted(file.name for file in (path / "de").iterdir()) == ["train.jsonl", "valid.jsonl"]


def test_only_shards_are_written_far_away():
    with pytest.raises(UserError, match=r"corpus.path=memory://x must be on this machine"):
        corpus.build(Corpus("memory://x"), False, str)
