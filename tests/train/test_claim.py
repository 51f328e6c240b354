"""One writer a folder: on a disk by a lock, elsewhere by a heartbeat that moves."""

import multiprocessing
import os
import threading
import time

import pytest

from polylm_jax.train import claim, heartbeat
from polylm_jax.train.claim import claimed
from polylm_jax.train.ends import RunEnded


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(heartbeat, "EVERY", 0.2)
    monkeypatch.setattr(claim, "SETTLE", 0.1)


@pytest.fixture
def bucket(tmp_path):
    return f"memory://{tmp_path}/run"


def beat_of_another(folder, **news):
    beat = {"state": "running", "host": "elsewhere", "pid": 7, "step": 3, "time": 1.0} | news
    heartbeat.write(str(folder), beat | {"moved": 1.0})


def refused(folder):
    said = []
    with pytest.raises(RunEnded) as raised, claimed(str(folder), said.append):
        pass
    assert raised.value.word == "busy"
    return str(raised.value), said


def test_a_disk_has_one_writer_even_before_its_first_heartbeat(tmp_path):
    folder = tmp_path / "run"
    with claimed(str(folder), print):
        said, _ = refused(folder)
        assert f"process {os.getpid()} on " in said
        assert "no heartbeat yet" in said
        beat_of_another(folder, host=os.uname().nodename, pid=os.getpid(), time=time.time() - 4)
        assert "whose heartbeat is 4 s old" in refused(folder)[0]
        before = heartbeat.read_heartbeat(str(folder))
        refused(folder)
        assert heartbeat.read_heartbeat(str(folder)) == before
    with claimed(str(folder), print):
        pass


def hold(folder, taken):
    with claimed(folder, print):
        taken.set()
        time.sleep(60)


def test_a_killed_writer_leaves_the_folder_to_the_next_at_once(tmp_path):
    context = multiprocessing.get_context("forkserver")
    taken = context.Event()
    other = context.Process(target=hold, args=(str(tmp_path), taken), daemon=True)
    other.start()
    assert taken.wait(60)
    assert f"process {other.pid} on " in refused(tmp_path)[0]
    other.kill()
    other.join()
    with claimed(str(tmp_path), print):
        pass


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_heartbeat_that_moves_is_another_writer(tmp_path, bucket, place):
    # on a disk, one that another machine writes and whose lock is not seen here
    folder = tmp_path if place == "disk" else bucket
    over = threading.Event()

    def live():
        while not over.wait(0.05):
            beat_of_another(folder, time=time.time())

    beat_of_another(folder)
    thread = threading.Thread(target=live)
    thread.start()
    try:
        said, told = refused(folder)
    finally:
        over.set()
        thread.join()
    assert "process 7 on elsewhere, whose heartbeat is 0 s old" in said
    assert "looking for" in told[0]
    assert heartbeat.read_heartbeat(str(folder))["pid"] == 7


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_heartbeat_that_rests_is_of_a_killed_run_and_is_waited_for_once(tmp_path, bucket, place):
    folder, said = str(tmp_path if place == "disk" else bucket), []
    beat_of_another(folder)
    start = time.monotonic()
    with claimed(folder, said.append):
        assert time.monotonic() - start > 2 * heartbeat.EVERY
    assert len(said) == 1
    assert "process 7 on elsewhere" in said[0]


@pytest.mark.parametrize("news", [{"state": "finished"}, {"state": "lost"}, None])
def test_a_run_that_has_ended_is_not_waited_for(bucket, news):
    if news:
        beat_of_another(bucket, **news)
    said = []
    with claimed(bucket, said.append):
        assert heartbeat.read_heartbeat(bucket)["pid"] == os.getpid()
    assert not said


def test_of_two_that_begin_at_once_in_a_bucket_one_gives_way(bucket, monkeypatch):
    # the other writes just after this one has
    monkeypatch.setattr(claim, "SETTLE", 0.3)
    threading.Timer(0.1, beat_of_another, [bucket]).start()
    said, _ = refused(bucket)
    assert "process 7 on elsewhere" in said
