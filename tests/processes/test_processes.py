"""Several processes train as one does, and as they did before one of them was killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from polylm_jax.__main__ import main
from polylm_jax.parallel.mesh import AXES
from polylm_jax.runs.log import of_kind, read_metrics
from polylm_jax.runs.status import status_of
from polylm_jax.train.door import open_run
from tests.conftest import gin_flags
from tests.train.test_loop import losses, records, train

LOSS = 2e-4  # between other orders of float32 sums, over 12 steps of Adam
DEVICES = 8
EXACT = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}


@dataclass
class Processes:
    """Processes that train one run together; the mesh is 8 devices, however many there are."""

    every: list[subprocess.Popen]
    logs: list[Path]

    def wait(self, seconds=600):
        """Exit status and stderr of each."""
        end = time.monotonic() + seconds
        try:
            said = [p.communicate(timeout=max(1, end - time.monotonic()))[1] for p in self.every]
        finally:
            for process in self.every:
                process.kill()
        return [p.returncode for p in self.every], said

    def rows(self):
        """The rows that each has read, less those read ahead."""
        spans = [
            [map(int, line.split()) for line in log.read_text().splitlines()] for log in self.logs
        ]
        return [{row for start, stop in each for row in range(start, stop)} for each in spans]


def start(tiny, folder, number, mesh=(2, 2, 2), verb="train", places=(), **changes):
    """places: the folder that each is started in, where that is not the same."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    shape = dict(zip((f"mesh.{axis}" for axis in AXES), mesh, strict=True))
    where = "run" if places else folder
    settings = tiny | shape | {"train.folder": where, "mesh.cpu_devices": DEVICES // number}
    logs = [folder.with_name(f"{folder.name}-{number}-{i}.rows") for i in range(number)]
    flags = [*gin_flags(settings | changes), f"--coordinator=localhost:{port}"]
    flags += [f"--processes={number}"]
    command = [sys.executable, "-m", "tests.processes.child"]
    every = [
        subprocess.Popen(
            [*command, log, verb, *flags, f"--process={i}"],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | EXACT | {"PYTHONPATH": str(Path(__file__).parents[2])},
            cwd=places[i] if places else None,
        )
        for i, log in enumerate(logs)
    ]
    return Processes(every, logs)


def wait_for_step(processes, folder, step):
    log, end = folder / "metrics.jsonl", time.monotonic() + 300
    while not (log.exists() and f'"train", "step": {step},' in log.read_text()):
        assert time.monotonic() < end
        assert all(p.poll() is None for p in processes.every), processes.wait()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def one(tiny, tmp_path_factory):
    """One process on 8 devices."""
    folder = tmp_path_factory.mktemp("one") / "run"
    assert train(tiny, folder) == 0
    return folder


@pytest.fixture(scope="module")
def four(tiny, tmp_path_factory):
    """Four processes of 2 devices, on two slices, which nobody disturbed."""
    folder = tmp_path_factory.mktemp("four") / "run"
    processes = start(tiny, folder, 4, mesh=(1, 2, 2), mesh__slices=2)
    codes, said = processes.wait()
    assert codes == [0] * 4, said
    return folder, processes


def test_four_processes_train_as_one_and_each_reads_only_its_rows(one, four):
    folder, processes = four
    np.testing.assert_allclose(losses(folder), losses(one), atol=LOSS)
    counts = [record.get("row_counts") for record in records(folder)]
    assert counts == [record.get("row_counts") for record in records(one)]
    # on 2 slices of 1 x 2 x 2 each process holds one of the 4 parts of the batch, for both ways of
    # tensor: two processes are a slice, with one copy of the model
    for index, read in enumerate(processes.rows()):
        assert {row % 16 // 4 for row in read} == {index}
        assert {row for row in read if row < 12 * 16} == {
            row for row in range(12 * 16) if row % 16 // 4 == index
        }


@pytest.mark.rare
def test_the_run_of_four_goes_on_with_another_schedule_with_two_and_then_with_one(
    one, four, tiny, tmp_path
):
    runs = [tmp_path / name for name in ("alone", "run")]
    for whole, folder in zip((one, four[0]), runs, strict=True):
        shutil.copytree(whole, folder)
        for step in (10, 12):
            shutil.rmtree(folder / "checkpoints" / str(step))
        (folder / "metrics.jsonl").unlink()
    changes = {"curriculum__non_english": ((0, 0.3), (1280, 0.3), (1536, 0.7))}
    accepted = changes | {"train__accept_changes": 5}
    alone, folder = runs
    assert train(tiny, alone, **accepted) == 0

    two = start(tiny, folder, 2, mesh=(8, 1, 1), **accepted)
    wait_for_step(two, folder, 7)
    two.every[1].send_signal(signal.SIGTERM)  # only one is told
    codes, said = two.wait()
    assert codes == [75, 75], said
    assert "Going on from step 5" in said[0]
    assert "The run has another curriculum from step 5 on." in said[0]
    done = len(losses(folder))
    assert done < 12 - 5, "the signal came too late to show anything"
    for words in said:
        last = words.splitlines()[-1]
        assert last.startswith(
            f"polylm train: stopped: it was asked to stop and did at step {5 + done}"
        )
    assert all({row % 16 // 8 for row in rows} == {i} for i, rows in enumerate(two.rows()))
    assert status_of(str(folder)).state == "stopped"

    assert train(tiny, folder, mesh__data=1, mesh__fsdp=4, **changes) == 0
    np.testing.assert_allclose(losses(folder), losses(alone), atol=LOSS)
    last, as_one = records(folder)[-1], records(alone)[-1]
    assert last["row_counts"] == as_one["row_counts"]
    assert last["row_counts"] != records(one)[-1]["row_counts"]


@pytest.mark.rare
def test_two_processes_tune_adapters_as_one(one, tiny, tmp_path):
    pairs = [{"instruction": f"{n}?", "output": f"{n} and {n + 1}"} for n in range(60)]
    (tmp_path / "en.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    tuning = {
        "tune.data": (str(tmp_path / "en.jsonl"),),
        "tune.epochs": 2.0,
        "rows.path": tmp_path / "rows",
        "train.start": one,
        "lora.rank": 2,
    }
    folders = [tmp_path / name for name in ("two", "alone")]
    processes = start(tiny | tuning, folders[0], 2, verb="tune")  # the first of them makes the rows
    codes, said = processes.wait()
    assert codes == [0, 0], said
    assert main(["tune", *gin_flags(tiny | tuning | {"train.folder": folders[1]})]) == 0
    assert len(losses(folders[0])) > 1
    np.testing.assert_allclose(*map(losses, folders), atol=LOSS)
    assert open_run(str(folders[0])).base.folder == str(one)


def test_one_process_goes_on_from_the_checkpoint_of_four(one, four, tiny, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(four[0], folder)
    shutil.rmtree(folder / "checkpoints" / "12")
    assert train(tiny, folder) == 0
    np.testing.assert_allclose(losses(folder), losses(one), atol=LOSS)


@pytest.mark.rare
def test_after_a_kill_all_end_with_one_sentence_and_the_run_goes_on_bitwise(
    four, tiny, tmp_path, outcome
):
    folder = tmp_path / "run"
    for victim in (2, 0):
        processes = start(tiny, folder, 4)
        wait_for_step(processes, folder, 7 if victim else 11)
        processes.every[victim].kill()
        codes, said = processes.wait(60)
        for index, (code, words) in enumerate(zip(codes, said, strict=True)):
            assert code == (-9 if index == victim else 76), words
            lines = [line for line in words.splitlines() if line.startswith("polylm train:")]
            assert len(lines) == 1, words
            assert lines[0].startswith("polylm train: lost: ")
            assert "start all processes again with the same command" in lines[0]
            assert index == victim or f"process {victim} of 4 was lost" in lines[0]
        assert status_of(str(folder)).state == "lost"
    processes = start(tiny, folder, 4)
    codes, said = processes.wait()
    assert codes == [0] * 4, said
    assert losses(folder) == losses(four[0])
    valid = [of_kind(read_metrics(run), "valid")[-1] for run in (folder, four[0])]
    assert valid[0] == valid[1]
    outcome(
        "SIGKILL of one of 4 processes, the first too",
        2,
        "the others end within a minute as `lost`; the same command goes on, bitwise the same",
    )


@pytest.mark.rare
def test_a_folder_that_is_not_shared_is_told_before_the_first_step(tiny, tmp_path):
    # as on the disks of two machines; the first save would wait for ever
    places = [tmp_path / name for name in ("one", "other")]
    for place in places:
        place.mkdir()
    codes, said = start(tiny, tmp_path / "x", 2, places=places).wait()
    assert codes == [78, 78], said
    for words in said:
        last = words.splitlines()[-1]
        assert last.startswith("polylm train: unequal: process 1 does not see in run what process")
    assert not any((place / "run" / "checkpoints").exists() for place in places)
