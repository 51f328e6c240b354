"""Say in five lines where a run stands and whether it is healthy."""

import argparse

from polylm_jax.status import status_of


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument("--run", required=True, help="folder of a run, local or gs://")


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    print("\n".join(status_of(given.run).lines))
