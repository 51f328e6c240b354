"""Every feature against its plain definition, one document at a time."""

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from polylm_jax.data.clean import rules, text
from polylm_jax.data.clean.text import Batch, Kind
from tests.data.clean.test_text import is_visible, is_word, kind, pieces
from tests.data.clean.texts import documents

JUNK = [
    "File | Edit | View | Help\nHome > News > 2024\n• one\n- two\n* three …",
    "Saved %s of %(n)s on {date} at ${host}, <b>bold</b> &amp; 100% sure, %1 {0}",
    "on 2024-01-31 and 31.1.24, 1/31/2024, 2024年1月, 2024년 1월, 3.14, 1.2.3.4.5, 12345-1-1",
    "see http://www.example.org/a and www.example.org or HTTPS://X.Y",
    "FranÃ§ais, naÃ¯ve, â€œquotedâ€\x9d, Ã, \ufffd, Spaß“ и Ð´Ð°",
    "wait... what.... no.. yes…\nand so on...\nend\u2026",
    "He said “no.” (Yes!) end.)\nIs it 3.5? www.a.b e.g. this?! 真的。好！",
    "same line\nsame line\n\nsame line\n\nother\n\nother\n\nother",
    "a b c d e a b c d e a b c d e f g h i j k a b c d e f g h i j k l m",
    "a\n\na\n\nb\n\nb\n\nb",
    "ha" * 100 + " " + "=" * 40,
    "English слово ελληνικά 漢字かな カナ ไทย",
]
LONG = 20_000
TEXTS = [
    *documents(noise=15, seed=1),
    *JUNK,
    ".",
    "..",
    "1-",
    "-1-1",
    "on 1.2.34",
    "{",
    "w",
    "w" * 3,
]


def part(some, whole):
    return some / max(whole, 1)


def strip(line):
    return re.sub(r"^[\s\x1c-\x1f]+|[\s\x1c-\x1f]+$", "", line)


def repeats(items):
    """Places of the items that have been before."""
    seen = set()
    return [at for at, item in enumerate(items) if item in seen or seen.add(item)]


def ngrams(words, size):
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def top(words, size):
    counts = Counter(ngrams(words, size))
    times, long = max(((n, len("".join(g))) for g, n in counts.items() if n > 1), default=(0, 0))
    return part(times * long, len("".join(words)))


def covered(words, size):
    inside = {at + i for at in repeats(ngrams(words, size)) for i in range(size)}
    return part(sum(len(words[at]) for at in inside), len("".join(words)))


def scripts(one):
    of = Counter(kind(c) for c in one if kind(c) in text.LETTERS and kind(c) != Kind.CAPITAL)
    of[Kind.HAN] += of.pop(Kind.KANA, 0)
    return part(sum(of.values()) - max(of.values(), default=0), sum(of.values()))


def dates(one, spans):
    numeric = [all(kind(c) not in text.LETTERS for c in one[i:j]) for i, j in spans]
    found = 0
    for at in range(len(spans) - 2):
        three = spans[at : at + 3]
        gaps = [one[three[i][1] : three[i + 1][0]] for i in (0, 1)]
        short = all(j - i <= 4 for i, j in three)
        found += short and all(numeric[at : at + 3]) and all(g in ("-", "/", ".") for g in gaps)
    return found + len(re.findall("[0-9](?=[年년])", one))


def sentences(one):
    inside = {*text.WORDS, Kind.TERMINAL} - set(text.ALONE)
    return sum(
        kind(c) is Kind.TERMINAL and (i + 1 == len(one) or kind(one[i + 1]) not in inside)
        for i, c in enumerate(one)
    )


def ended(line):
    last = kind(line[-1])
    return last is Kind.TERMINAL or (
        last is Kind.CLOSING and len(line) > 1 and kind(line[-2]) is Kind.TERMINAL
    )


def plain(one):
    """All features of one document."""
    words, chunks = pieces(one, is_word), pieces(one, is_visible)
    lines = [line for line in map(strip, re.split("[\n\x85\u2028\u2029]", one)) if line]
    blank = r"[\n\x85\u2028\u2029][^\S\n\x85\u2028\u2029]*[\n\x85\u2028\u2029]"
    paragraphs = [some for some in map(strip, re.split(blank, one)) if some]
    batch = Batch.of([one])
    spans = text.tokens(batch)
    spans = list(zip(spans.starts.tolist(), spans.ends.tolist(), strict=True))
    visible = [c for c in one if is_visible(c)]
    letters = [c for c in one if kind(c) in text.LETTERS]
    long = len("".join(words))
    ascii = "[a-zA-Z]"
    inner = "[\x80-\xbf" + bytes(range(0x80, 0xA0)).decode("cp1252", "ignore") + "]"
    counts = Counter(words)
    stops = {word for some in rules.STOP_WORDS.values() for word in some.split()}
    windows = [one[i : i + 10] for i in range(len(one) - 9)]

    def number(pattern):
        return len(re.findall(f"(?={pattern})", one))

    return {
        "characters": len(one),
        "words": len(words),
        "lines": len(lines),
        "sentences": sentences(one),
        "word_length": part(long, len(words)),
        "longest_word": max(map(len, chunks), default=0),
        "line_length": part(sum(map(len, lines)), len(lines)),
        "hashes": part(number("[#＃]"), len(words)),
        "ellipses": part(number("…") + len(re.findall(r"\.{3,}", one)), len(words)),
        "bullet_lines": part(sum(line[0] in "•‣▪●◦⁃∙▶►·・*-–—" for line in lines), len(lines)),
        "ellipsis_lines": part(sum(line.endswith(("...", "…")) for line in lines), len(lines)),
        "alphabetic": part(
            sum(any(kind(c) in text.LETTERS for c in chunk) for chunk in chunks), len(chunks)
        ),
        "stop_words": part(sum(word in stops for word in words), len(words)),
        "distinct_words": part(len(counts), len(words)),
        "entropy": -sum(n / len(words) * math.log(n / len(words)) for n in counts.values()),
        "duplicate_lines": part(len(repeats(lines)), len(lines)),
        "duplicate_line_characters": part(
            sum(len(lines[at]) for at in repeats(lines)), sum(map(len, lines))
        ),
        "duplicate_paragraphs": part(len(repeats(paragraphs)), len(paragraphs)),
        "duplicate_paragraph_characters": part(
            sum(len(paragraphs[at]) for at in repeats(paragraphs)), sum(map(len, paragraphs))
        ),
        **{f"top_{size}_gram": top(words, size) for size in (2, 3, 4)},
        **{f"duplicate_{size}_grams": covered(words, size) for size in range(5, 11)},
        "repeated_characters": part(len(repeats(windows)), len(windows)),
        "ended_lines": part(sum(map(ended, lines)), len(lines)),
        "newlines": part(number("[\n\x85\u2028\u2029]"), len(words)),
        "short_lines": part(sum(len(line) <= 30 for line in lines), len(lines)),
        "symbols": part(sum(kind(c) not in text.WORDS for c in visible), len(visible)),
        "invisible": part(sum(kind(c) is Kind.INVISIBLE for c in one), len(one)),
        "broken": part(number(f"\ufffd|[\xc2-\xde]{inner}|[\xe0-\xef]{inner}{inner}"), len(one)),
        "digits": part(sum(kind(c) is Kind.DIGIT for c in one), len(visible)),
        "numbers": part(
            sum(not any(kind(c) in text.LETTERS for c in word) for word in words), len(words)
        ),
        "dates": part(dates(one, spans), len(words)),
        "urls": part(number("://") + number(r"www\."), len(words)),
        "placeholders": part(
            number(rf"%({ascii}|[(1-9])|{{[a-zA-Z0-9_{{%]|\$[\[{{(]|<({ascii}|[/!])")
            + number(rf"&({ascii}|#)[a-zA-Z0-9x][a-zA-Z0-9;]"),
            len(words),
        ),
        "code": part(number(r"[{}\[\]<>\\|=;_~^`]"), len(visible)),
        "separators": part(sum(chunk in "|¦‖>›»<‹«·•/\\→←▸▶►★☆✓" for chunk in chunks), len(words)),
        "capitals": part(sum(kind(c) is Kind.CAPITAL for c in letters), len(letters)),
        "white_space": part(len(one) - len(visible), len(one)),
        "parentheses": part(number("[()（）［］【】「」\\[\\]]"), len(visible)),
        "other_scripts": scripts(one),
    }


def test_features_are_those_of_a_plain_loop():
    found = rules.measure(Batch.of(TEXTS))
    for number, one in enumerate(TEXTS):
        expected = plain(one)
        assert list(found) == list(expected) == [feature.name for feature in rules.FEATURES]
        for name, value in expected.items():
            assert found[name][number] == pytest.approx(value, abs=1e-12), (name, one)


def test_every_feature_varies_over_the_texts():
    for name, values in rules.measure(Batch.of(TEXTS)).items():
        assert len(np.unique(values)) > 2, name


def test_a_document_measures_the_same_to_the_last_bit_in_every_batch():
    whole = rules.measure(Batch.of(TEXTS))
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled = rules.measure(Batch.of([TEXTS[at] for at in order]))
    halves = [rules.measure(Batch.of(half)) for half in (TEXTS[:40], TEXTS[40:])]
    for name, values in whole.items():
        assert values[order].tobytes() == shuffled[name].tobytes(), name
        assert values.tobytes() == b"".join(half[name].tobytes() for half in halves), name
        assert np.isfinite(values).all()
        assert (values >= 0).all()


def test_junk_lies_beyond_the_limits_and_prose_within():
    prose = (
        "The library opens at nine and closes when the last reader goes home. It has stood on "
        "this corner for a hundred years, and nobody in the town can think of it as it was once."
        "\n\nIn winter the stove is lit at eight. The first are the men who read the papers "
        "of the day before, and then the children, who are not allowed to run. They do.\n"
    )
    menu = "Home | News | Sport | Login | %s\n" * 20
    batch = rules.measure(Batch.of([prose, menu]))

    def beyond(number):
        return {
            feature.name
            for feature in rules.FEATURES
            for least, most in [feature.limit]
            if (least is not None and batch[feature.name][number] < least)
            or (most is not None and batch[feature.name][number] > most)
        }

    assert beyond(0) == set()
    assert {"separators", "duplicate_lines", "placeholders", "ended_lines"} <= beyond(1)


def test_hostile_documents_take_no_longer():
    texts = ["a" * LONG, "\u0301" * LONG, "\n" * LONG, "." * LONG, "漢" * LONG, "a " * LONG]
    found = rules.measure(Batch.of(texts))
    assert found["duplicate_10_grams"][5] == pytest.approx(1 - 1 / LONG)
    assert found["words"].tolist() == [1, 0, 0, 0, LONG, LONG]


def test_the_page_has_every_feature_with_its_limit():
    page = (Path(__file__).parents[3] / "docs" / "cleaning_rules.md").read_text("utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert list(rows) == [feature.name for feature in rules.FEATURES]
    for feature in rules.FEATURES:
        bounds = [f"{bound:,}" for bound in feature.limit if bound is not None]
        assert all(bound in rows[feature.name] for bound in (*bounds, feature.source))


def test_sentences_end_as_each_script_has_it():
    found = rules.measure(
        Batch.of(
            [
                "བཀྲ་ཤིས་བདེ་ལེགས། ང་ལ་དེབ་ཅིག་ཡོད།",
                "ကျေးဇူးတင်ပါတယ်။ နေကောင်းလား။",
                "សូមអរគុណ។ ជំរាបលា។",
                "አመሰግናለሁ። ደህና ነህ፧",
                "ߒ ߓߘߊ߫ ߣߊ߫߹ ߌ ߣߌ߫ ߗߋ߫߹",
                "यह है। वह है।",
                "شكرا. كيف حالك؟",
            ]
        )
    )
    assert found["sentences"].tolist() == [2.0] * 7
    assert (found["ended_lines"] == 1).all()
