"""Make a run from a Hugging Face GPT-2: a folder, or ORG/NAME on the hub."""

import argparse
import dataclasses
import shutil
from functools import partial
from pathlib import Path

import jax

from polylm_jax import config
from polylm_jax.files import existing, local, new_place
from polylm_jax.interop import hub
from polylm_jax.interop.convert import import_folder, read_size
from polylm_jax.model.parameters import count
from polylm_jax.parallel.mesh import make_mesh


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument("--from", required=True, dest="source", help="folder, or ORG/NAME")
    parser.add_argument(
        "--run",
        required=True,
        type=partial(new_place, name="--run"),
        help="folder of the run to make",
    )
    parser.add_argument(
        "--tokenizer",
        type=partial(local, name="--tokenizer"),
        help="SentencePiece file, if the folder has no tokenizer.model",
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    source, fetched = given.source, Path(f"{given.run}.download")
    if hub.is_name(source):
        source = str(fetched / source.replace("/", "--"))
        hub.download(given.source, Path(source), given.tokenizer or "")
    else:
        source = existing(source, "--from", local)
    size = read_size(source)
    sizes = [f"model.{name}={value}" for name, value in dataclasses.asdict(size).items()]
    config.parse(given.gin_file, [*given.overrides, *sizes])
    shape = config.get("mesh")
    if shape.cpu_devices:
        jax.config.update("jax_num_cpu_devices", shape.cpu_devices)
    print(f"Importing {count(size):,} parameters from {given.source}.", flush=True)
    mesh = make_mesh(shape)
    import_folder(source, given.run, size, mesh, config.resolved(), given.tokenizer or "")
    if hub.is_name(given.source):
        shutil.rmtree(fetched)
    print(f"The run is in {given.run}; `polylm generate --run={given.run}` continues prompts.")
