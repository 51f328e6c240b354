"""Tasks from replies, in all the ways in which writers number and name them."""

import time

import pytest

from polylm_jax.tune.lexicon import LEXICON, NO_INPUT, NOTHING
from polylm_jax.tune.parse import Block, parse, says


def blocks(text, finished=True, language="es"):
    return parse(text, finished, LEXICON[language].headers)


@pytest.mark.parametrize(
    "number", ["7. ", "7.", "７．", "٧. ", "๗. ", "7) ", "7、", "**7. ", "### 7. ", "  7. ", "7.\n"]
)
def test_a_task_is_numbered_in_any_digits(number):
    given = number.replace("\n", " ")
    text = f"{number}Instruction: Uno\n{given}Input: dos\n{given}Output: tres\ncuatro"
    assert blocks(text) == [Block("Uno", "dos", "tres\ncuatro")]


@pytest.mark.parametrize("language", LEXICON)
def test_headers_are_english_or_the_languages_own(language):
    names = [own or ("Instruction", "Input", "Output")[i] for i, (own, *_) in
             enumerate(LEXICON[language].headers)]  # fmt: skip
    text = "\n".join(f"4. {name}：{value}" for name, value in zip(names, "abc", strict=True))
    assert blocks(text, language=language) == [Block("a", "b", "c")]


def test_thousands_of_empty_lines_take_no_time():
    output = "a" + "\n" * 20_000 + "b"
    started = time.process_time()
    assert blocks(f"4. Instruction: a\n4. Output: {output}\n\n###") == [Block("a", None, output)]
    assert time.process_time() - started < 2


def test_what_only_looks_like_a_header_survives():
    output = "18.\n19.\n20.\n### fin\nInput: no\nInstruction: tampoco\n- 3. Entradas: 5\n---\nya"
    text = f"4. Instruction: Uno\n4. Input: <noinput>\n4. Output: {output}\n\n###\n5. Instruction: "
    assert blocks(text + "Dos\n5. Output: x")[0] == Block("Uno", "<noinput>", output)


def test_only_the_last_task_of_a_reply_that_was_cut_is_lost():
    text = "\n".join(f"{n}. Instruction: a\n{n}. Input: b\n{n}. Output: c" for n in range(4, 9))
    assert [block.cut for block in blocks(text, finished=False)] == [False] * 4 + [True]
    assert not any(block.cut for block in blocks(text))


@pytest.mark.parametrize(
    ("text", "block"),
    [
        # the release has 8 of these in its Spanish file
        (
            "4. Instruction: Traduce\n4. Input: uno\n5. Input: dos\n4. Output: one",
            Block("Traduce", "uno", None, cut_there=True),
        ),
        (
            "4. Instruction: Traduce\n4. Input: uno\n4. Output: one\n5. Output: two",
            Block("Traduce", "uno", "one", cut_there=True),
        ),
        (
            "4. Instruction: a\n4. Output: b\n4. Output: c",
            Block("a", None, "b", cut_there=True),
        ),
        ("4. Instruction: a\nInput: b\nOutput: c", Block("a", "b", "c")),
        (
            "4. Instruction: a\n4. Input:\nInput: b\nOutput: c\n4. Output: d",
            Block("a", "Input: b\nOutput: c", "d"),
        ),
        ("4. Instruction: a\n4. Input: b", Block("a", "b", None)),
        ("Claro:\n\n4. Instruction: a\n4. Output: b", Block("a", None, "b")),
        ("Instruction: a\nOutput: b", Block("a", None, "b")),
        (
            "<think>\n4. Instruction: z\n4. Output: z\n</think>\n4. Instruction: a\n4. Output: b",
            Block("a", None, "b"),
        ),
        ("4. Instruction: a\r\n4. Output: b\r\nc", Block("a", None, "b\nc")),
    ],
)
def test_a_field_ends_at_the_next_header_wherever_that_belongs(text, block):
    assert blocks(text) == [block]


def test_numbers_may_come_in_any_order_or_all_be_one():
    text = "9. Instruction: a\n9. Output: b\n2. Instruction: c\n2. Output: d\n"
    assert [block.instruction for block in blocks(text + text)] == ["a", "c", "a", "c"]


@pytest.mark.parametrize("text", ["", "Lo siento, no puedo.", "4. Output: b", "\n\n", "###"])
def test_a_reply_without_tasks_has_none(text):
    assert blocks(text) == []


def test_nothing_is_said_in_many_ways():
    for text in ("", " \n", "<noinput>", "None", "null", "N/A", "(none)", "**None**", "-", "nan."):
        assert says(text, NOTHING), text
    for text in ("нет", "なし", "<sin entrada>", "Keine Eingabe"):
        assert says(text, NO_INPUT), text
        assert not says(text, NOTHING), text
    assert not says("None of them", NO_INPUT)
