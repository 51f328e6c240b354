"""Trackers: Weights & Biases goes on in one run, and no tracker that fails stops a run."""

import errno
import importlib.machinery
import json
import os
import struct
import sys
import threading
import time
import types

import pytest

from polylm_jax.errors import UserError
from polylm_jax.train import tensorboard, weights_and_biases
from polylm_jax.train.metrics import Metrics
from tests.conftest import gin_flags
from tests.train.test_metrics import scalars

GIN = "train.steps = 9\ncurriculum.non_english = ((0.0, 0.3),)\ncompute.dtype = 'float32'\n"


class Runs:
    """A package that keeps what it is told: id -> what each init was given, and (step, values)."""

    def __init__(self, monkeypatch):
        self.inits, self.logged, self.finished = [], [], 0
        module = types.ModuleType("wandb")
        module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        module.init, module.Settings = self.init, dict
        self.module = module
        monkeypatch.setitem(sys.modules, "wandb", module)

    def init(self, **given):
        self.inits.append(given)
        return types.SimpleNamespace(
            offline=False, url="https://example.org/run", log=self.log, finish=self.finish
        )

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture
def runs(monkeypatch):
    return Runs(monkeypatch)


def train(folder, first, last, trackers=("wandb",)):
    """Steps from first to last; returns the metrics, closed."""
    with Metrics(str(folder), True, trackers, GIN) as metrics:
        metrics.start(first)
        for step in range(first + 1, last + 1):
            metrics.write({"kind": "other", "step": step, "loss": step / 4})
            if step % 2 == 0:
                bits = {"de": 1.5, "en": float(step)}
                metrics.write({"kind": "valid", "step": step, "tokens": step, "loss": {},
                               "bits_per_byte": bits})  # fmt: skip
    return metrics


def lines(folder):
    return (folder / "metrics.jsonl").read_text().count("\n")


def test_a_run_that_goes_on_is_one_run_there_and_no_step_is_sent_twice(runs, tmp_path, capsys):
    for first, last in ((0, 6), (4, 5), (5, 8), (8, 8)):
        train(tmp_path, first, last)
    assert len({given["id"] for given in runs.inits}) == 1
    assert {given["resume"] for given in runs.inits} == {"allow"}
    steps = [step for step, values in runs.logged if "other/loss" in values]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    valid = {s: v["valid/bits_per_byte/en"] for s, v in runs.logged if "valid/tokens" in v}
    assert valid == {2: 2.0, 4: 4.0, 6: 6.0, 8: 8.0}
    config = runs.inits[0]["config"]
    assert config["curriculum.non_english"] == ((0.0, 0.3),)
    assert config["train.steps"] == 9
    assert config["compute.dtype"] == "float32"
    assert runs.finished == 4
    assert capsys.readouterr().err.count("wandb shows the run: https://example.org/run.\n") == 4
    other = tmp_path / "other"
    train(other, 0, 1)
    assert runs.inits[-1]["id"] != runs.inits[0]["id"]


def test_a_run_that_goes_back_while_it_works_sends_no_step_twice(runs, tmp_path):
    with Metrics(str(tmp_path), True, ("wandb",), GIN) as metrics:
        for first, last in ((0, 5), (3, 7)):
            metrics.start(first)
            for step in range(first + 1, last + 1):
                metrics.write({"kind": "other", "step": step, "loss": 1.0})
    assert [step for step, _ in runs.logged] == [1, 2, 3, 4, 5, 6, 7]
    assert len(runs.inits) == 1


def test_one_that_is_added_later_gets_what_comes(runs, tmp_path):
    train(tmp_path, 0, 4, ())
    assert not (tmp_path / "tensorboard").exists()
    train(tmp_path, 2, 6, ("tensorboard", "wandb"))
    assert [step for step, values in runs.logged if "other/loss" in values] == [3, 4, 5, 6]
    assert {step for _, step, _ in scalars(tmp_path / "tensorboard")} == {3, 4, 5, 6}


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_one_that_fails_is_one_sentence_and_the_log_has_all(where, runs, tmp_path, capsys):
    def fail(*given, **named):
        raise ConnectionError("no network\nand a trace")

    if where == "init":
        runs.module.init = fail
    setattr(runs, where, fail)
    assert train(tmp_path, 0, 4).error is None
    assert lines(tmp_path) == 1 + 4 + 2
    said = capsys.readouterr().err
    assert said.count("wandb gets no more (no network); the run goes on, and its log has all.") == 1
    assert "Traceback" not in said


def test_one_that_hangs_is_not_waited_for(runs, tmp_path, monkeypatch, capsys):
    over = threading.Event()
    runs.module.init = lambda **_: over.wait()
    monkeypatch.setattr(weights_and_biases, "WAIT", 0.2)
    start = time.monotonic()
    train(tmp_path, 0, 200)
    assert time.monotonic() - start < 10
    over.set()
    assert lines(tmp_path) == 1 + 200 + 100
    assert capsys.readouterr().err.count("\n") == 1


def test_one_that_takes_nothing_any_more_is_given_up(runs, tmp_path, monkeypatch, capsys):
    over = threading.Event()
    runs.log = lambda values, step: over.wait()
    monkeypatch.setattr(weights_and_biases, "MOST", 20)
    train(tmp_path, 0, 50)
    over.set()
    said = capsys.readouterr().err
    assert said.count("wandb gets no more (20 records wait and none is taken)") == 1
    assert lines(tmp_path) == 1 + 50 + 25


@pytest.mark.parametrize("when", ["__init__", "start", "log", "flush", "close"])
def test_a_tensorboard_without_room_stops_nothing(when, tmp_path, monkeypatch, capsys):
    def full(self, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensorboard.TensorBoard, when, full)
    assert train(tmp_path, 0, 4, ("tensorboard",)).error is None
    assert lines(tmp_path) == 1 + 4 + 2
    said = capsys.readouterr().err
    assert said.count("tensorboard gets no more") == (when != "close")
    assert said.count("\n") == (when != "close")


def test_one_that_is_not_installed_is_told_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"`pip install wandb`"):
        train(tmp_path, 0, 1)
    assert not list(tmp_path.iterdir())


def test_the_setting_reaches_it(runs, tiny, tmp_path, capsys):
    from polylm_jax.__main__ import main

    settings = tiny | {"train.folder": tmp_path / "run", "train.steps": 2, "train.validate_rows": 1}
    assert main(["train", *gin_flags(settings), "--gin.train.trackers=('wandb',)"]) == 0
    shown = {name for _, values in runs.logged for name in values}
    assert {"train/loss", "train/learning_rate", "valid/bits_per_byte/de"} <= shown
    assert runs.inits[0]["config"]["rows.path"] == str(tiny["rows.path"])
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert main(["train", *gin_flags(settings), "--gin.train.trackers=('wandbb',)"]) == 1
    assert "choose one of tensorboard, wandb" in capsys.readouterr().err


def histories(folder):
    """What the package itself has kept: a list of (step, values) for each start, by its file.

    The file is a leveldb log of protocol buffers: blocks of 32 KiB with pieces of records.
    """
    from wandb.proto import wandb_internal_pb2 as protocol

    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        data, at, whole, found = path.read_bytes(), 7, b"", []
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
            if kind in (1, 4):  # the only or the last piece
                record, whole = protocol.Record.FromString(whole), b""
                if record.WhichOneof("record_type") == "history":
                    items = record.history.item
                    values = {
                        "".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items
                    }
                    found.append((record.history.step.num, values))
        yield found


def test_the_package_itself_keeps_one_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path, 0, 6)
    train(tmp_path, 4, 8)
    one, other = histories(tmp_path)
    assert [step for step, _ in one] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in other] == [7, 8]
    assert one[1][1]["valid/bits_per_byte/de"] == 1.5
    assert len({path.name for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb")}) == 1
