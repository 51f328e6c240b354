"""Say in five lines where a run stands and whether it is healthy."""

import argparse
from functools import partial

from polylm_jax.files import existing, place
from polylm_jax.runs.status import STATUSES, status_of


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--run",
        required=True,
        type=partial(place, name="--run"),
        help="folder of a run, local or gs://",
    )


def run(given: argparse.Namespace) -> int:
    """Runs the verb; returns the run's exit status, or that of a run that has not ended."""
    if "://" not in given.run:  # a bucket has no folder until something lies in it
        existing(given.run, "--run")
    status = status_of(given.run)
    print("\n".join(status.lines))
    return STATUSES[status.state]
