"""Train, or go on training."""

import argparse
import traceback
from collections.abc import Callable
from functools import partial
from typing import Annotated

import jax

from polylm_jax import config
from polylm_jax.data import tokenizer
from polylm_jax.evaluation.in_training import make_ask
from polylm_jax.parallel import hosts, platform
from polylm_jax.ranges import Range
from polylm_jax.sizes import Count
from polylm_jax.train.ends import ENDS, end_of
from polylm_jax.train.heartbeat import write_end
from polylm_jax.train.loop import train
from polylm_jax.verbs import number

Process = Annotated[int, Range(0)]


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    group = parser.add_argument_group(
        "several processes",
        "all three flags, or none on a TPU pod, SLURM and Open MPI, which are noticed",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="a free port of process 0")
    group.add_argument(
        "--processes", type=number("--processes", Count), metavar="N", help="how many there are"
    )
    group.add_argument(
        "--process",
        type=number("--process", Process),
        metavar="I",
        help="which one this is, from 0",
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    train_as(given, lambda: None)


def train_as(given: argparse.Namespace, prepare: Callable[[], None]) -> None:
    """Trains what gin says. prepare: called in each process first, and may change what it says."""
    platform.set_flags()
    platform.take_memory()
    platform.keep(config.get("compute").compile_cache)
    if config.get("mesh").cpu_devices:
        jax.config.update("jax_num_cpu_devices", config.get("mesh").cpu_devices)

    def leave(word: str, reason: str) -> int:
        write_end(config.get("train").folder, word, reason)
        return ENDS[word].status

    with hosts.joined(given.coordinator, given.processes, given.process, leave):
        try:
            prepare()
            train(
                config.get("train"),
                config.get("model"),
                config.get("init"),
                config.get("compute"),
                config.get("mesh"),
                config.get("optimizer"),
                config.get("curriculum"),
                config.get("rows").path,
                tokenizer.load(config.get("tokenizer").path),
                config.resolved(),
                config.get("lora"),
                partial(make_ask, config.get("evaluation"), config.get("corpus").path),
            )
        except Exception as error:
            end = end_of(error)
            if end.defect is not None:
                traceback.print_exception(end.defect)
            raise end from None
    training = config.get("train")
    print(
        f"finished: all {training.steps:,} steps are done; "
        f"`polylm report --run={training.folder}` shows the run."
    )
