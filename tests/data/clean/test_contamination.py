"""Items of a benchmark are found in documents, cut, edited and in other case; phrases are not."""

import gzip
import json

import numpy as np
import pytest

from polylm_jax.data.clean import contamination
from polylm_jax.data.clean.text import Batch, fold
from polylm_jax.errors import UserError
from tests.data.sentences import SENTENCES


def found(items, texts, times=None):
    index = contamination.index(iter([(f"i:{n}", text) for n, text in enumerate(items)]))
    hits = contamination.hits(index, fold(Batch.of(texts)))
    counts = np.bincount(hits[:, 1], minlength=len(index.hashes)) if times is None else times
    return index, contamination.held(index, hits, counts)


def long(code):
    return " ".join(SENTENCES[code])


def test_an_item_is_found_whatever_its_case_and_line_ends_and_with_its_share():
    items = [long(code)[:400] for code in ("en", "de", "zh", "th")]
    texts = [
        "Before. " + items[0].upper().replace(" ", "\n") + " After it.",
        items[1][: len(items[1]) // 2] + " and then another end of no interest to anybody",
        "".join(SENTENCES["zh"]),
        "nothing of it",
        long("th"),
    ]
    _, held = found(items, texts)
    assert held[:, :2].tolist() == [[0, 0], [2, 2], [4, 3]]
    assert held[[0, 2], 2].tolist() == [1000, 1000]  # the Chinese one has lost its spaces


def test_shares_are_those_of_plain_sets():
    item = long("fr")[:300]
    text = item[:250] + " tout autre chose"
    index = contamination.index(iter([("i", item)]))
    [plain], [other] = ([fold(Batch.of([t])).text(0)] for t in (item, text))
    windows = {plain[i : i + 50] for i in range(len(plain) - 49)}
    wanted = sum(w in other for w in windows)
    hits = contamination.hits(index, fold(Batch.of([text])))
    assert len(hits) == wanted
    assert len(index.hashes) == len(windows)
    _, [[_, _, share]] = found([item], [text])
    assert share == 1000 * wanted // len(windows)


def test_windows_never_cross_a_border_of_documents():
    item = long("es")[:120]
    index, held = found([item], [item[:60], item[60:]])
    assert not len(held)
    assert not len(contamination.hits(index, fold(Batch.of(["x" * 49, "x", ""]))))


def test_stock_phrases_do_not_count():
    item = "All rights reserved; please read the terms of use before you go on with this page."
    index, held = found([item], [item] * 3)
    assert len(held) == 3
    _, held = found([item], [item] * 3, np.full(len(index.hashes), 101))
    assert not len(held)


def test_items_are_the_lines_of_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.tsv").write_text("one\ttwo\nthree\n")
    (tmp_path / "b.jsonl").write_text(
        json.dumps({"q": "four", "n": 1, "a": ["five", "six"]}) + "\nbad"
    )
    (tmp_path / "c.png").write_bytes(b"\x89")
    assert list(contamination.read((str(tmp_path),))) == [
        ("a/x.tsv:1", "one\ntwo"),
        ("a/x.tsv:2", "three"),
        ("b.jsonl:1", "four\nfive\nsix"),
        ("b.jsonl:2", "bad"),
    ]
    with pytest.raises(UserError, match=r"clean\.evaluation="):
        list(contamination.read((str(tmp_path / "none"),)))


def test_a_list_of_json_has_items_and_a_line_end_in_a_text_is_none(tmp_path):
    records = [{"q": f"{n} a\u2028b", "choices": ["x", "y"]} for n in range(3)]
    for name, content in (
        ("a.json", records),
        ("b.json", {"version": "2", "data": records}),
        ("c.json", {"q": "one", "choices": ["x"]}),
    ):
        (tmp_path / name).write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\r\n\n" for one in records)
    (tmp_path / "d.jsonl").write_text(lines, "utf-8")
    (tmp_path / "e.txt").touch()
    texts = [f"{n} a\u2028b\nx\ny" for n in range(3)]
    assert [text for _, text in contamination.read((str(tmp_path),))] == [
        *texts, "2", *texts, "one\nx", *texts
    ]  # fmt: skip
    assert contamination.index([]).names == ()


def test_benchmarks_are_read_as_they_are_handed_out(tmp_path):
    """In Parquet or packed, as most are: what is passed over is trained on."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"q": f"{n} question", "choices": ["x", "y"], "answer": n} for n in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines = "".join(json.dumps(one) + "\n" for one in rows).encode()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "C.JSON").write_text(json.dumps(rows))
    texts = [f"{n} question\nx\ny" for n in range(3)]
    assert [text for _, text in contamination.read((str(tmp_path),))] == 3 * texts
    table = (tmp_path / "a.parquet").read_bytes()
    for name, content in (
        ("a.parquet", table[:4] + b"\xff" * 200 + table[204:]),
        ("b.jsonl.gz", gzip.compress(lines)[:-9]),
        ("a.parquet", b"PAR1" + bytes(99)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} is .*; mend it, or take it out"):
            list(contamination.read((str(tmp_path / name),)))


def test_items_that_are_too_short_are_told():
    assert contamination.index(iter([("a", "short"), ("c", long("en"))])).short == 1
