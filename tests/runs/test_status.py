"""`polylm status` says of runs that live, hang, ended or never were what is true of them."""

import errno
import json
import time

import fsspec
import pytest

from polylm_jax.__main__ import main
from polylm_jax.runs.status import checkpoints, status_of
from polylm_jax.train import heartbeat
from polylm_jax.train.heartbeat import Heartbeat, read_heartbeat
from tests.train.test_loop import train

NEWS = {
    "step": 50,
    "steps": 100,
    "processes": 4,
    "tokens": 51_200,
    "skipped": 2,
    "steps_per_second": 0.5,
    "tokens_per_second": 512.0,
    "loss": 4.0,
    "loss_before": 5.0,
    "slowest_host": 3,
    "slowest_host_seconds": 0.25,
    "memory_gib": 7.5,
}


def folder_with(folder, **news):
    with Heartbeat(str(folder), True) as heartbeat:
        heartbeat.tell(**NEWS | news)
    return str(folder)


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_living_run_is_told_in_five_lines(tmp_path, scheme):
    folder = folder_with(f"{scheme}{tmp_path}/run")
    files = fsspec.filesystem("memory" if scheme else "file")
    for step in (9, 40, "50.orbax-checkpoint-tmp"):
        files.makedirs(f"{tmp_path}/run/checkpoints/{step}")
        files.touch(f"{tmp_path}/run/checkpoints/{step}/commit_success.txt")
    status = status_of(folder)
    assert (status.state, status.healthy, len(status.lines)) == ("running", True, 5)
    first, loss, speed, saved, health = status.lines
    assert "running at step 50 of 100 (50%)" in first
    assert loss == "Loss: 4.000, falling (-20.0% against the steps before)."
    assert speed == "Speed: 0.5 steps/s, 512 tokens/s; ETA 1 min 40 s."
    assert saved == "Last checkpoint: step 40, of 9, 40."
    assert health.startswith("Healthy")
    for fact in ("2 steps skipped", "slowest process 3 (0.25 s", "7.5 GiB"):
        assert fact in health


def test_a_checkpoint_in_an_object_store_counts_when_it_is_committed(tmp_path):
    files = fsspec.filesystem("memory")
    for step in (5, 10):
        files.makedirs(f"{tmp_path}/run/checkpoints/{step}/state")
    files.touch(f"{tmp_path}/run/checkpoints/5/commit_success.txt")
    assert checkpoints(f"memory://{tmp_path}/run") == [5]


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_the_last_sound_checkpoint_is_told_where_it_is_not_the_last(tmp_path, scheme):
    folder = folder_with(f"{scheme}{tmp_path}/run")
    files = fsspec.filesystem("memory" if scheme else "file")
    for step, skipped in {10: [0, False], 20: [0, False], 33: [10, True]}.items():
        place = f"{tmp_path}/run/checkpoints/{step}"
        files.makedirs(f"{place}/meta")
        files.touch(f"{place}/commit_success.txt")
        files.pipe_file(f"{place}/meta/metadata", json.dumps({"skipped": skipped}).encode())
    assert "step 33, of 10, 20, 33; it was saved while steps" in status_of(folder).lines[3]
    assert "step 20 is the last sound one" in status_of(folder).lines[3]
    files.pipe_file(f"{tmp_path}/run/checkpoints/33/meta/metadata", b"{")  # damaged
    assert status_of(folder).lines[3] == "Last checkpoint: step 33, of 10, 20, 33."


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"state": "running"}', b"\xff"])
def test_a_heartbeat_that_cannot_be_read_is_none(tmp_path, content):
    (tmp_path / "heartbeat.json").write_bytes(content)
    assert status_of(str(tmp_path)).state == "never started"


@pytest.mark.parametrize(
    ("later", "news", "state", "sentence"),
    [
        (50, {}, "running", "steps go by"),
        (70, {}, "silent", "no sign of life for 1 min 10 s"),
        (70, {"state": "finished"}, "finished", "all steps are done"),
        (1e6, {"state": "stopped"}, "stopped", "it was asked to stop, by SIGTERM or Ctrl-C"),
        (-1e6, {}, "running", "steps go by"),  # another machine's clock
        (50, {"steps_per_second": None, "loss_before": None}, "running", "compiling"),
    ],
)
def test_time_and_the_last_state_make_the_verdict(tmp_path, later, news, state, sentence):
    status = status_of(folder_with(tmp_path, **news), time.time() + later)
    assert status.state == state
    assert status.healthy == (state in ("running", "finished"))
    assert sentence in status.lines[-1]


@pytest.mark.parametrize("loss", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("state", ["running", "finished"])
def test_a_run_whose_loss_is_no_number_is_not_healthy(tmp_path, loss, state):
    status = status_of(folder_with(tmp_path, loss=loss, state=state))
    assert not status.healthy
    assert status.lines[1] == "Loss: not a number."
    assert status.lines[-1].startswith("Needs you: ")
    assert "the loss is not a number" in status.lines[-1]
    json.loads((tmp_path / "heartbeat.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("before", [None, 0.0, float("nan")])
def test_where_there_was_no_loss_before_there_is_no_trend(tmp_path, before):
    status = status_of(folder_with(tmp_path, loss_before=before))
    assert status.healthy
    assert status.lines[1] == "Loss: 4.000, too early for a trend."


def test_a_run_that_lives_and_makes_no_step_stands_still(tmp_path):
    folder = folder_with(tmp_path, steps_per_second=10.0)
    file = tmp_path / "heartbeat.json"
    beat = json.loads(file.read_text())
    file.write_text(json.dumps(beat | {"moved": beat["moved"] - 150}))
    status = status_of(folder)
    assert status.state == "still"
    assert "lives but has made no step for 2 min 30 s" in status.lines[-1]


def test_on_a_full_disk_the_last_word_is_written_over_the_former(tmp_path, monkeypatch):
    folder = folder_with(tmp_path)

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(heartbeat, "put", full)
    heartbeat.write_end(folder, "storage full", "no room.")
    assert read_heartbeat(folder)["state"] == "storage full"
    assert status_of(folder).state == "storage full"
    # an end is not written over
    heartbeat.write_end(folder, "lost", "somebody.")
    assert read_heartbeat(folder)["state"] == "storage full"


def test_a_run_that_fails_says_why(tmp_path):
    def fails():
        with Heartbeat(str(tmp_path), True) as heartbeat:
            heartbeat.tell(**NEWS)
            raise OSError("the disk is full.\nmore")

    with pytest.raises(OSError, match="disk"):
        fails()
    status = status_of(str(tmp_path))
    assert (status.state, status.healthy) == ("failed", False)
    assert "no word of its own: the disk is full;" in status.lines[-1]


def test_nothing_there_is_never_started_and_one_process_of_a_run_writes(tmp_path, capsys):
    with Heartbeat(str(tmp_path), False) as heartbeat:
        heartbeat.tell(**NEWS)
    assert read_heartbeat(str(tmp_path)) is None
    assert main(["status", f"--run={tmp_path}"]) == 11
    said = capsys.readouterr().out
    assert said.count("\n") == 5
    assert "never started" in said


def test_a_real_run_that_has_finished(tiny, tmp_path, capsys):
    assert train(tiny, tmp_path / "run", train__steps=4) == 0
    capsys.readouterr()
    assert main(["status", f"--run={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert "finished at step 4 of 4 (100%)" in said
    assert "Last checkpoint: step 4, of 4." in said
    assert "Healthy: all steps are done; 0 steps skipped, slowest process 0" in said
