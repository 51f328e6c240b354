"""Say in five lines where a run stands and whether it is healthy."""

import argparse

from polylm_jax.status import STATUSES, status_of


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument("--run", required=True, help="folder of a run, local or gs://")


def run(given: argparse.Namespace) -> int:
    """Runs the verb; returns the run's exit status, or that of a run that has not ended."""
    status = status_of(given.run)
    print("\n".join(status.lines))
    return STATUSES[status.state]
