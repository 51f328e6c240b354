"""Fetch real text, or take your own, split off held-out documents."""

import argparse

from polylm_jax import config
from polylm_jax.data import corpus


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="a few MB, by pip (default)")
    size.add_argument("--large", action="store_true", help="tens of MB, by apt too")


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    settings = config.get("corpus")
    kind = "large" if given.large else "small"
    print(f"Building the {kind} corpus from {settings.text or 'packages by name'}.")
    manifest = corpus.build(settings, given.large)
    print(f"{len(manifest['sources'])} sources are in {settings.path}.")
