"""Show a run: bits per byte per language, the curriculum, figures, samples."""

import argparse
from functools import partial

from rich.console import Console

from polylm_jax.files import existing, local
from polylm_jax.runs import report


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--run",
        required=True,
        type=partial(existing, name="--run", where=local),
        help="folder of a run; copy one that is elsewhere with tpu_scripts/fetch.sh",
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    report.report(given.run, Console())
