"""List the runs in a folder and below it, a line each: state, step, loss, bits per byte, speed."""

import argparse
import sys
from functools import partial

from rich.console import Console

from polylm_jax.console import visible
from polylm_jax.files import existing
from polylm_jax.jsonl import dumps
from polylm_jax.runs.overview import find_runs, line_of, table_of


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "folder",
        nargs="?",
        default="runs",
        type=partial(existing, name="FOLDER"),
        help="local, or a URL such as gs://BUCKET/runs (default: runs)",
    )
    parser.add_argument("--json", action="store_true", help="a JSON object a line, for programs")


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    lines = [line_of(run) for run in find_runs(given.folder)]
    if given.json:
        for line in lines:
            print(dumps(line._asdict()))
        return
    # on a terminal as wide as it is, elsewhere as wide as it must be
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table_of(lines, given.folder))
    for line in lines:
        if line.note:
            print(f"note: {visible(line.note)}")
