"""Every text can be shown on every terminal, and none of another's moves the cursor."""

import io
import json
import os
import sys

import pytest

from polylm_jax import console
from polylm_jax.errors import UserError
from polylm_jax.jsonl import has_form, read_records

EVIL = "\x1b]0;pwned\x07\x1b[2J\r\x9b31m\x7f tab\tline\n猫"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_what_a_file_gets():
    shown = console.visible(EVIL, Terminal())
    assert shown == "\\x1b]0;pwned\\x07\\x1b[2J\\x0d\\x9b31m\\x7f tab\tline\n猫"
    assert console.visible(EVIL, io.StringIO()) == EVIL


def test_the_live_line_keeps_its_own_escapes_only(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    line = console.LiveLine()
    line.show(f"at {EVIL[:3]}")
    line.say(f"read {EVIL[:3]}")
    assert sys.stderr.getvalue() == "\r\033[Kat \\x1b]0\r\033[Kread \\x1b]0\n"


def test_the_live_line_takes_one_line_of_a_narrow_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2)
    monkeypatch.setattr("os.get_terminal_size", lambda number: os.terminal_size((11, 3)))
    line = console.LiveLine()
    line.show("read 12345 of 9")
    line.show("read 猫猫猫猫猫猫")  # each as wide as two letters
    line.show("read 12345 of 9", last=True)
    said = sys.stderr.getvalue().split("\r\033[K")[1:]
    assert said == ["read 12345 ", "read 猫猫猫", "read 12345 of 9\n"]


def test_an_ascii_terminal_shows_plain_letters_and_escapes(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr("sys.stdout", out)
    console.ready()
    print("5.7 → 5.6 · a–b … 猫 \udcff")
    assert out.buffer.getvalue().decode() == "5.7 -> 5.6 | a-b ... \\u732b \\udcff\n"


def test_input_that_is_no_text_is_read_all_the_same(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a \xff b\n"), encoding="utf-8"))
    console.ready()
    assert input() == "a \ufffd b"


def test_a_flag_that_is_no_text_is_one_sentence():
    assert console.text_of_flag("猫") == "猫"
    with pytest.raises(UserError, match="are no text; give it in UTF-8"):
        console.text_of_flag("\udcff")


def test_records_come_from_a_pipe():
    read, write = os.pipe()
    os.write(write, b'{"prompt": "a"}\n')
    os.close(write)
    assert [r.content for r in read_records(f"/dev/fd/{read}", ("prompt",))] == [{"prompt": "a"}]
    os.close(read)


@pytest.mark.parametrize(
    "line", ['{"prompt": "a \\ud83d b"}', '{"prompt": "a", "id": ["\\udc00"]}']
)
def test_half_a_character_of_json_is_refused_with_its_line(line, tmp_path):
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps({"prompt": "whole: 😀"}) + "\n" + line)
    with pytest.raises(UserError, match=r"asked\.jsonl:2 is not a record"):
        read_records(str(file), ("prompt",))


@pytest.mark.parametrize(
    ("value", "form", "has"),
    [
        (3, int, True),
        (3, float, True),
        (3.5, int, False),
        (True, int, False),
        (float("nan"), float, False),
        (None, (float, type(None)), True),
        ({"a": 1, "more": []}, {"a": int}, True),
        ({}, {"a": int}, False),
        ({}, {"a?": int}, True),
        ({"a": "x"}, {"a?": int}, False),
        ({"x": 1, "y": 2}, {str: int}, True),
        ({"x": 1, "y": None}, {str: int}, False),
        ([1, 2], [int], True),
        ([1, [2]], [int], False),
        (4, range(5), True),
        (5, range(5), False),
        ("x", range(2**53), False),
        ([], frozenset(("x",)), False),
        ("x", frozenset(("x",)), True),
    ],
)
def test_a_form_says_what_json_may_be(value, form, has):
    assert has_form(value, form) == has
