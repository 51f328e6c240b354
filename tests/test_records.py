"""Files of records: checked first, kept as they are done, and every field where it was."""

import contextlib
import importlib
import json
import re
import signal

import jax
import pytest

from polylm_jax.__main__ import INTERRUPTED, main
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.decode.chat import decode_after
from polylm_jax.errors import UserError
from polylm_jax.jsonl import Record
from polylm_jax.records import results
from polylm_jax.verbs.model_of import model_of
from tests import scripted

GENERATE = importlib.import_module("polylm_jax.verbs.generate")
SCORE = importlib.import_module("polylm_jax.verbs.score")
CHAT = importlib.import_module("polylm_jax.verbs.chat")


@pytest.fixture(scope="module", autouse=True)
def opened_once():
    """Each run is opened once, so that nothing is compiled twice."""
    models = {}

    @contextlib.contextmanager
    def once(given):
        if given.run not in models:
            with model_of(given) as model:
                models[given.run] = model, jax.sharding.get_mesh()
        model, mesh = models[given.run]
        with jax.set_mesh(mesh):
            yield model

    with pytest.MonkeyPatch.context() as patch:
        for verb in (GENERATE, SCORE, CHAT):
            patch.setattr(verb, "model_of", once)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return scripted.babbles(tmp_path_factory.mktemp("records"), scripted.tokenizer()[0])


@pytest.fixture(autouse=True)
def ctrl_c():
    """Keeps it as it was."""
    former = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, former)


def write(file, records):
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    file.write_text("\n".join(lines) + "\n")
    return file


def read(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def generate(run, tmp_path, *flags, new=4, out="texts.jsonl"):
    asked = f"--prompts={tmp_path}/asked.jsonl"
    out = f"--out={tmp_path}/{out}"
    return main(
        ["generate", f"--run={run}", asked, out, f"--gin.sampling.new_tokens={new}", *flags]
    )


LONG = {"prompt": "name " * 100}


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (LONG, "tokens but the model's context is 64; shorten it"),
        ({"prompt": 3}, 'is not a record {"prompt": TEXT}'),
        ("[]", "is not a record"),
        ('{"prompt": "a', "is not a record"),
        ({"prompt": "a", "text": "mine"}, 'has a field "text"'),
        ({"prompt": "a", "ended": 1}, 'has a field "ended"'),
    ],
)
def test_a_bad_line_is_named_before_any_work(record, sentence, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(GENERATE, "_answers", None)
    write(tmp_path / "asked.jsonl", [{"prompt": "a"}, "", record, {"prompt": "b"}])
    assert generate(run, tmp_path) == 1
    error = capsys.readouterr().err
    assert f" {tmp_path}/asked.jsonl:3 " in error
    assert sentence in error
    assert [path.name for path in tmp_path.iterdir()] == ["asked.jsonl"]


def test_records_that_cannot_be_used_may_be_skipped(run, tmp_path, capsys):
    given = [{"prompt": "a", "id": 7}, LONG | {"id": 8}, "nonsense", {"id": 9}, {"prompt": "猫"}]
    write(tmp_path / "asked.jsonl", given)
    assert generate(run, tmp_path, "--skip", "--batch=1") == 0
    found = read(tmp_path / "texts.jsonl")
    assert [record.get("id") for record in found] == [7, 8, None, 9, None]
    assert ["error" in record for record in found] == [False, True, True, True, False]
    assert "asked.jsonl:2 has 300 tokens but" in found[1]["error"]
    assert "3 have an error" in capsys.readouterr().out


def stop_after(monkeypatch, module, name, calls, error):
    """Lets a function be called so often, and then never again; returns the calls' arguments."""
    real, made = getattr(module, name), []

    def counted(*arguments):
        if len(made) == calls:
            raise error
        made.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(module, name, counted)
    return made


def test_a_full_disk_is_one_sentence_and_what_is_done_stays(tmp_path, capsys, largest_file):
    asked = [Record(f"line {n}", {"prompt": "a"}) for n in range(9)]
    made = {"made_from": "a test"}

    def keep(letters):
        with results(asked, str(tmp_path / "texts.jsonl"), made, "prompts") as kept:
            before = list(kept.left)
            for number in before:
                kept.add({number: {"text": letters * "x"}})
        return before

    largest_file(10_000)
    with pytest.raises(UserError, match=r"no room left for .*texts\.jsonl\.partial and what"):
        keep(3000)
    assert not (tmp_path / "texts.jsonl").exists()
    largest_file(100_000)
    assert keep(1) == [3, 4, 5, 6, 7, 8]
    assert len((tmp_path / "texts.jsonl").read_text()) > 9000
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]


def test_what_was_done_before_a_stop_is_not_done_again(run, tmp_path, capsys, monkeypatch):
    prompts = [{"prompt": "name " * n, "id": n} for n in (3, 1, 2, 5, 4)]
    write(tmp_path / "asked.jsonl", prompts)
    flags = ["--batch=2", "--gin.sampling.temperature=1.0", "--samples=2"]
    assert generate(run, tmp_path, *flags, out="whole.jsonl") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, GENERATE, "_answers", 3, KeyboardInterrupt)
        assert generate(run, tmp_path, *flags) == INTERRUPTED
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("polylm generate: interrupted; what is done is kept in ")
    partial = tmp_path / "texts.jsonl.partial"
    assert not (tmp_path / "texts.jsonl").exists()
    # killed while it wrote: the last line is cut
    partial.write_bytes(partial.read_bytes()[:-5])
    with monkeypatch.context() as patch:
        made = stop_after(patch, GENERATE, "_answers", 99, None)
        assert generate(run, tmp_path, *flags) == 0
    assert sum(len(tasks) for _, tasks in made) == 10 - 5
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert (tmp_path / "texts.jsonl").read_bytes() == whole
    assert [record["id"] for record in read(tmp_path / "whole.jsonl")] == [
        n for n in (3, 1, 2, 5, 4) for _ in range(2)
    ]
    assert not partial.exists()


@pytest.mark.parametrize("change", ["prompts", "settings"])
def test_what_was_done_of_something_else_is_not_taken(change, run, tmp_path, capsys, monkeypatch):
    write(tmp_path / "asked.jsonl", [{"prompt": "a"}, {"prompt": "bb"}])
    with monkeypatch.context() as patch:
        stop_after(patch, GENERATE, "_answers", 1, KeyboardInterrupt)
        assert generate(run, tmp_path, "--batch=1") == INTERRUPTED
    if change == "prompts":
        write(tmp_path / "asked.jsonl", [{"prompt": "c"}, {"prompt": "bb"}])
    made = stop_after(monkeypatch, GENERATE, "_answers", 99, None)
    assert generate(run, tmp_path, "--batch=1", new=5 if change == "settings" else 4) == 0
    assert len(made) == 2
    assert "begun anew" in capsys.readouterr().err


def test_a_file_that_is_not_ours_is_left_alone(run, tmp_path, capsys):
    write(tmp_path / "asked.jsonl", [{"prompt": "a"}])
    mine = write(tmp_path / "texts.jsonl.partial", ["mine"])
    assert generate(run, tmp_path) == 1
    assert "is in the way" in capsys.readouterr().err
    assert mine.read_text() == "mine\n"


def test_scores_go_on_too_and_keep_what_is_the_users(run, tmp_path, capsys, monkeypatch):
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "scores.jsonl"
    records = [{"context": "name " * n, "continuation": "is", "id": n} for n in range(12)]
    command = ["score", f"--run={run}", f"--pairs={pairs}", f"--out={out}", "--batch=1"]
    command.append("--gin.evaluation.row_length=16")
    write(pairs, [*records, {"context": "a", "continuation": "b", "tokens": "mine"}])
    assert main(command) == 1
    assert 'pairs.jsonl:13 has a field "tokens"' in capsys.readouterr().err
    write(pairs, [*records, {"context": "a", "continuation": ""}])
    assert main(command) == 1
    assert "pairs.jsonl:13 has an empty continuation" in capsys.readouterr().err
    assert main([*command, "--skip"]) == 0
    whole = read(out)
    assert "pairs.jsonl:13 has an empty" in whole.pop()["error"]
    write(pairs, records)

    real = SCORE.likelihoods

    def interrupted(*given):
        *asked, done, known = given

        def once(scores):
            done(scores)
            raise KeyboardInterrupt

        return real(*asked, once, known)

    out.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(SCORE, "likelihoods", interrupted)
        assert main(command) == INTERRUPTED
    assert not out.exists()
    assert main(command) == 0
    assert re.search("[1-9] of 12 are done already", capsys.readouterr().out)
    found = read(out)
    assert [record["id"] for record in found] == list(range(12))
    for one, other in zip(found, whole, strict=True):
        assert one["log_likelihood"] == pytest.approx(other["log_likelihood"], rel=1e-5)


def test_samples_differ_and_come_again(run, tmp_path):
    write(tmp_path / "asked.jsonl", [{"prompt": "The name"}, {"prompt": "a"}, {"prompt": "a"}])
    flags = ["--samples=3", "--gin.sampling.temperature=1.0"]
    assert generate(run, tmp_path, *flags, new=8) == 0
    found = read(tmp_path / "texts.jsonl")
    assert [record["sample"] for record in found] == [0, 1, 2] * 3
    assert len({record["text"] for record in found}) == 9  # a prompt asked again is drawn anew
    assert generate(run, tmp_path, *flags, "--batch=2", new=8, out="again.jsonl") == 0
    assert read(tmp_path / "again.jsonl") == found
    assert generate(run, tmp_path, *flags[1:], new=8, out="one.jsonl") == 0
    assert read(tmp_path / "one.jsonl")[0]["text"] == found[0]["text"]


def test_samples_of_the_best_token_are_refused(run, tmp_path, capsys):
    write(tmp_path / "asked.jsonl", [{"prompt": "a"}])
    assert generate(run, tmp_path, "--samples=2") == 1
    assert "give --gin.sampling.temperature" in capsys.readouterr().err


def test_a_prompt_may_go_to_jsonl_and_may_be_empty(run, tmp_path, capsys):
    out = tmp_path / "texts.jsonl"
    command = ["generate", f"--run={run}", "--prompt=", "--prompt=a", "--gin.sampling.new_tokens=3"]
    assert main([*command, f"--out={out}"]) == 0
    shown, found = capsys.readouterr().out, read(out)
    assert [record["prompt"] for record in found] == ["", "a"]
    assert "".join(f"[{r['prompt']}]{r['text']}\n\n" for r in found)[:-1] in shown


def test_a_text_says_why_it_ended(tmp_path, capsys):
    model, pieces = scripted.tokenizer()
    said = " of the town is\n\nNamen"
    prompts = ["The name", "The name of", "a" * 61]
    run = scripted.says(tmp_path, model, pieces.encode(said), len(pieces.encode(prompts[0])))
    write(tmp_path / "asked.jsonl", [{"prompt": prompt} for prompt in prompts])

    def found(*flags, new=40):
        assert generate(run, tmp_path, *flags, new=new) == 0
        return [(record["text"], record["ended"]) for record in read(tmp_path / "texts.jsonl")]

    assert found()[0] == (said, "eos")
    assert found(new=1)[0][1] == "length"
    stop = '--gin.sampling.stop=("zzz", "own is", "\\n\\n")'
    assert found(stop)[0] == (" of the t", "stop")
    assert found('--gin.sampling.stop=("\\n\\n",)')[0] == (" of the town is", "stop")
    assert found('--gin.sampling.stop=("zzz",)') == found()
    assert generate(run, tmp_path, '--gin.sampling.stop=("",)') == 1
    assert "sampling.stop[0] is empty" in capsys.readouterr().err
    assert generate(run, tmp_path, stop, "--gin.sampling.beams=2") == 1
    assert "sampling.stop = " in capsys.readouterr().err


def test_a_text_that_fills_the_context_says_so(run, tmp_path):
    _, pieces = scripted.tokenizer()
    prompt = "name " * 12
    room = 64 - len(pieces.encode(prompt))
    write(tmp_path / "asked.jsonl", [{"prompt": prompt}])
    assert generate(run, tmp_path, new=room) == 0
    assert read(tmp_path / "texts.jsonl")[0]["ended"] in ("length", "eos")
    assert generate(run, tmp_path, new=room + 9) == 0
    assert read(tmp_path / "texts.jsonl")[0]["ended"] in ("context", "eos")


@pytest.mark.parametrize(
    "flags",
    [
        {},
        scripted.SPACED,
        scripted.SPACED | {"model_type": "bpe"},
        {"add_dummy_prefix": True},
        {"remove_extra_whitespaces": True},
    ],
)
def test_a_continuation_has_what_the_joint_text_has(flags):
    model, pieces = scripted.tokenizer(**flags)
    tokenizer = Tokenizer(model)
    for text in (*scripted.TEXT[:6], " The  name of ｱ 猫 of", "é ﬁ 👩‍👧 x"):
        ids = pieces.encode(text)
        for cut in range(len(ids) + 1):
            head, whole = pieces.decode(ids[:cut]), pieces.decode(ids)
            if not whole.startswith(head):  # inside a character
                continue
            assert head + decode_after(tokenizer, ids[:cut], ids[cut:]) == whole
            assert decode_after(tokenizer, [2], ids) == whole


def test_bytes_that_are_no_character_are_marked_as_sentencepiece_does():
    model, pieces = scripted.tokenizer()
    ids = [pieces.piece_to_id(f"<0x{byte:02X}>") for byte in b"\xe4\xb8a\xf0\x9f\x91\xff\xe4\xb8"]
    assert decode_after(Tokenizer(model), [], ids) == pieces.decode(ids)


@pytest.mark.parametrize("flags", [pytest.param({}, marks=pytest.mark.rare), scripted.SPACED])
def test_the_space_of_a_join_is_in_files_streams_and_chats(flags, tmp_path, capsys, monkeypatch):
    model, pieces = scripted.tokenizer(**flags)
    asked, whole = "The name", "The name of the town is"
    begin = len(pieces.encode(asked))
    script = [*pieces.encode(whole)[begin:], 0, 1]  # <unk> and <s> give nothing
    run = scripted.says(tmp_path, model, script, begin)
    assert main(["generate", f"--run={run}", f"--prompt={asked}"]) == 0
    assert "[The name] of the town is\n" in capsys.readouterr().out
    write(tmp_path / "asked.jsonl", [{"prompt": asked}])
    assert generate(run, tmp_path, new=20) == 0
    [record] = read(tmp_path / "texts.jsonl")
    assert record["prompt"] + record["text"] == whole
    lines = iter([asked, "/stop"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    chat = ["chat", f"--run={run}", '--gin.chat.format="base"', "--gin.chat.temperature=0"]
    chat += ["--gin.chat.repetition_penalty=1", "--gin.chat.top_p=1.0"]
    assert main(chat) == 0
    assert " of the town is\n" in capsys.readouterr().out.splitlines(keepends=True)
    lines = iter([asked, "/stop"])
    assert main([*chat, '--gin.chat.stop=("town",)']) == 0
    assert " of the \n" in capsys.readouterr().out.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("beams=2", "so that no beams are searched"),
        ("length_penalty=0.5", "so that no beams are searched"),
        ('early_stopping="yes"', "choose one of no"),
    ],
)
def test_a_chat_refuses_what_it_would_not_heed(setting, sentence, run, capsys):
    assert main(["chat", f"--run={run}", f"--gin.chat.{setting}"]) == 1
    assert sentence in capsys.readouterr().err
