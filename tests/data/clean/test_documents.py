"""What is to be cleaned, in files made by hand, each with every fault that files have."""

import gzip
import json
import random
import zlib
from functools import partial
from pathlib import Path

import fsspec
import pytest

from polylm_jax.data import shards as written
from polylm_jax.data.clean import archives, documents, inputs, parts
from polylm_jax.data.clean.documents import Broken, Document, identity, read
from polylm_jax.data.clean.inputs import holds, shards
from polylm_jax.errors import UserError
from tests.data.sentences import SENTENCES

TEXTS = [f"{n}. {text}" for n, text in enumerate(SENTENCES["ru"][:5])]
LINES = [json.dumps({"text": text, "url": f"http://x/{n}"}) for n, text in enumerate(TEXTS)]


@pytest.fixture(autouse=True)
def apart(monkeypatch):
    """Each file is a shard, however small."""
    monkeypatch.setattr(inputs, "JOINED", 0)


gzipped = partial(gzip.compress, mtime=0)  # of no second, for tests are named by what they get


def warc(kind, body, content_type="text/plain", says=None, url="http://a.example/1"):
    """A record as ISO 28500 has it."""
    size = len(body) if says is None else says
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\n"
    head += f"Content-Type: {content_type}\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body + b"\r\n\r\n"


def wet(text, says=None):
    return warc("conversion", text.encode(), says=says)


def http(body, headers="Content-Type: text/html", status="200 OK"):
    answer = f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + body
    return warc("response", answer, "application/http; msgtype=response")


def packed(records):
    """As crawlers pack them: each record a member of its own."""
    return b"".join(map(gzipped, records))


def zst(content):
    return pytest.importorskip("zstandard").compress(content)


def found(path, content, **more):
    """Everything in a file of this content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    [shard] = shards({str(path): "ru"}, **more)
    return list(read(shard))


def texts(items):
    return [item.text if isinstance(item, Document) else None for item in items]


ALL = [wet(text) for text in TEXTS]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.wet", b"".join(ALL)),
        ("a.warc.wet.gz", packed(ALL)),
        ("a.warc.gz", gzipped(b"".join(ALL))),  # one member for all, as some have it
        ("a.warc", b"\r\n".join(ALL).replace(b"\r\n", b"\n")),  # lengths are of the bodies alone
        ("a.jsonl", "\n".join(["\ufeff" + LINES[0], "", *LINES[1:]]).encode()),
        ("a.jsonl.gz", gzipped("\n".join(LINES[:2]).encode() + b"\n")
         + gzipped("\n".join(LINES[2:]).encode()) + b"\0" * 512),
        ("a.ndjson", "\r\n".join(LINES).encode()),
    ],
)  # fmt: skip
def test_every_kind_of_file_gives_its_texts(tmp_path, name, content):
    items = found(tmp_path / name, content)
    assert texts(items) == TEXTS
    assert {item.language for item in items} == {"ru"}
    assert {item.file for item in items} == {name}
    assert len({item.id for item in items}) == 5
    # the place is a byte of what is packed
    plain = gzip.decompress(content) if name.endswith("gz") else content
    first = b"WARC/1.0" if "w" in name else b"{"
    assert all(plain[one.record :].lstrip("\ufeff".encode()).startswith(first) for one in items)


def test_frames_and_rows_and_folders_of_text(tmp_path):
    content = zst(LINES[0].encode() + b"\n") + zst("\n".join(LINES[1:]).encode())
    assert texts(found(tmp_path / "a.jsonl.zst", content)) == TEXTS
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"body": [*TEXTS, None], "url": ["http://x", *[None] * 5]})
    parquet.write_table(table, tmp_path / "b.parquet", row_group_size=2)
    items = found(tmp_path / "b.parquet", (tmp_path / "b.parquet").read_bytes(), key="body")
    assert texts(items) == [*TEXTS, None]
    assert [item.record for item in items] == [0, 1, 2, 3, 4, 5]
    assert [item.url for item in items[:2]] == ["http://x", ""]
    for number, text in enumerate(TEXTS):
        file = tmp_path / "folder" / str(number % 2) / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    (tmp_path / "folder" / "1" / "5.txt").touch()
    [shard] = shards({str(tmp_path / "folder"): ""})
    items = list(read(shard))
    assert texts(items) == [TEXTS[n] for n in (0, 2, 4, 1, 3)] + [None]
    assert items[-1] == Broken("1/5.txt", 0, "is empty")
    assert [item.id for item in items[:1]] == [identity("0/0.txt", 0)]


# --- broken files


TOO_SHORT, TOO_LONG = wet(TEXTS[1], says=9), wet(TEXTS[3], says=10**5)
GONE_ON = "goes on after the 9 bytes that it says it has"


@pytest.mark.parametrize("pack", [b"".join, packed])
def test_a_wrong_length_costs_its_record_alone(tmp_path, pack):
    records = [ALL[0], TOO_SHORT, ALL[2], TOO_LONG, ALL[4]]
    name = "a.wet" if pack is not packed else "a.wet.gz"
    items = found(tmp_path / name, pack(records))
    assert texts(items) == [TEXTS[0], None, TEXTS[2], None, TEXTS[4]]
    assert items[1] == Broken(name, len(ALL[0]), GONE_ON)
    assert items[3].record == sum(map(len, records[:3]))
    assert items[3].reason.startswith("says that it has 100,000 bytes and has ")


@pytest.mark.parametrize("says", ["-1", "many", "", "9" * 30])
def test_a_length_that_is_none_or_endless(tmp_path, says):
    items = found(tmp_path / "a.wet", ALL[0] + wet(TEXTS[1], says=says) + ALL[2])
    assert texts(items) == [TEXTS[0], None, TEXTS[2]]


def torn(member, at=60):
    return member[:at]


def flipped(member):
    return member[:-20] + bytes([member[-20] ^ 255]) + member[-19:]


@pytest.mark.parametrize("harm", [torn, flipped, lambda member: b"\0junk" * 9])
def test_a_damaged_member_costs_itself_alone(tmp_path, harm):
    members = [gzipped(record) for record in ALL]
    content = b"".join([*members[:2], harm(members[2]), *members[3:]])
    items = found(tmp_path / "a.wet.gz", content)
    assert texts(items) == [*TEXTS[:2], None, *TEXTS[3:]]
    place = int(items[2].reason.split(" at its byte ")[1].split()[0].replace(",", ""))
    assert 0 <= place - len(b"".join(members[:2])) <= len(members[2])


def test_a_cut_archive_is_told_and_what_came_before_is_read(tmp_path):
    whole = packed(ALL)
    for left in (1, 9, 30, len(gzipped(ALL[4])) - 1):
        items = found(tmp_path / "a.wet.gz", whole[:-left])
        assert texts(items) == [*TEXTS[:4], None]
        assert items[4].reason == f"is cut short at its byte {len(whole) - left:,}"
    items = found(tmp_path / "a.wet", b"".join(ALL)[:-30])
    assert texts(items) == [*TEXTS[:4], None]


def test_large_members_are_left_at_any_byte(tmp_path):
    """The window of what is decompressed and searched lies anywhere in a member."""
    random_text = random.Random(1)
    big = ["".join(random_text.choices("абвгде ёжз", k=size)) for size in (50_000, 9, 110_000, 9)]
    members = [gzipped(wet(text)) for text in big]
    for at in (100, 33_000, len(members[2]) - 4):
        harmed = bytearray(members[2])
        harmed[at] ^= 255
        items = found(tmp_path / "a.wet.gz", b"".join([*members[:2], harmed, members[3]]))
        assert texts(items)[:2] == big[:2]
        assert texts(items)[-2:] == [None, big[3]]


def test_a_damaged_frame_costs_itself_alone(tmp_path):
    frames = [zst(line.encode() + b"\n") for line in LINES]
    frames[2] = frames[2][:40]
    items = found(tmp_path / "a.jsonl.zst", b"".join(frames))
    assert texts(items) == [*TEXTS[:2], None, *TEXTS[3:]]


def test_frames_between_frames_and_long_windows(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    long = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=long).compressobj()
    skipped = b"\x50\x2a\x4d\x18\x05\0\0\0 any "
    content = skipped + packer.compress(LINES[0].encode()) + packer.flush() + skipped
    assert texts(found(tmp_path / "a.jsonl.zst", content)) == TEXTS[:1]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['"A", "part": 1, "more": true', '"B", "part": 2'], ["AB"]),
        (['"A", "part": 1, "more": true', '"C"'], [None, "C"]),
        (['"A", "part": 1, "more": true', '"B", "part": 3'], [None, "B"]),
        (['"A", "part": 1, "more": true'], [None]),
        (['"A", "part": "first"', '"B", "part": 7, "more": 1'], ["A", "B"]),  # a user's own
    ],
)
def test_a_document_of_several_lines_is_whole_or_told(tmp_path, lines, expected):
    content = "".join(f'{{"text": {line}}}\n' for line in lines)
    items = found(tmp_path / "a.jsonl", content.encode())
    assert texts(items) == expected
    torn = [item for item in items if isinstance(item, Broken)]
    assert torn in ([], [Broken("a.jsonl", 0, "is a document without its part 2")])


def test_bad_lines_are_told_with_their_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST_LINE", 400)
    bad = [b"{", b'["text"]', b'{"text": 1}', b'{"body": "x"}', b'{"text": "\xff"}', b"[" * 300,
           b'{"text": "' + b"x" * 1000 + b'"}']  # fmt: skip
    content = b"\n".join([LINES[0].encode(), *bad, LINES[1].encode()])
    items = found(tmp_path / "a.jsonl", content)
    assert texts(items) == [TEXTS[0], *[None] * len(bad), TEXTS[1]]
    for item, line in zip(items[1:-1], bad, strict=True):
        assert content[item.record :].startswith(line)
    assert [item.reason for item in items[5:8:2]] == [
        "is not UTF-8 at its byte 11: save the file as UTF-8",
        "is longer than 400 bytes",
    ]


def test_what_json_can_spell_comes_as_it_is(tmp_path):
    hard = ["\x00a", "a\ufeffb", "\u202eabc", "a\u200db", "a\u2067b\u2069", "x" * 5_000_000]
    content = "\n".join(json.dumps({"text": text}) for text in [*hard, "\ud800x"])
    assert texts(found(tmp_path / "a.jsonl", content.encode())) == [*hard, "\ud800x"]
    [item] = found(tmp_path / "b.jsonl", b'{"text": "a", "url": "http://x/\\ud800"}')
    assert item.url == "http://x/?"  # it is written as it is


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"PAR1 and more"),
        ("a.jsonl.gz", b"no gzip at all"),
        ("a.wet.gz", b"\x1f\x8b\x08 and more"),
        ("a.warc", b"no archive\n at all"),
        ("a.txt", b"\xff\xfe"),
        ("a.jsonl", b""),
        ("a.jsonl.gz", gzipped(b"")),
        ("a.txt.gz", gzipped(b"")),
        ("a.wet.gz", b""),
        ("a.parquet", b""),
    ],
)
def test_a_file_of_another_kind_is_one_broken_record(tmp_path, name, content):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    [item] = found(tmp_path / name, content)
    assert isinstance(item, Broken)
    assert item.record == 0


def test_damaged_rows_cost_their_group(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    many = ["".join(random.Random(n).choices("abcdef", k=3000)) for n in range(9)]
    parquet.write_table(
        pyarrow.table({"text": many}), tmp_path / "a.parquet", row_group_size=3,
        use_dictionary=False, compression="gzip",
    )  # fmt: skip
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    at = (
        parquet.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0).data_page_offset
    )
    content[at : at + 40] = bytes(40)  # the head of the group's only page
    items = found(tmp_path / "a.parquet", bytes(content))
    assert texts(items) == [*many[:3], None, *many[6:]]
    assert items[3].reason == "is damaged, and so are all up to row 5"


# --- pages of the web


PAGE = "<html><head>{}<title>T</title></head><body><nav><a>x</a></nav><p>{}</p></body></html>"


def test_a_response_gives_its_main_text(tmp_path):
    pytest.importorskip("resiliparse")
    text = TEXTS[0] * 3
    page = PAGE.format("", text).encode("koi8-r")
    chunks = b"".join(b"%x;q\r\n%b\r\n" % (len(part), part) for part in (page[:50], page[50:]))
    kind = "Content-Type: text/html; charset=koi8-r"
    records = [
        warc("warcinfo", b"software: x", "application/warc-fields"),
        http(page, kind),
        http(chunks + b"0\r\n\r\n", f"{kind}\r\nTransfer-Encoding: chunked"),
        http(gzipped(page), f"{kind}\r\nContent-Encoding: gzip"),
        http(page, f"{kind}\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked"),  # undone
        http(text.encode("koi8-r"), "Content-Type: text/plain; charset=koi8-r"),
        http(page, kind, "404 Not Found"),
        http(b"\x89PNG", "Content-Type: image/png"),
        warc("resource", page, "text/html; charset=koi8-r"),
        warc("metadata", b"x: y", "application/warc-fields"),
    ]
    items = found(tmp_path / "a.warc.gz", packed(records))
    assert texts(items) == [text] * 6
    assert {item.url for item in items} == {"http://a.example/1"}


PLAIN = "Content-Type: text/plain\r\n"


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        ("Transfer-Encoding: chunked", b"Add\r\nand go on" + b"x" * 3000, None),  # undone: no size
        ("Transfer-Encoding: chunked", b"Add this\r\nto the list", None),
        ("Transfer-Encoding: chunked", b"10 ;q\r\n0123456789", "0123456789"),  # cut
        ("Transfer-Encoding: chunked", b"1\r\nx\r\n2\r\nxxxx\r\n0\r\n\r\n", "chunks do not fit"),
        ("Content-Encoding: gzip", gzipped(b"a") + gzipped(b"b"), "ab"),
        ("Content-Encoding: gzip", gzipped(b"hello there")[:15] + b"\xff" * 30, "has a body"),
        ("Content-Encoding: gzip", gzipped(bytes(range(250)))[:99], "body that is cut short"),
        ("Content-Encoding: deflate", zlib.compress(b"hello"), "hello"),
        ("Content-Encoding: deflate", zlib.compress(b"hello" * 9)[2:-4], "hello" * 9),
        ("Content-Encoding: br", b"hello", "hello"),
        ("Content-Encoding: br", b"\x1b\x2f\x00\xf8\x8d", "is packed as br, which is not read"),
    ],
)
def test_bodies_are_unpacked_left_or_told_and_none_is_text_that_nobody_wrote(
    tmp_path, headers, body, said
):
    [item] = found(tmp_path / "a.warc", http(body, PLAIN + headers))
    if isinstance(item, Broken):
        assert said in item.reason
    else:
        assert item.text == (body.decode() if said is None else said)


def test_a_page_that_no_one_can_read_is_a_broken_record(tmp_path, monkeypatch):
    def unreadable(page, content_type):
        raise archives.html.Unreadable("takes more than 5 s to read")

    monkeypatch.setattr(archives.html, "extract", unreadable)
    items = found(tmp_path / "a.warc", http(b"<p>") + ALL[1])
    assert items[0] == Broken("a.warc", 0, "takes more than 5 s to read")
    assert texts(items[1:]) == TEXTS[1:2]


# --- which shards there are


def put(folder, *names):
    for name in names:
        file = Path(folder) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(LINES[0])


def test_folders_patterns_and_files(tmp_path):
    put(tmp_path, "d/a.jsonl", "d/x/b.jsonl", "d/c.csv", "d/README", "d/udhr/a.jsonl")
    put(tmp_path, "e/a.jsonl", "f/a.jsonl")
    passed = {}
    found = shards({f"{tmp_path}/d": "", f"{tmp_path}/e/*.jsonl": "de"}, passed=passed)
    # both have an a.jsonl, so the folders' last names are told as well
    assert [(one.name, one.files[0].language) for one in found] == [
        ("d/a.jsonl", ""), ("d/x/b.jsonl", ""), ("e/a.jsonl", "de")
    ]  # fmt: skip
    assert {kind.split(",")[0]: count for kind, (count, _) in passed.items()} == {
        ".csv": 1, "no ending": 1, "udhr": 1
    }  # fmt: skip
    [one] = shards({f"{tmp_path}/d/**/b.jsonl": ""})
    assert one.name == "x/b.jsonl"
    [one] = shards({f"{tmp_path}/f/a.jsonl": "zh-Hant"})
    assert (one.name, one.bytes) == ("a.jsonl", len(LINES[0]))


def test_a_pattern_finds_folders_too_and_a_folder_may_hold_anything(tmp_path):
    put(tmp_path, "d/de/a.jsonl", "d/en/x/b.jsonl", "d/c d\n.jsonl", "d/漢/e.jsonl")
    (tmp_path / "d/en/loop").symlink_to(tmp_path / "d")
    (tmp_path / "d/en/gone.jsonl").symlink_to(tmp_path / "nowhere")
    passed = {}
    every = ["c d\n.jsonl", "de/a.jsonl", "en/x/b.jsonl", "漢/e.jsonl"]
    for path in (f"{tmp_path}/d", f"{tmp_path}/d/**", f"{tmp_path}/d/**/*.jsonl"):
        assert [one.name for one in shards({path: ""}, passed=passed)] == every
    assert passed["no file, or a link to none"][0] >= 1
    assert [one.name for one in shards({f"{tmp_path}/d/d*": ""})] == ["de/a.jsonl"]


@pytest.mark.parametrize(
    ("path", "folder", "expected"),
    [
        ("{}/in", "{}/in/out", True),
        ("{}/in", "{}/in", True),
        ("{}/in", "{}/in2", False),
        ("{}/link", "{}/in/out", True),
        ("{}/link/*", "{}/in/out", True),
        ("{}/*.jsonl", "{}/out", False),
        ("{}/*", "{}/out", True),
        ("{}/**/*.zst", "{}/out", True),
        ("{}/in", "memory:/{}/in", False),
        ("memory:/{}/in", "memory:/{}/in/out", True),
    ],
)
def test_what_would_read_what_is_written(tmp_path, path, folder, expected):
    put(tmp_path, "in/a.jsonl")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert holds(path.format(tmp_path), folder.format(tmp_path)) == expected


def test_ids_are_of_the_name_and_the_place_wherever_the_input_lies(tmp_path):
    put(tmp_path, "d/a.jsonl", "d/b/c.jsonl")
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/d", "/far/away", recursive=True)
    ids = [
        [document.id for shard in shards({path: "ru"}) for document in read(shard)]
        for path in (f"{tmp_path}/d", "memory://far/away", "memory://far/away/**/*.jsonl")
    ]
    memory.rm("/far", recursive=True)
    assert ids == [[identity("a.jsonl", 0), identity("b/c.jsonl", 0)]] * 3


def test_small_text_files_are_read_as_one_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "SHARD_BYTES", 3 * 2**10)
    put(tmp_path, *(f"{n}.txt" for n in range(7)))
    found = shards({str(tmp_path): ""})
    assert [[file.name for file in one.files] for one in found] == [
        ["0.txt", "1.txt", "2.txt"], ["3.txt", "4.txt", "5.txt"], ["6.txt"]
    ]  # fmt: skip
    assert [one.name for one in found] == ["0.txt", "3.txt", "6.txt"]


def test_small_files_of_other_kinds_are_read_as_one_shard_and_give_the_same(tmp_path, monkeypatch):
    put(tmp_path, *(f"in/{n}.jsonl" for n in range(8)))
    for n in range(8):
        (tmp_path / f"in/{n}.jsonl").write_text(f"{LINES[n % 5]}\n" * (50 if n == 3 else 1))
    apart = [one for shard in shards({f"{tmp_path}/in": ""}) for one in read(shard)]
    monkeypatch.setattr(inputs, "JOINED", 3 * 2**10)
    joined = shards({f"{tmp_path}/in": ""})
    assert [[file.name[0] for file in one.files] for one in joined] == [
        [*"012"], ["3"], [*"456"], ["7"]
    ]  # fmt: skip
    assert [one for shard in joined for one in read(shard)] == apart
    # each file has its own language
    codes = ("ru", "de", "")
    [mixed] = shards({f"{tmp_path}/in/{n}.jsonl": codes[n] for n in (2, 0, 1)})
    assert [one.language for one in read(mixed)] == [*codes]


def test_a_corpus_knows_its_languages_and_its_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(written, "STRETCH", 50)
    path = str(tmp_path / "corpus")
    entries = {
        source: [written.write_shard(path, source, 0, 1, [(text, "x", 1)], 0, ".jsonl.gz")]
        for source, text in (("de", SENTENCES["de"][0] * 5), ("ru", TEXTS[0]))
    }
    written.write_manifest(path, entries)
    put(path, "packages/x.jsonl")
    found = shards({path: ""})
    assert [(one.name, one.files[0].language) for one in found] == [
        (f"{code}/train-00000-of-00001.jsonl.gz", code) for code in ("de", "ru")
    ]
    assert [texts(read(one)) for one in found] == [[SENTENCES["de"][0] * 5], [TEXTS[0]]]
    (tmp_path / "corpus" / found[0].name).unlink()
    with pytest.raises(UserError, match=r"jsonl\.gz is missing; make the corpus again\."):
        shards({path: ""})


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "there is nothing to clean"),
        ({"{}/none": ""}, r"there is nothing at .*/none; the nearest name there is one\."),
        ({"{}/one/*.wet": ""}, r"\*.wet has nothing to read: name .warc"),
        ({"{}/one": "german"}, 'is said to be in "german", which is no language\'s code'),
        ({"{}/one": "", "{}/one/*.jsonl": ""}, r"one/a.jsonl is in two inputs; name it in one"),
    ],
)
def test_inputs_that_cannot_be(tmp_path, inputs, words):
    put(tmp_path, "one/a.jsonl")
    with pytest.raises(UserError, match=words):
        shards({path.format(tmp_path): language for path, language in inputs.items()})


# --- parts of large files


def awkward_lines(chance):
    """Lines of a corpus: documents of one line and of several, and what is no document."""
    for number in range(chance.randrange(1, 40)):
        kind = chance.randrange(8)
        text = chance.choice(TEXTS) * chance.randrange(4)
        count = chance.randrange(2, 5) if kind == 0 else 1
        for part in range(1, count + 1):
            more = {"part": part, "more": part < count} if count > 1 else {}
            yield json.dumps({"text": f"{number} {part} {text}"} | more, ensure_ascii=False)
        if kind == 1:  # one that never goes on, and one that never began
            yield json.dumps({"text": "torn", "part": chance.randrange(1, 3), "more": True})
        yield from {2: [""], 3: ["no json"], 4: ['{"text": 5}'], 5: ["x" * 500]}.get(kind, [])


def test_a_part_of_a_file_gives_what_it_gives_in_the_whole(tmp_path, monkeypatch):
    for module in (documents, inputs):
        monkeypatch.setattr(module, "LONGEST_LINE", 400)
    file, chance, most = tmp_path / "a.jsonl", random.Random(5), 0
    for _ in range(60):
        ending = chance.choice(["", "\n", "\r\n"])
        file.write_text("\n".join(awkward_lines(chance)) + ending, "utf-8")
        monkeypatch.setattr(parts, "PART", 2**28)
        [whole] = shards({str(file): "ru"})
        monkeypatch.setattr(parts, "PART", chance.choice([90, 300, 1500]))
        found = shards({str(file): "ru"})
        assert [item for shard in found for item in read(shard)] == list(read(whole))
        assert len({shard.name for shard in found}) == len(found)
        assert sum(shard.bytes for shard in found) == whole.bytes
        most = max(most, len(found))
    assert most > 9


def test_row_groups_are_read_apart_with_their_rows_numbers(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    texts = [None if n == 4 else f"{n} {TEXTS[0]}" for n in range(11)]
    parquet.write_table(pyarrow.table({"text": texts}), file, row_group_size=2)
    [whole] = shards({str(file): "ru"})
    monkeypatch.setattr(parts, "PART", whole.bytes // 4)
    found = shards({str(file): "ru"})
    assert [shard.files[0].begin for shard in found] == [0, 1, 2, 3, 4, 5]
    assert [item for shard in found for item in read(shard)] == list(read(whole))
    file.write_bytes(file.read_bytes()[:-9])
    [item] = [item for shard in shards({str(file): "ru"}) for item in read(shard)]
    assert item.reason.startswith("is damaged or no Parquet file")


def test_what_is_compressed_is_read_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART", 20)
    items = found(tmp_path / "a.jsonl.gz", gzipped("\n".join(LINES).encode()))
    assert texts(items) == TEXTS
