"""Measure a model with a benchmark: scores beside the paper's, with their errors and chance."""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from polylm_jax import config
from polylm_jax.errors import UserError
from polylm_jax.evaluation import table
from polylm_jax.evaluation.choices import Subject
from polylm_jax.evaluation.evaluate import evaluate
from polylm_jax.evaluation.results import store
from polylm_jax.files import existing, local
from polylm_jax.verbs.model_of import model_of


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--run", required=True, type=partial(existing, name="--run"), help="folder of a run"
    )
    parser.add_argument(
        "--out",
        type=partial(local, name="--out"),
        help="folder for the results; RUN/evaluation/STEP by default",
    )
    parser.add_argument(
        "--against",
        type=partial(existing, name="--against", where=local),
        help="results of another model, a folder that this verb made or its run: what differs",
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    if "://" in given.run and not given.out:
        raise UserError("--run is not on this machine; give --out=FOLDER for the results.")
    with model_of(given) as model:
        settings, compute = config.get("evaluation"), model.decoder.compute
        compute = replace(compute, dtype=settings.dtype or compute.dtype, attention="plain")
        decoder = model.decoder.clone(compute=compute, attend=None)
        folder = Path(given.out or f"{given.run}/evaluation/{model.step}")
        identity = model.identity | {"dtype": compute.dtype}
        print(f"Evaluating step {model.step} of {given.run} into {folder}.")
        subject = Subject(decoder, model.params, model.tokenizer, model.rows)
        with store(folder, identity) as kept:
            reports = evaluate(subject, settings, kept)
            written = table.write(folder, reports, settings, identity, given.run)
    console = Console()
    for name, report in reports.items():
        if report.results:
            console.print(table.of_task(name, report))
    for line in table.lines(reports):
        print(line)
    if given.against:
        for line in table.differences(folder, Path(given.against)):
            print(line)
    print("\n".join(f"Written: {path}" for path in written))
