"""What repair mends, and what it must leave byte for byte."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polylm_jax.data.clean import repair as room
from polylm_jax.data.clean.repair import LONGEST_WORD, repair, repair_all
from polylm_jax.data.clean.text import Batch
from tests.data.sentences import SENTENCES

CLEAN = [
    "می‌خواهم 👩‍👧‍👦 क्‍ष \u2066isolated\u2069 \u200fעברית\u200e",
    "ＡＢＣ　１２３ ﾊﾝｶｸ “quotes” ‘’ «» ﬁ ﬂ … e\u0301 — ½",
    "「これは、テストです。」　全角の空白",
    "„Spaß“ und „Fuß“, „Gruß“ – „Maß“ „muß“",
    "NÃO, IRMÃ, SÃO; Â, Ã, â; Ä°, «CAFÉ», Ü° Ø±",
    "À l’été : « déjà vu » ; coût 5 €, voilà…",
    "ÃÂ ÀÁ ÐÞ ðþ Þórður sagði það",
    "def f(x):\n        return x\n\n\n\tif y:\n",
    "漢" * 5000,
    "ไทย" * 500,
    "የሰው፡ልጅ፡ሁሉ፡ሲወለድ፡ነጻና፡በክብርና፡በመብትም፡እኩልነት፡ያለው፡ነው።" * 9,  # ፡ parts words
    "ᨾᨶᩩᩔ" * 99,
    "ᬫᬦᬸᬱ" * 99,
    "བོད་ཡིག་" * 99,
    "ខ្មែរ\u200bភាសា" * 99,
    "word " * 400,
    "\u202bعربي\u202c",
]


@pytest.mark.parametrize("text", [*CLEAN, *("\n".join(some) for some in SENTENCES.values())])
def test_clean_text_comes_back_byte_for_byte(text):
    assert repair(text) == (text, {})


def shown(text, encoding="cp1252"):
    """The text as a program shows it that takes its UTF-8 for cp1252 or Latin-1."""
    return "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in text.encode())


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("language", SENTENCES)
def test_wrong_decoding_is_mended_in_every_language(language, encoding):
    text = "\n".join(SENTENCES[language])
    once = shown(text, encoding)
    assert repair(once)[0] == text
    assert repair(once)[1].keys() <= {"mojibake"}
    assert repair(shown(once, encoding))[0] == text


def test_one_unmistakable_place_is_enough():
    assert repair("the cafÃ© is open") == ("the café is open", {"mojibake": 1})
    assert repair("donâ€™t")[0] == "don’t"


def test_what_is_half_right_is_left():
    text = "ein CafÃ© für Änderungen, größer, schöner"
    assert repair(text) == (text, {})


@pytest.mark.parametrize(
    ("broken", "mended", "what"),
    [
        ("a\0b\x08c\x9fd", "abcd", {"controls": 3}),
        ("in\ufeffside", "inside", {"controls": 1}),
        ("a\ud800b \ud83d\ude00", "ab 😀", {"surrogates": 3}),
        ("\ufffe\U0001ffff\ufdd0x", "x", {"controls": 3}),
        ("\u202efdp.exe\u202c a \u202bb\u202c", "fdp.exe a \u202bb\u202c", {"overrides": 2}),
        ("\u202da\n\u202c", "a\n\u202c", {"overrides": 1}),
        ("one\r\ntwo\rthree", "one\ntwo\nthree", {"white_space": 2}),
        ("a\n\n\n\n\n\nb", "a\n\n\nb", {"white_space": 1}),
        ("a\r\n\r\n\r\n\r\n   \r\nb", "a\n\n\n   \nb", {"white_space": 6}),
        ("a \t  b   \nc    ", "a b\nc", {"white_space": 3}),
        ("see " + "x" * (LONGEST_WORD + 1) + " end", "see  end", {"long_words": 1}),
        ("漢字" + "=" * 999 + "漢字", "漢字漢字", {"long_words": 1}),
        ("x" * LONGEST_WORD, "x" * LONGEST_WORD, {}),
    ],
)
def test_each_kind_of_damage(broken, mended, what):
    assert repair(broken) == (mended, what)


@settings(deadline=None)  # the first call makes a table
@given(
    st.lists(
        st.text(
            alphabet=st.sampled_from("aéÃ©Â\xa0 \n\r\t\x1c\0\ufeff\u202eðâ€™漢\ud800\udc00"),
            max_size=9,
        ),
        max_size=9,
    )
)
def test_many_texts_are_mended_as_each_alone(texts):
    texts += ["x" * LONGEST_WORD, "", "y" * (LONGEST_WORD + 1), "a" * LONGEST_WORD]
    assert repair_all(texts) == [*map(repair, texts)]


def test_clean_text_is_not_looked_at_one_by_one():
    texts = ["\n".join(some) for some in SENTENCES.values()]
    assert not room._may_be_broken(Batch.of(texts)).any()
    assert room._may_be_broken(Batch.of([*texts, "a\0b", *texts])).tolist() == [
        *([False] * len(texts)),
        True,
        *([False] * len(texts)),
    ]


@given(st.text(alphabet=st.characters(categories=("L", "M", "N", "P", "S", "Zs")), max_size=60))
def test_what_has_no_control_and_no_wide_gap_is_left_but_for_mojibake(text):
    mended, what = repair(text)
    if "mojibake" not in what and "   " not in text:
        assert mended == text or "white_space" in what


@given(
    st.text(
        alphabet=st.sampled_from("aéÃ©Â\xa0 \n\r\t\0\ufeff\u202e\u202c漢\ud800\udc00"), max_size=80
    )
)
def test_what_comes_out_can_be_written_and_holds_no_control(text):
    mended, _ = repair(text)
    mended.encode()
    assert not set(mended) & {"\0", "\ufeff", "\u202e", "\r"}


def test_hostile_texts_take_no_longer():
    chance = random.Random(0)
    size = 30_000
    for text in ("a" * size, "Ã©" * size, "\u202e" * size, " " * size, "Ã" * size, "\n" * size):
        repair(text)
    repair("".join(chance.choices("aÃ©\u202e\u202c \n漢", k=size)))
