"""A run in processes of their own, with a fault inside, and what came of it."""

import multiprocessing
import os
import socket
import time

import jax
import numpy as np

from polylm_jax import config
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.runs.log import of_kind, read_metrics
from polylm_jax.train import checkpoint
from polylm_jax.train.step import abstract_state
from tests.conftest import gin_flags
from tests.faults import child

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "3"))
MANY = ROUNDS > 3
STEPS = 30
PATIENCE = 600  # seconds; only a hang takes so long

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.faults.child"])


class Run:
    """A run of 30 steps in a folder, with a checkpoint every third."""

    def __init__(self, settings, folder):
        self.folder = folder
        self.settings = settings | {
            "train.folder": folder,
            "train.steps": STEPS,
            "train.checkpoint_every": 3,
            "train.validate_every": 1000,
            "train.validate_rows": 1,
            "optimizer.decay_steps": STEPS,
            "optimizer.spike_window": 8,
            "optimizer.spike_sigmas": 30,
            "optimizer.spike_patience": 3,
            **{f"mesh.{name}": 1 for name in ("data", "fsdp", "tensor", "cpu_devices")},
        }
        self.log = folder.with_suffix(".log")
        self.metrics = folder / "metrics.jsonl"

    def start(self, *fault, **changes):
        return self._process(self._settings(changes), [], self.log, fault)

    def start_two(self, *faults, **changes):
        """Two processes that train together. faults: of each, a tuple or none, and its settings."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            where = f"--coordinator=localhost:{free.getsockname()[1]}"
        return [
            self._process(
                self._settings({"mesh.fsdp": 2} | changes | own),
                [where, "--processes=2", f"--process={i}"],
                self.log.with_suffix(f".{i}"),
                fault,
            )
            for i, (fault, own) in enumerate(faults)
        ]

    def _settings(self, changes):
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        return self.settings | changes

    def _process(self, settings, flags, log, fault):
        log.unlink(missing_ok=True)
        process = processes.Process(
            target=child.run,
            args=(["train", *gin_flags(settings), *flags], log, *(fault or ("",))),
            daemon=True,
        )
        process.log = log
        process.start()
        return process

    def ends(self, *fault, **changes):
        """Exit status of the command with a fault, and what it said."""
        return end_of(self.start(*fault, **changes))

    def both_end(self, *faults, **changes):
        """Exit status and what was said of each of two processes, as of `start_two`."""
        return [end_of(process) for process in self.start_two(*faults, **changes)]

    def finish(self, *fault, **changes):
        status, said = self.ends(*fault, **changes)
        assert status == 0, said
        return said

    def steps(self):
        """The checkpoints that are whole."""
        place = self.folder / "checkpoints"
        return sorted(int(p.name) for p in place.glob("*") if p.name.isdigit())

    def saving(self):
        return any((self.folder / "checkpoints").glob("*tmp*"))

    def logged(self):
        return self.metrics.read_text().count('"train"') if self.metrics.exists() else 0

    def state(self):
        """The newest checkpoint's arrays, on the host."""
        config.parse([], [flag.removeprefix("--gin.") for flag in gin_flags(self.settings)])
        blocks = [config.get(name) for name in ("model", "init", "optimizer")]
        mesh = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
        manager = checkpoint.open_existing(str(self.folder))
        state = checkpoint.restore(manager, manager.latest_step(), abstract_state(*blocks, mesh))
        manager.close()
        return jax.device_get(state)

    def losses(self):
        return [record["loss"] for record in of_kind(read_metrics(self.folder), "train")]


def end_of(process):
    """Exit status of a process and what it said."""
    process.join(PATIENCE)
    assert process.exitcode is not None, process.log.read_text()
    return process.exitcode, process.log.read_text()


def same(one, other, *parts):
    one, other = ({name: state[name] for name in parts or state} for state in (one, other))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def wait_for(condition, process):
    end = time.monotonic() + PATIENCE
    while not condition() and process.is_alive():
        assert time.monotonic() < end
        time.sleep(0.001)
