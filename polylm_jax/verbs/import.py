"""Make a run from a Hugging Face GPT-2 folder (config.json, tokenizer.model, weights)."""

import argparse
import dataclasses
from functools import partial

import jax

from polylm_jax import config
from polylm_jax.files import existing, local, new_place
from polylm_jax.interop.convert import import_folder, read_size
from polylm_jax.model.parameters import count
from polylm_jax.parallel.mesh import make_mesh


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--from",
        required=True,
        dest="source",
        type=partial(existing, name="--from", where=local),
        help="Hugging Face folder",
    )
    parser.add_argument(
        "--run",
        required=True,
        type=partial(new_place, name="--run"),
        help="folder of the run to make",
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    size = read_size(given.source)
    sizes = [f"model.{name}={value}" for name, value in dataclasses.asdict(size).items()]
    config.parse(given.gin_file, [*given.overrides, *sizes])
    shape = config.get("mesh")
    if shape.cpu_devices:
        jax.config.update("jax_num_cpu_devices", shape.cpu_devices)
    print(f"Importing {count(size):,} parameters from {given.source}.", flush=True)
    import_folder(given.source, given.run, size, make_mesh(shape), config.resolved())
    print(f"The run is in {given.run}; `polylm generate --run={given.run}` continues prompts.")
