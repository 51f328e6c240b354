"""Which records of a log are alive, against a list that is cut whenever a run goes back."""

import json
import random

import fsspec
import pytest

from polylm_jax import jsonl
from polylm_jax.errors import UserError
from polylm_jax.runs.log import read_metrics
from polylm_jax.train import log
from polylm_jax.train.metrics import Metrics


def train(step, start):
    """A step's record; its loss tells which start made it."""
    return {"kind": "train", "step": step, "tokens": 8 * step, "loss": float(start)}


def valid(step, start):
    return {"kind": "valid", "step": step, "tokens": 8 * step, "loss": {"en": float(start)}} | {
        "bits_per_byte": {"en": float(start)}
    }


def a_life(metrics_of, seed, publish_every=4):
    """A run that is started again and again, most often from an earlier step; what is alive."""
    chance, alive, step = random.Random(seed), [], 0
    for number in range(chance.randint(1, 7)):
        start = chance.choice([step, step, chance.randint(0, step)])
        alive = [r for r in alive if r["step"] <= start] if start else []
        with metrics_of() as metrics:
            metrics.start(start)
            for step in range(start, start + chance.randint(1, 15)):
                new = [train(step, number)] if step > start else []
                # not where the run goes on from: that step was validated before
                new += [valid(step, number)] if step % 3 == 0 and (not step or new) else []
                for record in new:
                    metrics.write(record)
                alive += new
                if step % publish_every == 0:
                    metrics.publish()
    return alive


@pytest.fixture
def bucket():
    yield "memory://bucket/run"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_goes_back_has_each_step_once(tmp_path, seed):
    alive = a_life(lambda: Metrics(str(tmp_path), True), seed)
    assert list(log.alive(str(tmp_path))) == alive[::-1]
    assert read_metrics(tmp_path) == alive


@pytest.mark.parametrize("seed", range(10))
def test_so_has_one_whose_log_lies_in_parts(bucket, seed):
    alive = a_life(lambda: Metrics(bucket, True), seed)
    assert list(log.alive(bucket)) == alive[::-1]


def test_a_start_alone_takes_back_what_was_logged_beyond_it(tmp_path):
    for step, last in ((0, 12), (9, 9), (5, 5)):
        with Metrics(str(tmp_path), True) as metrics:
            metrics.start(step)
            for made in range(step + 1, last + 1):
                metrics.write(train(made, 0))
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    with Metrics(str(tmp_path), True) as metrics:
        assert not metrics.reaches_beyond(5)
        assert metrics.reaches_beyond(4)
        metrics.start(0)
    assert read_metrics(tmp_path) == []


def test_a_log_without_starts_keeps_the_last_of_repeated_steps(tmp_path):
    """As they were before starts were logged."""
    steps = [(1, 0), (2, 0), (3, 0), (4, 0), (3, 1), (4, 1)]
    lines = [json.dumps(train(*step)) for step in steps]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "train", "step": 5, "lo')
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [
        (1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "not JSON", "[1]", "7", "null", '{"kind": "train", "step": 3}', '{"step": 3}', "", b"\xff",
        '{"kind": "train", "step": 0, "tokens": 1, "loss": 1}',
        '{"kind": "train", "step": 1, "tokens": 0, "loss": 1}',
        '{"kind": "train", "step": true, "tokens": 1, "loss": 1}',
        '{"kind": "train", "step": 1e400, "tokens": 1, "loss": 1}',
        '{"kind": "train", "step": -1, "tokens": 1, "loss": 1}',
        '{"kind": "train", "step": 1, "tokens": "1", "loss": 1}',
        '{"kind": "train", "step": 1, "tokens": 1, "loss": 1e999}',
        '{"kind": "train", "step": 1, "tokens": 1, "loss": [1]}',
        '{"kind": "train", "step": 1, "tokens": 1, "loss": 1, "deviation": "x"}',
        '{"kind": "train", "step": 1, "tokens": 1, "loss": 1, "row_counts": {}}',
        '{"kind": "train", "step": 1, "tokens": 1, "loss": 1, "row_counts": {"en": null},'
        ' "schedule_counts": {}}',
        '{"kind": "valid", "step": 1, "tokens": 1, "loss": 1, "bits_per_byte": {}}',
        '{"kind": "valid", "step": 1, "tokens": 1, "loss": {}, "bits_per_byte": {"en": "x"}}',
        '{"kind": "valid", "step": 1, "tokens": 1, "loss": {}, "bits_per_byte": {"\\ud800": 1}}',
        '{"kind": [], "step": 1}', "[" * 100_000, '{"kind": "start", "step": 1' + "0" * 5000 + "}",
    ],
)  # fmt: skip
def test_garbage_before_the_end_is_an_error_naming_the_line(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    good = json.dumps(train(1, 0)).encode()
    garbage = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(good + b"\n" + garbage + b"\n" + good + b"\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is not a record of a run"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("text", ["", "\n", "a", "a\n", "\n\na", "one\ntwo\n\nthree\n", "é" * 9])
def test_lines_come_backwards_whatever_the_blocks(tmp_path, monkeypatch, block, text):
    monkeypatch.setattr(jsonl, "BLOCK", block)
    content, path = text.encode(), tmp_path / "file"
    path.write_bytes(content)
    with path.open("rb") as file:
        lines = list(jsonl.backwards(file))
    assert [line for _, line in lines] == content.split(b"\n")[::-1]
    assert all(content[start : start + len(line)] == line for start, line in lines)


def test_a_folder_is_no_pattern(tmp_path):
    for name, steps in (("r1", 3), ("r[lr=1]", 2), ("r*", 1)):
        with Metrics(str(tmp_path / name), True) as metrics:
            for step in range(1, steps + 1):
                metrics.write(train(step, 0))
    assert len(read_metrics(tmp_path / "r[lr=1]")) == 2
    assert len(read_metrics(tmp_path / "r*")) == 1
    with pytest.raises(UserError, match=r"has no metrics\.jsonl"):
        read_metrics(tmp_path / "r?")


def strictly(line):
    """JSON as RFC 8259 has it."""
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_numbers_that_are_none_are_valid_json_and_none_to_readers(tmp_path):
    lost = {"loss": float("nan"), "seconds": {"step": float("inf")}, "list": [-float("inf"), 1.5]}
    with Metrics(str(tmp_path), True) as metrics:
        metrics.write(train(1, 0) | lost)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = strictly(line)
    assert (record["loss"], record["seconds"], record["list"]) == (
        None,
        {"step": None},
        [None, 1.5],
    )
    assert [one["loss"] for one in read_metrics(tmp_path)] == [None]
    old = {"kind": "train", "step": 2, "tokens": 16, "loss": float("nan")}
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(old) + "\n")  # NaN, as it was written once
    assert [one["loss"] for one in read_metrics(tmp_path)] == [None, None]
