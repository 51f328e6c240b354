"""Train, or go on training."""

import argparse

import jax

from polylm_jax import config
from polylm_jax.data import tokenizer
from polylm_jax.parallel import platform
from polylm_jax.train.loop import train


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--multihost", action="store_true", help="join the other hosts of a pod or cluster"
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    platform.prepare(config.get("compute").compile_cache)
    if given.multihost:
        jax.distributed.initialize()
    if config.get("mesh").cpu_devices:
        jax.config.update("jax_num_cpu_devices", config.get("mesh").cpu_devices)
    training = config.get("train")
    train(
        training,
        config.get("model"),
        config.get("init"),
        config.get("compute"),
        config.get("mesh"),
        config.get("optimizer"),
        config.get("curriculum"),
        config.get("rows").path,
        tokenizer.load(config.get("tokenizer").path),
        config.resolved(),
    )
    if jax.process_index() == 0:
        print(f"The run is in {training.folder}; `polylm report --run={training.folder}` shows it.")
