"""Run lm-eval's own command line on a run."""

import argparse
from functools import partial

from polylm_jax import config
from polylm_jax.evaluation.harness import Subject, evaluate_with
from polylm_jax.files import existing
from polylm_jax.verbs.model_of import model_of


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--run", required=True, type=partial(existing, name="--run"), help="folder of a run"
    )
    parser.epilog = f"{parser.epilog}\nWhat stands after -- is for lm-eval."
    parser.set_defaults(others=[])


def run(given: argparse.Namespace) -> int:
    """Runs the verb."""
    with model_of(given) as model:
        settings, length = config.get("chat"), config.get("evaluation").row_length

        def make(batch: int) -> Subject:
            print(f"lm-eval asks step {model.step} of {given.run}.", flush=True)
            return Subject(
                model.decoder, model.params, model.tokenizer, model.rows, batch, length, settings
            )

        named = {"model_revision": f"step {model.step}", "model_sha": model.checksum}
        return evaluate_with(make, given.run, named, given.others)
