"""A user's files: what is a document, what is read, what is left out and said to be."""

import gzip
import io
import json
import random
from pathlib import Path

import pytest

from polylm_jax.data import compressed, corpus, documents
from polylm_jax.data.compressed import Content
from polylm_jax.data.corpus import Corpus
from polylm_jax.data.documents import Reading, stretches
from polylm_jax.errors import UserError
from tests.data.sentences import SENTENCES

TEXTS = [" ".join(SENTENCES["ru"][i:] + SENTENCES["ru"][:i]) for i in range(6)]


def built(tmp_path, **settings):
    """What was said, and the manifest, of a corpus of tmp_path/text."""
    said: list[str] = []
    made = Corpus(str(tmp_path / "corpus"), str(tmp_path / "text"), **settings)
    return corpus.build(made, False, said.append), "\n".join(said)


def documents_of(tmp_path, source="hi"):
    path = str(tmp_path / "corpus")
    return [text for split in corpus.SPLITS for text in corpus.documents(path, source, split)]


def put(tmp_path, name, content):
    file = tmp_path / "text" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def as_jsonl(texts, key="text"):
    return "".join(json.dumps({key: text, "url": "x"}) + "\n" for text in texts)


def as_zst(content):
    zstandard = pytest.importorskip("zstandard")
    half = len(content) // 2
    return b"".join(zstandard.compress(part) for part in (content[:half], content[half:]))


def as_parquet(tmp_path, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet", row_group_size=4)
    return (tmp_path / "a.parquet").read_bytes()


def test_a_text_file_is_one_document_with_plain_line_ends(tmp_path):
    long = "\n\n".join(f"Paragraph {n}. " + "A sentence of it. " * 14 for n in range(100))
    put(tmp_path, "hi/long.txt", "\ufeff\r\n" + long.replace("\n", "\r\n") + "\r\n\r\n")
    put(tmp_path, "hi/mac.txt", "old\rlines\r")
    put(tmp_path, "hi/empty.txt", " \n\n")
    manifest, said = built(tmp_path)
    assert sorted(documents_of(tmp_path)) == sorted([long, "old\nlines"])
    size = manifest["sources"]["hi"]["bytes"]
    assert size["read"] == sum(file.stat().st_size for file in tmp_path.glob("text/hi/*"))
    assert size["documents"] == len(long) + len("old\nlines")
    assert f"{size['read']:,} bytes read = {size['documents']:,} in documents + 0 " in said


@pytest.mark.parametrize("marker", ["-----", "\\n\\n", "\n\n", "é"])
@pytest.mark.parametrize("stretch", [10, 100, 2**20])
def test_a_text_file_is_split_at_a_marker(tmp_path, monkeypatch, marker, stretch):
    monkeypatch.setattr(documents, "STRETCH", stretch)
    texts = [f"text {n}\n{'word ' * (n % 7 * 9)}end" for n in range(40)]
    plain = marker.replace("\\n", "\n")
    put(tmp_path, "hi.txt", plain.join(["", *texts, "", "\n"]))
    built(tmp_path, split=marker)
    path = tmp_path / "corpus/hi"
    lines = [
        json.loads(line)
        for split in corpus.SPLITS
        for line in (path / f"{split}.jsonl").read_text("utf-8").splitlines()
    ]
    found, whole = [], ""
    for line in lines:
        whole += line["text"]
        if "more" not in line:
            found.append(whole)
            whole = ""
    assert sorted(found) == sorted(texts)
    assert (len(lines) > len(texts)) == (stretch < 2**20)
    assert len(list(documents_of(tmp_path))) == len(lines)


def test_pieces_of_one_document_are_held_out_together(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "STRETCH", 64)
    texts = [f"{n} " + " ".join(f"{n}.{part}" for part in range(60)) for n in range(30)]
    put(tmp_path, "hi.jsonl", as_jsonl(texts))
    manifest, _ = built(tmp_path, valid_share=0.3)
    numbers = []
    for split in corpus.SPLITS:
        lines = (tmp_path / f"corpus/hi/{split}.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        numbers.append({line["text"].split()[0].split(".")[0] for line in found})
        assert [line["part"] for line in found if "more" not in line] != []
        assert manifest["sources"]["hi"][split]["documents"] == len(numbers[-1])
    assert not numbers[0] & numbers[1]
    assert len(numbers[0] | numbers[1]) == 30


def test_folders_are_searched_and_packed_files_read(tmp_path):
    put(tmp_path, "hi.txt", TEXTS[0])
    put(tmp_path, "hi/sub/deep/b.txt.gz", gzip.compress(TEXTS[1].encode()))
    put(tmp_path, "hi/c.JSONL.GZ", gzip.compress(as_jsonl([TEXTS[2]]).encode()))
    put(tmp_path, "hi/d.jsonl.zst", as_zst(as_jsonl([TEXTS[3]]).encode()))
    put(tmp_path, "hi/e.parquet", as_parquet(tmp_path, text=[TEXTS[4], "", *"abcdefg"], n=[1] * 9))
    (tmp_path / "text/hi/loop").symlink_to(tmp_path / "text")
    (tmp_path / "text/sr_Latn").symlink_to(tmp_path / "text/hi")
    manifest, said = built(tmp_path, valid_share=0.0)
    for source in ("hi", "sr-Latn"):
        assert set(TEXTS[:5]) <= set(documents_of(tmp_path, source))
    assert manifest["sources"]["hi"]["train"]["documents"] == 12
    assert "Serbian (sr-Latn)" in said
    origin = (tmp_path / "corpus/hi/train.jsonl").read_text("utf-8").splitlines()[0]
    assert json.loads(origin)["from"] == "hi/c.JSONL.GZ"


@pytest.mark.parametrize("named", ["NTREX-128", "my_sib-200", "udhr"])
def test_a_folder_or_a_link_that_names_a_benchmark_is_held_out_too(tmp_path, named):
    put(tmp_path, f"{named}/hi.txt", "held out")
    assert not [*documents.documents(tmp_path / named, [tmp_path / named / "hi.txt"], Reading())]
    for link, to in (("a", f"{named}"), ("b", f"{named}/hi.txt")):
        folder = tmp_path / f"text-{link}"
        (folder / "hi").mkdir(parents=True)
        place = folder / "hi" / ("deep" if link == "a" else "x.txt")
        place.symlink_to(tmp_path / to)
        reading = Reading()
        assert not [*documents.documents(folder, [folder / "hi"], reading)]
        assert [number for number, _ in reading.passed.values()] == [1]


def test_what_is_left_out_is_said(tmp_path):
    put(tmp_path, "hi/a.jsonl", as_jsonl([f"line {n % 30}" for n in range(300)]))
    put(tmp_path, "hi/b.pdf", "x" * 1000)
    put(tmp_path, "hi/deep/c.pdf", "x" * 234)
    put(tmp_path, "hi/README", "read me")
    put(tmp_path, "klingon/d.txt", "nuqneH")
    put(tmp_path, "notes.txt", "mine")
    put(tmp_path, "hi/NTREX-128/hin.txt", "held out")
    put(tmp_path, "hi/sib200.jsonl", "no JSON, nor read")
    put(tmp_path, "hi/fleudhra.txt", "not UDHR")
    manifest, said = built(tmp_path)
    assert manifest["passed_over"] == {
        "klingon, whose name is no language's code": [1, 6],
        "notes.txt, whose name is no language's code": [1, 4],
        "no ending": [1, 7],
        ".pdf": [2, 1234],
        "NTREX, by its name text that models are measured with": [1, 8],
        "sib200, by its name text that models are measured with": [1, 17],
    }
    assert "passed over, 2 files of 1,234 bytes: .pdf" in said
    assert "270 documents have been before and are dropped" in said
    entry = manifest["sources"]["hi"]
    assert entry["duplicates"] == 270
    assert entry["train"]["documents"] + entry["valid"]["documents"] == 31


def test_bad_lines_are_skipped_and_counted_where_one_may(tmp_path):
    lines = ["{", '{"text": 5}', '{"other": "a"}', '"a"', '{"text": "\\ud800"}', "[" * 10**5]
    good = as_jsonl(TEXTS[:2]).encode()
    content = b"".join(line.encode() + b"\n" + good for line in lines) + b'{"text": "\xe9"}\n'
    put(tmp_path, "hi/a.jsonl", content)
    put(tmp_path, "hi/b.txt", b"first\nNo\xebl\nlast")
    put(tmp_path, "hi/c.jsonl.gz", gzip.compress(as_jsonl(TEXTS[2:4]).encode() * 50)[:-20])
    put(tmp_path, "hi/d.parquet", as_parquet(tmp_path, text=["fine", None]))
    manifest, said = built(tmp_path, on_bad_line="skip", valid_share=0.0)
    entry = manifest["sources"]["hi"]
    assert {*TEXTS[:4], "first\nlast", "fine"} == set(documents_of(tmp_path))
    assert entry["bad_lines"]["lines"] >= len(lines) + 4
    assert entry["bad_lines"]["first"][1] == f"{tmp_path}/text/hi/a.jsonl:4"
    assert entry["bytes"]["bad"] >= sum(map(len, lines)) + len("No?l")
    assert adds_up(entry["bytes"])
    assert "bad lines are left out, the first: " in said


def adds_up(sizes):
    return sizes["read"] == sum(sizes.values()) - sizes["read"]


def test_what_is_damaged_of_a_packed_file_costs_itself_alone_where_one_may(tmp_path):
    members = [gzip.compress(as_jsonl([text]).encode()) for text in TEXTS]
    put(tmp_path, "hi/a.jsonl.gz", b"".join([members[0], members[1][:50], *members[2:]])[:-60])
    manifest, said = built(tmp_path, on_bad_line="skip")
    assert sorted(documents_of(tmp_path)) == sorted([TEXTS[0], *TEXTS[2:-1]])
    assert manifest["sources"]["hi"]["bad_lines"]["lines"] == 2
    assert "2 bad lines are left out" in said


@pytest.mark.parametrize("place", [4, -60])
def test_pages_of_a_parquet_that_make_no_sense_cost_it_alone_where_one_may(tmp_path, place):
    content = bytearray(as_parquet(tmp_path, text=TEXTS))
    content[place : place + 50] = b"\xff" * 50
    put(tmp_path, "hi/a.parquet", bytes(content))
    put(tmp_path, "hi/b.txt", "fine")
    with pytest.raises(UserError, match=r"hi/a.parquet is damaged .*: fetch it again, or leave"):
        built(tmp_path)
    manifest, _ = built(tmp_path, on_bad_line="skip")
    assert documents_of(tmp_path) == ["fine"]
    assert manifest["sources"]["hi"]["bad_lines"]["first"] == [f"{tmp_path}/text/hi/a.parquet"]


def test_a_packed_stream_is_read_as_plain_bytes_are_and_a_long_line_is_moved_once(monkeypatch):
    chance = random.Random(0)
    plain = b"".join(chance.randbytes(chance.choice((0, 3, 50, 4000))) + b"\n" for _ in range(99))
    packed = b"".join(gzip.compress(plain[at : at + 9999]) for at in range(0, len(plain), 9999))
    monkeypatch.setattr(compressed, "_READ", 100)
    ours, judge = Content(io.BytesIO(packed), "a.gz"), io.BytesIO(plain)
    while ours.at < len(plain):
        method, size = chance.choice(("read", "readline")), chance.choice((0, 1, 40, 3000, 10**6))
        size = 300 if (method, size) == ("read", 10**6) else size
        one, other = (getattr(some, method)(size) for some in (ours, judge))
        assert one == other
        if chance.random() < 0.3:
            ours.unread(one)
            judge.seek(-len(one), io.SEEK_CUR)
        assert ours.at == judge.tell()
    assert (ours.read(9), ours.readline(9), ours.onward()) == (b"", b"", False)
    line = chance.randbytes(2**19).replace(b"\n", b"") + b"\n"
    ours = Content(io.BytesIO(gzip.compress(line + line)), "a.gz")
    assert ours.readline(2**20) == line
    assert len(ours._held) < 2**12  # else each of the 5,000 parts would be joined to those before


def test_a_line_without_end_is_bad(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST_LINE", 1000)
    put(tmp_path, "hi/a.jsonl", as_jsonl(["x" * 5000, "fine", "y" * 990]))
    with pytest.raises(UserError, match=r"a.jsonl:1 is longer than 1,000 bytes: write it as sev"):
        built(tmp_path)
    manifest, _ = built(tmp_path, on_bad_line="skip")
    assert documents_of(tmp_path) == ["fine"]
    assert manifest["sources"]["hi"]["bad_lines"]["lines"] == 2


def test_another_key(tmp_path):
    put(tmp_path, "hi/a.jsonl", as_jsonl(TEXTS[:2], "content"))
    put(tmp_path, "hi/b.parquet", as_parquet(tmp_path, content=TEXTS[2:4]))
    with pytest.raises(
        UserError, match=r"a.jsonl:1 .*string under \"text\".* with --gin.corpus.key"
    ):
        built(tmp_path)
    built(tmp_path, key="content")
    assert sorted(documents_of(tmp_path)) == sorted(TEXTS[:4])
    put(tmp_path, "hi/a.jsonl", as_jsonl(TEXTS[:2], "text"))
    with pytest.raises(UserError, match=r'b.parquet has no column "text", only content: name it'):
        built(tmp_path)


@pytest.mark.parametrize(
    ("name", "pack", "words"),
    [
        (
            "a.txt.gz",
            lambda text: gzip.compress(text)[:-9],
            r"is cut short at its byte [\d,]+: fetch it",
        ),
        ("a.txt.gz", lambda text: text, "is damaged at its byte 0 or shortly before: fetch it"),
        ("a.jsonl.zst", lambda text: as_zst(text)[:-5], "is cut short at its byte"),
        ("a.jsonl.zst", lambda text: text, "is damaged at its byte 0"),
        ("a.parquet", lambda text: text, "is damaged or no Parquet file"),
        ("a.txt", lambda text: text + b"\xff\xfe", "is not UTF-8 at its byte"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, pack, words):
    put(tmp_path, f"hi/{name}", pack(as_jsonl(TEXTS).encode() * 20))
    with pytest.raises(UserError, match=f"hi/{name}(:121)? {words}") as caught:
        built(tmp_path)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "corpus").iterdir()) == []


@pytest.mark.parametrize(("ending", "package"), [("txt.zst", "zstandard"), ("parquet", "pyarrow")])
def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch, ending, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    put(tmp_path, f"hi/a.{ending}", "x")
    with pytest.raises(UserError, match=f"a.{ending} needs {package} to be read: pip install"):
        built(tmp_path)


def test_characters_and_line_ends_survive_any_block(tmp_path):
    """Lines of megabytes are cut into blocks in the file, and nothing comes of it."""
    text = "".join(random.Random(0).choices(["é", "中", "🎉", "a", "\r\n", "\r", " "], k=10**6))
    file = text + "é" * 10**6 + "\r\n" + "🎉" * 10**6
    put(tmp_path, "hi.txt", file)
    built(tmp_path)
    plain = file.replace("\r\n", "\n").replace("\r", "\n")
    assert "".join(documents_of(tmp_path)) == plain.strip("\n")


@pytest.mark.parametrize("most", [1, 2, 5, 64])
def test_stretches_are_the_text(most):
    source = random.Random(most)
    for _ in range(300):
        text = "".join(source.choices("ab  \n", k=source.randrange(200)))
        found = list(stretches(text, most))
        assert "".join(found) == text
        assert all(0 < len(part) <= most for part in found) or found == [""]


def test_a_stretch_ends_before_a_space_or_a_line_end():
    assert list(stretches("one two   three\nfour", 12)) == ["one two", "   three", "\nfour"]
    assert list(stretches("unbroken", 5)) == ["unbro", "ken"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    put(tmp_path, "hi/a.txt", "x")
    plain = documents.os.listdir

    def closed(path):
        if Path(path).name == "hi":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(documents.os, "listdir", closed)
    with pytest.raises(UserError, match=r"text/hi cannot be read \(Permission denied\): make"):
        built(tmp_path)
