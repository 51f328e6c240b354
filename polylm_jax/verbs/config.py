"""Print every setting in force, as gin."""

import argparse

from polylm_jax import config
from polylm_jax.parallel import platform


def flags(parser: argparse.ArgumentParser) -> None:
    """This verb has no flags of its own."""


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    print(config.resolved(), end="")
    print(platform.describe())
