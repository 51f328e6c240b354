"""Batches against the slow and obvious way, one character and one document at a time."""

import re
import unicodedata

import numpy as np
import pytest

from polylm_jax.data.clean import text
from polylm_jax.data.clean.text import Batch, Kind
from tests.data.clean.texts import documents
from tests.data.sentences import SENTENCES

TEXTS = documents()
SPACE = r"[\s\x1c-\x1f\x85\u2028\u2029]"
NEWLINE = r"[\n\x85\u2028\u2029]"


def kind(character):
    return Kind(text.kind_table()[ord(character)])


def is_word(character):
    return kind(character) in (*text.LETTERS, Kind.DIGIT)


def is_visible(character):
    return kind(character) not in text.BLANKS


def pieces(document, member):
    """Runs of members as strings; a mark belongs to what stands before it."""
    found, inside, base = [], False, " "
    for character in document:
        before, mark = base, kind(character) is Kind.MARK
        base = base if mark else character
        if not member(base) and not (mark and member(character)):
            inside = False
        elif inside and (mark or not {kind(character), kind(before)} & set(text.ALONE)):
            found[-1] += character
        else:
            found.append(character)
            inside = True
    return found


def strings(batch, spans):
    """The spans of each document as strings."""
    whole = batch.codes.tobytes().decode("utf-32-le", "surrogatepass")
    each = [whole[start:end] for start, end in zip(spans.starts, spans.ends, strict=True)]
    return [each[i:j] for i, j in zip(spans.offsets, spans.offsets[1:], strict=False)]


def test_every_letter_mark_digit_and_space_of_unicode_is_known_as_such():
    table = text.kind_table()
    codes = {}
    for code in range(0x20000):
        codes.setdefault(unicodedata.category(chr(code)), []).append(code)
    for category, expected in (
        *((f"L{one}", text.LETTERS) for one in "ultmo"),
        *((f"M{one}", (Kind.MARK, Kind.SYMBOL)) for one in "nce"),
        ("Nd", (Kind.DIGIT,)),
    ):
        assert text.among(table[codes[category]], expected).all()
    spaces = [code for code in range(0x20000) if chr(code).isspace()]
    assert np.flatnonzero(text.among(table, text.BLANKS)).tolist() == spaces


def test_words_and_chunks_are_those_of_a_plain_loop():
    batch = Batch.of(TEXTS)
    assert strings(batch, text.tokens(batch)) == [pieces(one, is_word) for one in TEXTS]
    visible = [pieces(one, is_visible) for one in TEXTS]
    assert strings(batch, text.chunks(batch)) == visible


def test_lines_and_paragraphs_are_what_stands_between_newlines():
    batch = Batch.of(TEXTS)
    for spans, between in (
        (text.lines(batch), NEWLINE),
        (text.paragraphs(batch), rf"{NEWLINE}(?:(?!{NEWLINE}){SPACE})*{NEWLINE}"),
    ):
        parts = [re.split(between, one) for one in TEXTS]
        stripped = [[re.sub(rf"^{SPACE}+|{SPACE}+$", "", part) for part in some] for some in parts]
        assert strings(batch, spans) == [list(filter(None, some)) for some in stripped]


def test_words_of_all_languages():
    batch = Batch.of(["Don’t stop, Zoë₂", "图书馆9点", "กำลัง", "도서관은", "שָׁלוֹם עולם"])
    assert strings(batch, text.tokens(batch)) == [
        ["Don", "t", "stop", "Zoë"],
        ["图", "书", "馆", "9", "点"],
        ["ก", "ำ", "ลั", "ง"],
        ["도서관은"],
        ["שָׁלוֹם", "עולם"],
    ]


def test_folding_keeps_words_and_nothing_else():
    folded = text.fold(Batch.of(TEXTS))
    for number, one in enumerate(TEXTS):
        words = "".join(chr(code) for code in text.fold_table()[[*map(ord, one)]] if code).split(
            " "
        )
        assert folded.text(number) == " ".join(filter(None, words))
    same = ["Ｔｅｓｔ　ＮＯ．１２", " test--no: 73!\n", "te\u00adst NO 45"]
    assert [text.fold(Batch.of(same)).text(i) for i in range(3)] == ["test no 00"] * 3
    # accents, the two i of Turkish and voiced kana are words of their own
    apart = ["má ma", "ı i", "か が", "ﾊﾟ"]
    assert [text.fold(Batch.of(apart)).text(i) for i in range(4)] == [
        "má ma",
        "ı i",
        "か が",
        "ハ\u309a",
    ]


def test_counts_are_those_of_the_characters():
    batch = Batch.of(TEXTS)
    for number, one in enumerate(TEXTS):
        expected = np.bincount([kind(c) for c in one], minlength=text.KINDS)
        assert (batch.counts[number] == expected).all()
        assert batch.text(number) == one


def test_hashes_are_equal_just_where_the_text_is():
    whole = "".join(TEXTS)
    batch = Batch.of(TEXTS)
    for size in (1, 3, 24):
        hashes = text.ngram_hashes(batch.prefix, size)
        windows = [whole[i : i + size] for i in range(len(whole) - size + 1)]
        assert len(hashes) == len(windows)
        pairs = set(zip(windows, hashes.tolist(), strict=True))
        assert len(pairs) == len(set(windows)) == len(set(hashes.tolist()))
    assert len(text.ngram_hashes(batch.prefix, len(whole) + 1)) == 0
    alone = [text.document_hashes(Batch.of([one]))[0] for one in TEXTS]
    assert (text.document_hashes(batch) == alone).all()


def test_bits_of_a_hash_are_even():
    prefix = text.prefix_hashes(np.arange(20_000))
    hashes = text.ngram_hashes(prefix, 5)
    ones = [(hashes >> np.uint64(bit) & np.uint64(1)).mean() for bit in range(64)]
    assert max(abs(share - 0.5) for share in np.array(ones)) < 0.02


def test_shingles_are_windows_of_the_scripts_length():
    texts = ["\n".join(some) for some in SENTENCES.values()]
    folded = text.fold(Batch.of([*texts, "", "short", "漢"]))
    sizes = dict.fromkeys(SENTENCES, 24) | {"th": 20, "ko": 14, "ja": 10, "zh": 8}
    expected = [*sizes.values(), 24, 24, 8]
    assert text.shingle_sizes(folded).tolist() == expected
    hashes, offsets = text.shingles(folded)
    seen = {}
    for number, size in enumerate(expected):
        one = folded.text(number)
        windows = [one[i : i + size] for i in range(max(len(one) - size + 1, bool(one)))]
        found = hashes[offsets[number] : offsets[number + 1]].tolist()
        assert [seen.setdefault(w, h) for w, h in zip(windows, found, strict=True)] == found
    assert len(set(seen.values())) == len(seen)


@pytest.mark.parametrize("texts", [[], [""], ["", "", "a", ""], ["\n"]])
def test_batches_of_nothing(texts):
    batch = Batch.of(texts)
    for spans in (text.tokens(batch), text.chunks(batch), text.lines(batch)):
        assert spans.offsets.tolist() == [0, *np.cumsum(["a" in one for one in texts])]
    assert len(text.shingles(text.fold(batch))[1]) == len(texts) + 1
