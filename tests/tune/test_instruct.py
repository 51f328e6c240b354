"""From JSONL to rows: the ids and marks of each example, what is left out, what the store says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from polylm_jax.data import tokenizer
from polylm_jax.data.curriculum import consumed, locate
from polylm_jax.data.rows import FIRST, LEARNED, RowSettings, open_store, verify
from polylm_jax.data.schedule import make_curriculum
from polylm_jax.decode.chat import ChatSettings
from polylm_jax.errors import UserError
from polylm_jax.tune.examples import ExampleSettings
from polylm_jax.tune.instruct import TuneSettings, build, schedule_of, steps_of
from tests.data.sentences import SENTENCES

LENGTH = 128
CHAT = ChatSettings(format="chat", keep_ends=True)


def written(folder, code, rows):
    file = folder / f"{code}.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(file)


def rows_of(code):
    """Talks of one or two answers."""
    said = SENTENCES[code]
    return [
        {
            "messages": [
                {
                    "role": ("user", "assistant")[i % 2],
                    "content": f"{n} {said[(n + i) % len(said)][:20]}",
                }
                for i in range(2 + 2 * (n % 2))
            ]
        }
        for n in range(40)
    ]


CODES = ("de", "es")  # without English, too, each row is read once an epoch


@pytest.fixture
def data(tmp_path):
    return tuple(written(tmp_path, code, rows_of(code)) for code in CODES)


@pytest.fixture(scope="module")
def vocabulary(tiny):
    return tokenizer.load(str(tiny["tokenizer.path"]))


@pytest.fixture
def rows(tmp_path):
    return RowSettings(str(tmp_path / "rows"), LENGTH, shard_rows=5)


def expected(row, plain):
    """Ids and what is learned, from SentencePiece and the format's own words."""
    ids, learned = [], []
    for number, message in enumerate(row["messages"]):
        if message["role"] == "user":
            between = "\n" if number else ""
            part = plain.encode(f"{between}<|user|>\n{message['content']}\n<|assistant|>\n")
        else:
            part = [*plain.encode(message["content"]), 2]
        ids += part
        learned += [message["role"] == "assistant"] * len(part)
    return ids, learned


def examples_in(store, source, split):
    """(ids, learned) of each example of the store, told by the marks alone."""
    count = store.rows(source, split)
    which, numbers = np.zeros(count, int), np.arange(count)
    tokens = store.read(source, numbers, split)
    marks = store.marks_mixed((source,), which, numbers, split)
    assert (tokens.dtype, marks.dtype) == (np.int32, np.uint8)
    assert tokens.shape == marks.shape == (count, LENGTH + 1)
    found = []
    for ids, bits in zip(tokens, marks, strict=True):
        for part in np.split(np.arange(LENGTH + 1), np.flatnonzero(bits & FIRST)[1:]):
            if ids[part].any():
                found.append((ids[part].tolist(), (bits[part] & LEARNED > 0).tolist()))
            else:
                assert not bits[part[1:]].any()
    return found


def test_the_store_holds_each_example_as_serving_would_send_it(data, vocabulary, rows):
    plain = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.model)
    manifest = build(TuneSettings(data, validation=0.2), ExampleSettings(), CHAT, rows, vocabulary)
    store = open_store(rows.path)
    assert (store.marked, store.sources) == (True, CODES)
    assert verify(store) == sum(
        2 * len(entry["shards"]) + 1 for s in manifest["sources"].values() for entry in s.values()
    )
    for code in CODES:
        wanted = [expected(row, plain) for row in rows_of(code)]
        sides = [examples_in(store, code, split) for split in ("train", "valid")]
        assert sorted(sides[0] + sides[1]) == sorted(wanted)
        assert 2 <= len(sides[1]) < 20
        entry = manifest["sources"][code]["train"]
        assert entry["tokens"] == sum(len(ids) for ids, _ in sides[0])
        assert entry["learned"] == sum(sum(learned) for _, learned in sides[0])
        places = [
            (o.file, o.line) for n in range(entry["rows"]) for o in store.origins("", code, n)
        ]
        said = [expected(rows_of(code)[line - 1], plain) for _, line in places]
        assert said == sides[0]
        assert {file for file, _ in places} == {
            next(f for f in data if f.endswith(f"{code}.jsonl"))
        }


def test_without_ends_each_answer_is_learned_behind_the_history_that_is_served(
    data, vocabulary, rows
):
    chat = ChatSettings(format="multialpaca")
    build(TuneSettings(data, validation=0), ExampleSettings(), chat, rows, vocabulary)
    found = examples_in(open_store(rows.path), "es", "train")
    talk = [message["content"] for message in rows_of("es")[1]["messages"]]
    texts = [f"{talk[0]}\n\n", f"{talk[0]}\n\n{talk[1]}\n{talk[2]}\n\n"]
    for prompt, answer in zip(vocabulary.encode(texts), vocabulary.encode(talk[1::2]), strict=True):
        learned = [False] * len(prompt) + [True] * (len(answer) + 1)
        assert ([*prompt, *answer, 2], learned) in found
    assert len(found) == 20 + 2 * 20


@pytest.mark.parametrize("keep_ends", [True, False])
def test_the_last_answer_alone_can_be_learned(data, vocabulary, rows, keep_ends):
    settings = TuneSettings(data, validation=0, learn="last")
    build(settings, ExampleSettings(), replace(CHAT, keep_ends=keep_ends), rows, vocabulary)
    found = examples_in(open_store(rows.path), "de", "train")
    assert len(found) == 40
    for ids, learned in found:
        assert np.diff(learned).sum() == 1  # a single stretch, to the end
        assert (ids[-1], learned[-1]) == (2, True)


def test_what_fits_no_row_is_dropped_and_counted_or_refused(tmp_path, vocabulary, rows, capsys):
    long = {"prompt": "x", "completion": "1 2 3 " * 60}
    file = written(tmp_path, "en", [long, *rows_of("en")])
    settings = TuneSettings((file,), validation=0)
    manifest = build(settings, ExampleSettings(), CHAT, rows, vocabulary)
    account = manifest["accounts"]["en"]
    assert account["read"] == 41
    assert account["dropped"] == {"too long": {"count": 1, "places": [f"{file}:1"]}}
    assert f"en: 1 dropped, too long: {file}:1" in capsys.readouterr().out
    other = replace(rows, path=rows.path + "2")
    with pytest.raises(UserError, match=r"en\.jsonl:1 has \d+ tokens and a row has room for 129"):
        build(replace(settings, too_long="refuse"), ExampleSettings(), CHAT, other, vocabulary)
    with pytest.raises(UserError, match='no example of "en" fits'):
        build(settings, ExampleSettings(), CHAT, replace(other, length=4), vocabulary)


def test_a_store_is_kept_or_refused_and_shards_do_not_matter(data, vocabulary, rows, capsys):
    settings = TuneSettings(data)
    first = build(settings, ExampleSettings(), CHAT, rows, vocabulary)
    assert build(settings, ExampleSettings(), CHAT, rows, vocabulary) == first
    assert "already made; kept" in capsys.readouterr().out
    with pytest.raises(UserError, match="was made from other text or with other settings"):
        build(replace(settings, seed=1), ExampleSettings(), CHAT, rows, vocabulary)

    def fingerprint(name, settings=settings, **other):
        new = replace(rows, path=rows.path + name, **other)
        return build(settings, ExampleSettings(), CHAT, new, vocabulary)["fingerprint"]

    assert fingerprint("a", shard_rows=1000) == first["fingerprint"]
    assert fingerprint("b", replace(settings, seed=1)) != first["fingerprint"]
    # the same tokens, other marks
    assert fingerprint("c", replace(settings, pack="strung")) != first["fingerprint"]


def test_a_store_of_files_that_have_other_languages_now_is_refused(
    tmp_path, data, vocabulary, rows
):
    build(TuneSettings(data[:1]), ExampleSettings(), CHAT, rows, vocabulary)
    (tmp_path / "moved").mkdir()
    moved, renamed = (tmp_path / name for name in ("moved/de.jsonl", "fr.jsonl"))
    for file in (moved, renamed):
        file.write_bytes(Path(data[0]).read_bytes())
    build(TuneSettings((str(moved),)), ExampleSettings(), CHAT, rows, vocabulary)
    with pytest.raises(UserError, match=r'fr\.jsonl was .*de\.jsonl .* "de", not "fr"; delete'):
        build(TuneSettings((str(renamed),)), ExampleSettings(), CHAT, rows, vocabulary)


def test_an_epoch_reads_each_row_once(data, vocabulary, rows):
    build(TuneSettings(data), ExampleSettings(), CHAT, rows, vocabulary)
    store = open_store(rows.path)
    counts = {source: store.rows(source) for source in store.sources}
    order = make_curriculum(schedule_of(counts, seed=3), counts, LENGTH)
    whole = sum(counts.values())
    for epoch in range(3):
        read = list(zip(*locate(order, epoch * whole, (epoch + 1) * whole), strict=True))
        assert len(set(read)) == whole
        np.testing.assert_array_equal(consumed(order, epoch * whole), order.rows * epoch)
    assert steps_of(whole, 2.0, whole) == 2
    assert steps_of(10, 1.5, 4) == 4


def test_a_group_is_held_out_in_all_languages_or_in_none(tmp_path, vocabulary, rows):
    groups = [n // 2 for n in range(40)]  # two rows of each language
    files = [
        written(tmp_path, code, [row | {"of": n} for row, n in zip(said, groups, strict=True)])
        for code in CODES
        for said in [rows_of(code)]
    ]
    settings = TuneSettings(tuple(files), validation=0.3)
    build(settings, ExampleSettings(group="of"), CHAT, rows, vocabulary)
    store = open_store(rows.path)
    held: dict[str, set[int]] = {}
    for code in CODES:
        trained = {
            groups[origin.line - 1]
            for n in range(store.rows(code))
            for origin in store.origins("", code, n)
        }
        assert len(trained) < 20
        held[code] = set(groups) - trained
        examples = examples_in(store, code, "valid")
        assert len(examples) == 2 * len(held[code])
    assert held["de"] == held["es"]
