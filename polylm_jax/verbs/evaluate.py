"""Measure a model with a benchmark: scores beside the paper's, with their errors and chance."""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
from jax.sharding import get_mesh
from rich.console import Console

from polylm_jax import config
from polylm_jax.errors import UserError
from polylm_jax.evaluation import table
from polylm_jax.evaluation.evaluate import evaluate
from polylm_jax.evaluation.results import store
from polylm_jax.evaluation.score import Subject
from polylm_jax.files import existing, local
from polylm_jax.parallel import hosts, together
from polylm_jax.parallel.sharding import attender
from polylm_jax.train.ends import ENDS
from polylm_jax.verbs import train
from polylm_jax.verbs.model_of import model_of

AGAIN = "start all processes again with the same command: what is answered is kept"


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--run", required=True, type=partial(existing, name="--run"), help="folder of a run"
    )
    train.flags(parser)
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
    if config.get("mesh").cpu_devices:
        jax.config.update("jax_num_cpu_devices", config.get("mesh").cpu_devices)

    def leave(word: str, reason: str) -> int:
        return ENDS[word].status

    several = given.coordinator, given.processes, given.process
    with hosts.joined(*several, leave, "evaluate", AGAIN), model_of(given) as model:
        first = together.process() == 0
        say = partial(print, flush=True) if first else lambda line: None
        settings, compute = config.get("evaluation"), model.decoder.compute
        dtype = settings.dtype or compute.dtype
        compute = replace(compute, dtype=dtype, attention="auto")
        decoder = model.decoder.clone(compute=compute, attend=attender(compute, get_mesh()))
        folder = Path(given.out or f"{given.run}/evaluation/{model.step}")
        identity = model.identity | {"dtype": compute.dtype}
        say(f"Evaluating step {model.step} of {given.run} into {folder}.")
        subject = Subject(decoder, model.params, model.tokenizer, model.rows)
        with store(folder, identity) as kept:
            reports = evaluate(subject, settings, kept, say, config.get("corpus").path)
            if not first:
                return
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
