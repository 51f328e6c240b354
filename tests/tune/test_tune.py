"""polylm tune: a small model learns 64 answers by heart, stops after each, and goes on bitwise."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from polylm_jax import config
from polylm_jax.__main__ import main
from polylm_jax.data import tokenizer
from polylm_jax.data.rows import RowSettings
from polylm_jax.errors import UserError
from polylm_jax.model.lora import Lora, adapter_shapes
from polylm_jax.runs.log import of_kind, read_metrics
from polylm_jax.train import checkpoint
from polylm_jax.train.loop import train
from polylm_jax.tune.instruct import build, schedule_of
from tests.conftest import gin_flags
from tests.data.sentences import SENTENCES

SETTINGS = {
    "model.context": 64,
    "model.layers": 2,
    "model.heads": 4,
    "model.d_model": 64,
    "model.d_ff": 128,
    "mesh.data": 8,
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
    "optimizer.peak_learning_rate": 8e-3,
    "optimizer.weight_decay": 0.0,
    "rows.length": 64,
    "train.batch": 16,
    "train.checkpoint_every": 0,
    "train.validate_every": 0,
    "tune.epochs": 80.0,
    "tune.validation": 0.0,
    "chat.format": "multialpaca",
    "chat.keep_ends": True,
}


def pairs():
    """64 questions in two languages, whose answers nothing but memory can give."""
    dice = random.Random(8)
    found = {}
    for number in range(64):
        code = ("en", "es")[number % 2]
        words = " ".join(dice.sample(" ".join(SENTENCES[code]).split(), 3))
        found[f"{number}?"] = (code, words)
    return found


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory):
    """Flags of a run that has been tuned on the pairs."""
    folder = tmp_path_factory.mktemp("tuned")
    for code in ("en", "es"):
        rows = [
            {"instruction": question, "input": None, "output": answer}
            for question, (language, answer) in pairs().items()
            if language == code
        ]
        (folder / f"{code}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = tuple(str(folder / f"{code}.jsonl") for code in ("en", "es"))
    paths = {"tune.data": data, "rows.path": folder / "rows", "train.folder": folder / "run"}
    flags = gin_flags(tiny | SETTINGS | paths)
    assert main(["tune", *flags]) == 0
    return folder / "run", flags


def test_each_answer_is_given_word_for_word_and_ends_by_itself(tuned, tmp_path):
    run, _ = tuned
    asked, out = tmp_path / "asked.jsonl", tmp_path / "said.jsonl"
    asked.write_text("\n".join(json.dumps({"prompt": question}) for question in pairs()))
    files = [f"--run={run}", f"--prompts={asked}", f"--out={out}", "--batch=64"]
    greedy = {"sampling.temperature": 0.0, "sampling.new_tokens": 40}
    assert main(["generate", "--chat", *files, *gin_flags(greedy)]) == 0
    said = [json.loads(line) for line in out.read_text().splitlines()]
    wanted = [answer for _, answer in pairs().values()]
    assert sum(one["text"] == answer for one, answer in zip(said, wanted, strict=True)) >= 63


def test_chat_says_the_answers_too(tuned, monkeypatch, capsys):
    run, _ = tuned
    chosen = dict(list(pairs().items())[:3])
    typed = iter([line for question in chosen for line in (question, "/clear")])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed, "/stop"))
    greedy = {"chat.temperature": 0.0, "chat.repetition_penalty": 1.0, "chat.new_tokens": 40}
    capsys.readouterr()
    assert main(["chat", f"--run={run}", *gin_flags(greedy)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said[1:] if "Forgotten" not in line] == [a for _, a in chosen.values()]


def test_rows_show_names_what_each_token_is_for(tuned, capsys):
    _, flags = tuned
    capsys.readouterr()
    assert main(["rows", "show", "0", *flags]) == 0
    shown = capsys.readouterr().out
    question, (code, answer) = next(
        pair for pair in pairs().items() if f"[prompt]{pair[0]}\n\n[answer]" in shown
    )
    assert f"[prompt]{question}\n\n[answer]{answer}[end]</s>" in shown
    assert f"{code}.jsonl:" in shown
    assert main(["rows", "verify", *flags]) == 0


# --- through the trainer


@pytest.fixture(scope="module")
def flags_of_rows(tuned, tmp_path_factory):
    """Flags of a run over rows whose number a batch of 8 divides, and how many they are."""
    _, flags = tuned
    names = [flag.removeprefix("--gin.") for flag in flags]
    config.parse([], names)
    vocabulary = tokenizer.load(config.get("tokenizer").path)
    for length in range(40, 64):
        path = str(tmp_path_factory.mktemp("rows") / "rows")
        blocks = config.get("tune"), config.get("examples"), config.get("chat")
        made = build(*blocks, RowSettings(path, length), vocabulary)
        counts = {source: splits["train"]["rows"] for source, splits in made["sources"].items()}
        if sum(counts.values()) % 8 == 0:
            more = f"rows.path={path}", f"rows.length={length}", "train.batch=8", "init.std=0.05"
            return [*names, *more], counts
    raise AssertionError("no length of rows gives a multiple of 8")


def run_to(steps, folder, flags_of_rows, *more):
    """Trains to this step; returns the logged losses and the newest checkpoint's arrays."""
    flags, counts = flags_of_rows
    config.parse([], [*flags, f"train.folder={folder}", f"train.steps={steps}", *more])
    training, blocks = config.get("train"), ("model", "init", "compute", "mesh", "optimizer")
    train(
        training,
        *map(config.get, blocks),
        schedule_of(counts, config.get("tune").seed),
        config.get("rows").path,
        tokenizer.load(config.get("tokenizer").path),
        config.resolved(),
        config.get("lora"),
    )
    return losses_in(folder), arrays_in(folder)


def losses_in(folder):
    return [record["loss"] for record in of_kind(read_metrics(str(folder)), "train")]


def arrays_in(folder):
    manager = checkpoint.open_existing(str(folder))
    return manager.restore(manager.latest_step())["state"]


def test_a_run_goes_on_bitwise_at_an_epochs_border_and_inside_one(flags_of_rows, tmp_path):
    epoch = sum(flags_of_rows[1].values()) // 8
    assert epoch > 1
    last = 2 * epoch + 1
    losses, whole = run_to(last, tmp_path / "whole", flags_of_rows)
    assert len(set(losses)) == last
    for step in (epoch, epoch + 1, last):
        again, state = run_to(step, tmp_path / "stopped", flags_of_rows)
    assert again == losses
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    other = "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"
    moved, _ = run_to(last + 1, tmp_path / "stopped", flags_of_rows, *other)
    assert moved[:last] == losses


KILLED = """
import sys
from tests.faults import child
log, step, *arguments = sys.argv[1:]
child.run(arguments, log, "killed", int(step))
"""


@pytest.mark.rare
@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "adapters"])
def test_a_run_that_is_killed_in_its_second_epoch_goes_on_bitwise(
    tuned, flags_of_rows, tmp_path, lora
):
    flags, counts = flags_of_rows
    epoch = sum(counts.values()) // 8
    more = ["tune.epochs=3.0", "train.checkpoint_every=1"]
    more += [f"train.start={tuned[0]}", "lora.rank=2"] if lora else []

    def tune(name, *own):
        given = [*flags, *more, f"train.folder={tmp_path / name}", *own]
        return ["tune", *(f"--gin.{flag}" for flag in given)]

    assert main(tune("whole")) == 0
    script = [sys.executable, "-c", KILLED, tmp_path / "log", str(2 * epoch)]
    exact = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    ended = subprocess.run([*script, *tune("killed", "mesh.cpu_devices=8")], env=exact)
    assert ended.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert epoch < len(losses_in(tmp_path / "killed")) < 2 * epoch
    assert main(tune("killed")) == 0
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert losses_in(killed) == losses_in(whole)
    assert len(losses_in(whole)) == 3 * epoch
    jax.tree.map(np.testing.assert_array_equal, arrays_in(killed), arrays_in(whole))


def test_a_run_begins_with_anothers_parameters(tuned, flags_of_rows, tmp_path):
    start = f"train.start={tuned[0]}"
    losses, _ = run_to(2, tmp_path / "full", flags_of_rows, start)
    assert losses[0] < 0.5 < 6 < run_to(1, tmp_path / "fresh", flags_of_rows)[0][0]
    with pytest.raises(UserError, match=r"has model\.layers = 2; set the same here"):
        run_to(1, tmp_path / "other", flags_of_rows, start, "model.layers=1")


def test_adapters_alone_are_trained_and_saved_beside_their_base(tuned, flags_of_rows, tmp_path):
    lora = "lora.rank=2", f"train.start={tuned[0]}"
    losses, state = run_to(2, tmp_path / "lora", flags_of_rows, *lora)
    assert losses[0] < 0.5
    shapes = adapter_shapes(config.get("model"), Lora(2))
    assert {name: x.shape for name, x in state["params"].items()} == {
        name: shape.shape for name, shape in shapes.items()
    }
    assert all(x.any() for x in state["params"].values())
    again, _ = run_to(3, tmp_path / "lora", flags_of_rows, *lora)
    assert again[:2] == losses
    run_to(1, tmp_path / "base", flags_of_rows)
    with pytest.raises(UserError, match="trained beside another base"):
        run_to(4, tmp_path / "lora", flags_of_rows, "lora.rank=2", f"train.start={tmp_path}/base")
    with pytest.raises(UserError, match=r"name that run in train\.start"):
        run_to(1, tmp_path / "none", flags_of_rows, "lora.rank=2")


PEER = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, question, answer = sys.argv[1:]
model, fast = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
said = []
for asked in json.load(open(question)):
    told = fast.apply_chat_template(
        [{"role": "user", "content": asked}], return_tensors="pt", return_dict=True
    )
    ids = model.generate(**told, do_sample=False, max_new_tokens=40)[0].tolist()
    said.append(ids[told["input_ids"].shape[1]:])
json.dump([[fast.decode(ids[:-1]), ids[-1]] for ids in said], open(answer, "w"))
"""


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))),
    reason="torch and transformers come with the extra `peer`",
)
def test_transformers_says_the_answers_from_the_export_and_stops(tuned, tmp_path):
    out, question, answer = (tmp_path / name for name in ("out", "question", "answer"))
    assert main(["export", f"--run={tuned[0]}", f"--to={out}"]) == 0
    question.write_text(json.dumps(list(pairs())))
    subprocess.run([sys.executable, "-c", PEER, out, question, answer], check=True)
    said = json.loads(answer.read_text())
    wanted = [[text, tokenizer.EOS] for _, text in pairs().values()]
    assert sum(one == other for one, other in zip(said, wanted, strict=True)) >= 63
