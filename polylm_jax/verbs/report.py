"""Show a run: bits per byte per language, the curriculum, figures, samples."""

import argparse

from rich.console import Console

from polylm_jax import report


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument("--run", required=True, help="folder of a run")


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    report.report(given.run, Console())
