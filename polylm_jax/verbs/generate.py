"""Continue prompts with a trained model."""

import argparse
import math
from pathlib import Path

import jax

from polylm_jax import config
from polylm_jax.data import tokenizer
from polylm_jax.decode.search import generate
from polylm_jax.decode.weights import for_decoding
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Decoder
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import constrainer
from polylm_jax.train import checkpoint


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument("--run", required=True, help="folder of a run")
    parser.add_argument("--prompt", action="append", default=[], help="may be given again")
    parser.add_argument("--out", default="", help="file for the texts")


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    if not given.prompt:
        raise UserError("give at least one --prompt=TEXT.")
    manager = checkpoint.open_existing(given.run)
    step = manager.latest_step()
    meta = checkpoint.read_meta(manager, step)
    config.parse(given.gin_file, given.overrides, meta["gin"])
    size, sampling = config.get("model"), config.get("sampling")
    vocabulary = tokenizer.load(f"{given.run}/tokenizer.model")
    # as many ways over tensor as the model allows, so that each token reads the weights once
    ways = math.gcd(jax.device_count(), size.heads, size.d_ff, size.vocabulary)
    mesh = make_mesh(MeshShape(data=-1, fsdp=1, tensor=ways))
    print(f"Continuing {len(given.prompt)} prompts with step {step} of {given.run}.", flush=True)
    with jax.set_mesh(mesh):
        params = checkpoint.restore_params(manager, step, size, mesh)
        decoder = Decoder(size, config.get("compute"), constrain=constrainer(mesh))
        params = for_decoding(params, size, decoder.compute.dtype)
        prompts = vocabulary.encode(given.prompt)
        new = generate(decoder, params, prompts, sampling, rows=mesh.shape["data"])
    texts = vocabulary.decode(new)
    samples = "\n".join(
        f"[{prompt}]{text}\n" for prompt, text in zip(given.prompt, texts, strict=True)
    )
    print(samples, end="")
    if given.out:
        Path(given.out).write_text(samples, encoding="utf-8")
        print(f"The texts are in {given.out}.")
