"""The command line in a process of its own, with something gone wrong inside it.

A fork server imports this module once, so that each process starts in a moment.
"""

import errno
import os
import random
import resource
import signal
import sys
import threading
import time

import jax
import numpy as np

from polylm_jax.__main__ import main
from polylm_jax.data.rows import Store
from polylm_jax.parallel import hosts, together
from polylm_jax.train import loop, step
from polylm_jax.train.metrics import Metrics
from polylm_jax.verbs import train  # noqa: F401


def run(arguments, log, tamper, *values):
    """Runs the command line with a fault; output goes to the file `log`."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    hosts.LOST_AFTER, together.MEET = 10, 5
    if tamper:
        globals()[tamper](*values)
    sys.exit(main(arguments))


def times_gradient(factors):
    """Multiplies the gradient of step i (from 0) by factors[i], or by 1 where there is none."""
    change_batches(lambda i: i, factors)


def leave_out(steps):
    """A run that never sees the batches of these steps."""
    kept = [i for i in range(1000) if i not in steps]
    change_batches(lambda i: kept[i], {})


def change_batches(which, factors):
    feed, make = loop.batches, step.make_gradients

    def batches(store, curriculum, sharding, batch, first_row, *rest):
        for i in range(first_row // batch, 1000):
            one = feed(store, curriculum, sharding, batch, which(i) * batch, *rest)
            factor = np.full(batch, factors.get(which(i), 1), np.float32)
            # device_put compares its values over processes, and no NaN equals another
            put = jax.make_array_from_callback((batch,), sharding, lambda index, f=factor: f[index])
            yield next(one) | {"factor": put}
            one.close()

    def make_gradients(*arguments):
        gradients = make(*arguments)

        def times(params, batch, *base):
            gradient, losses = gradients(params, batch, *base)
            return jax.tree.map(lambda g: g * batch["factor"][0], gradient), losses

        return times

    loop.batches, step.make_gradients = batches, make_gradients


def stalled_read(source, calls):
    """Reading a source's rows never ends from this call on."""
    read = Store.read_mixed
    count = 0

    def stalling(self, sources, which, indices, split="train"):
        nonlocal count
        wanted = split == "train" and source in {sources[index] for index in which}
        count += wanted
        if wanted and count > calls:
            threading.Event().wait()
        return read(self, sources, which, indices, split)

    Store.read_mixed = stalling


def asked_to_stop(step):
    """SIGTERM comes while this step is reported."""
    at_report(step, lambda: os.kill(os.getpid(), signal.SIGTERM))


def killed(step):
    """The process is gone while this step is reported."""
    at_report(step, lambda: os.kill(os.getpid(), signal.SIGKILL))


def failing_report(step):
    """A defect shows while this step is reported."""
    at_report(step, lambda: 1 / 0)


def at_report(step, happens):
    make_report = loop.make_report

    def make(*arguments):
        report = make_report(*arguments)

        def reported(number, *rest):
            if number == step:
                happens()
            return report(number, *rest)

        return reported

    loop.make_report = make


def failing_validation(step):
    """The held-out rows cannot be read after this many calls."""
    validation, count = loop.validation, iter(range(100))

    def failing(*arguments):
        if next(count) == step:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "rows/zh/valid-00000.tokens")
        return validation(*arguments)

    loop.validation = failing


def full_log(step):
    """There is no room in the log from this step on."""
    write = Metrics.write

    def full(self, record):
        if record["step"] == step and hasattr(self, "_file"):
            self._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
        write(self, record)

    Metrics.write = full


def slow_steps(seconds):
    """Every step takes so long."""
    make_update = loop.make_update

    def make(*arguments):
        update = make_update(*arguments)

        def slow(state, batch):
            time.sleep(seconds)
            return update(state, batch)

        return slow

    loop.make_update = make


def jumping_clock(seed):
    """The wall clock jumps by up to a year, both ways, whenever it is read."""
    now, dice = time.time, random.Random(seed)
    time.time = lambda: now() + dice.uniform(-3e7, 3e7)
    time.time_ns = lambda: int(time.time() * 1e9)


def full_disk(size):
    """No file may pass `size` bytes, as on a disk with so much room."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
