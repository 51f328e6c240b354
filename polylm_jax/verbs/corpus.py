"""Fetch real text, or take your own, split off held-out documents."""

import argparse

from polylm_jax import config
from polylm_jax.console import visible
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
    what = f"a corpus from {settings.text}" if settings.text else f"the {kind} corpus from packages"
    print(f"Building {what}.")
    manifest = corpus.build(settings, given.large, lambda line: print(visible(line)))
    print(f"{len(manifest['sources'])} sources are in {settings.path}.")
