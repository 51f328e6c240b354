"""Print every setting in force, as gin."""

import argparse

from polylm_jax import config


def flags(parser: argparse.ArgumentParser) -> None:
    """This verb has no flags of its own."""


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    print(config.resolved(), end="")
