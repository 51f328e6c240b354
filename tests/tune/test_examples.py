"""JSONL of four shapes to conversations: what is kept, what is dropped, what is refused where."""

import json
import random
import time

import pytest

from polylm_jax.decode.chat import Turn
from polylm_jax.errors import UserError
from polylm_jax.tune.examples import ExampleSettings, read

ASKED = {"instruction": "Say yes", "input": None, "output": "yes"}


def said(*roles_and_texts, keys=("role", "content")):
    return [dict(zip(keys, pair, strict=True)) for pair in roles_and_texts]


def written(folder, *rows, name="es.jsonl"):
    file = folder / name
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    file.write_bytes(b"\n".join(lines))
    return str(file)


def turns_of(folder, *rows, **settings):
    kept, _ = read([written(folder, *rows)], ExampleSettings(**settings))
    return [list(example.turns) for example in kept]


TALK = (("user", "Hi"), ("assistant", "Hello"), ("user", "And\n\nnow?"), ("assistant", " Bye\n"))


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        (ASKED, [Turn("Say yes", "yes")]),
        (ASKED | {"input": "", "id": 7, "tools": []}, [Turn("Say yes", "yes")]),
        (ASKED | {"input": "<noinput>"}, [Turn("Say yes", "yes")]),
        (ASKED | {"input": "Ninguno (No input required)"}, [Turn("Say yes", "yes")]),
        (ASKED | {"input": "no\ninput here"}, [Turn("Say yes\nno\ninput here", "yes")]),
        ({"prompt": "¿Qué?", "completion": " nada\n"}, [Turn("¿Qué?", " nada\n")]),
        ({"messages": said(*TALK)}, [Turn("Hi", "Hello"), Turn("And\n\nnow?", " Bye\n")]),
        (
            {
                "conversations": said(
                    ("human", "Hi"), ("gpt", "Hello"), ("human", "?"), keys=("from", "value")
                )
            },
            [Turn("Hi", "Hello")],
        ),
    ],
)
def test_each_shape_gives_its_turns_as_they_are(tmp_path, row, turns):
    assert turns_of(tmp_path, row) == [turns]


def test_columns_have_the_names_that_gin_gives_them(tmp_path):
    row = {"pregunta": "Di sí", "contexto": "ya", "respuesta": "sí"}
    columns = {"instruction": "pregunta", "input": "contexto", "output": "respuesta"}
    assert turns_of(tmp_path, row, columns=columns) == [[Turn("Di sí\nya", "sí")]]
    talk = {"chat": said(("user", "a"), ("gpt", "b"), keys=("who", "what"))}
    columns = {"messages": "chat", "role": "who", "content": "what"}
    assert turns_of(tmp_path, talk, columns=columns) == [[Turn("a", "b")]]
    with pytest.raises(UserError, match=r'examples\.columns has no "inputs"'):
        ExampleSettings(columns={"inputs": "x"})


DEFECTS = {
    "drop_none": ASKED | {"output": "None"},
    "drop_empty": ASKED | {"output": " \n"},
    "drop_merged": ASKED | {"output": "yes\n11. Input:\nno\n11. Output: no"},
    "drop_duplicates": ASKED,
}


@pytest.mark.parametrize("switch", DEFECTS)
def test_each_defect_is_dropped_and_counted_unless_switched_off(tmp_path, switch):
    file = written(tmp_path, ASKED, *[DEFECTS[switch]] * 4)
    kept, accounts = read([file], ExampleSettings(drop_duplicates=switch == "drop_duplicates"))
    [found] = accounts["es"].dropped.values()
    assert (len(kept), accounts["es"].read, accounts["es"].kept, found.count) == (1, 5, 1, 4)
    assert found.places == [f"{file}:{line}" for line in (2, 3, 4)]
    off = ExampleSettings(**{"drop_duplicates": False} | {switch: False})
    assert len(read([file], off)[0]) == 5


def test_rows_read_are_those_kept_and_those_dropped(tmp_path):
    dice = random.Random(4)
    rows = [ASKED | {"instruction": str(n)} for n in range(30)]
    rows += [{"prompt": f"p{n}", "completion": "c"} for n in range(30)]
    rows += [*DEFECTS.values(), {"messages": []}, {"messages": said(("user", "alone"))}] * 5
    rows += [ASKED | {"instruction": "\n", "output": "x"}, b"", b"  \r"] * 3
    dice.shuffle(rows)
    real = [row for row in rows if not isinstance(row, bytes)]
    kept, accounts = read(
        [written(tmp_path, *rows, name="es.jsonl"), written(tmp_path, ASKED, name="de.jsonl")],
        ExampleSettings(),
    )
    assert accounts["es"].read == len(real)
    dropped = {reason: found.count for reason, found in accounts["es"].dropped.items()}
    assert dropped == {
        "answer None": 5,
        "empty answer": 5,
        "later task inside": 5,
        "duplicate": 4,
        "no answer": 10,
        "empty question": 3,
    }
    assert len(kept) == accounts["es"].kept + accounts["de"].kept == 62
    for example in kept[:-1]:
        [turn] = example.turns
        row = rows[example.line - 1]
        assert turn.question in row.values()
        assert turn.answer in row.values()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"[1]", "not a JSON object"),
        (b'{"prompt": "half', "not a JSON object"),
        (b'{"prompt": "a", "completion": "\\ud800"}', "half a character"),
        ({"question": "a", "answer": "b"}, r"none of the columns.*examples\.columns"),
        (ASKED | {"prompt": "a", "completion": "b"}, "several of the shapes"),
        (ASKED | {"tools": [{"name": "f"}]}, r'calls of tools \("tools"\)'),
        (ASKED | {"images": ["a.png"]}, "media"),
        (ASKED | {"history": [["a", "b"]]}, "went before"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "prefer"),
        ({"prompt": said(("user", "a")), "completion": "b"}, 'under "prompt" what is no text'),
        ({"messages": "a"}, "no list of objects"),
        ({"messages": said(("user", [{"type": "text", "text": "a"}]))}, "what is no text"),
        (b"[" * 99_999, "not a JSON object"),
        ({"messages": said(("user", "a"), ("tool", "b"))}, 'the role "tool"'),
        ({"messages": said((["user"], "a"))}, "the role"),
        ({"messages": said(("user", "a"), ("user", "b"))}, "out of order"),
        ({"messages": said(("assistant", "a"), ("user", "b"))}, "out of order"),
        ({"messages": [*said(("user", "a")), {"role": "assistant", "tool_calls": [1]}]}, "tools"),
        ({"messages": said(("system", "a"), *TALK)}, r"system message.*examples\.system"),
    ],
)
def test_what_is_no_conversation_in_text_is_refused_with_its_line(tmp_path, row, message):
    file = written(tmp_path, ASKED, row)
    with pytest.raises(UserError, match=rf"es\.jsonl:2 .*{message}"):
        read([file], ExampleSettings())


@pytest.mark.parametrize(("system", "first"), [("join", "Be kind\nHi"), ("drop", "Hi")])
def test_a_system_message_goes_where_it_is_told_to(tmp_path, system, first):
    row = {"messages": said(("system", "Be kind"), *TALK)}
    [[turn, _]] = turns_of(tmp_path, row, system=system)
    assert turn.question == first


def test_thousands_of_empty_lines_take_no_time(tmp_path):
    row = {"prompt": "a", "completion": "b" + "\n" * 20_000}
    started = time.process_time()
    assert len(turns_of(tmp_path, row)) == 1
    assert time.process_time() - started < 2


def test_the_language_is_the_files_name_or_what_gin_says(tmp_path):
    files = [written(tmp_path, ASKED, name=name) for name in ("es.jsonl", "alpaca_data.json")]
    with pytest.raises(UserError, match=r'languages = \{"alpaca_data\.json": "xx"\}'):
        read(files, ExampleSettings())
    kept, accounts = read(files, ExampleSettings(languages={"alpaca_data.json": "en"}))
    assert [example.source for example in kept] == list(accounts) == ["es", "en"]


def test_a_file_with_nothing_to_learn_from_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing to learn from: answer None \(.*es\.jsonl:1\)"):
        read([written(tmp_path, DEFECTS["drop_none"])], ExampleSettings())
    with pytest.raises(UserError, match="it is empty"):
        read([written(tmp_path, b"")], ExampleSettings())
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read([str(tmp_path / "de.jsonl")], ExampleSettings())


def test_a_column_says_which_rows_are_one_group(tmp_path):
    rows = [ASKED | {"output": name, "of": group} for name, group in [("a", 0), ("b", "x")]]
    file = written(tmp_path, *rows, ASKED)
    groups = [example.group for example in read([file], ExampleSettings(group="of"))[0]]
    assert len(set(groups)) == 3
    assert [bool(group) for group in groups] == [True, True, False]
    with pytest.raises(UserError, match=r'no row has "off"; set examples\.group'):
        read([file], ExampleSettings(group="off"))
