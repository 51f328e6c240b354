"""Write a trained model as a Hugging Face folder: GPT2LMHeadModel, safetensors, fast tokenizer."""

import argparse
from functools import partial

from polylm_jax import config
from polylm_jax.data import tokenizer
from polylm_jax.files import existing, new_folder, new_place
from polylm_jax.interop.convert import EXPORTED, export_weights
from polylm_jax.interop.folder import model_card, write_configs, write_tokenizer
from polylm_jax.interop.orbax_files import arrays_of
from polylm_jax.runs import read_metrics, untrained_and_trained
from polylm_jax.sizes import Size
from polylm_jax.train import checkpoint
from polylm_jax.train.log import logs


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--run", required=True, type=partial(existing, name="--run"), help="folder of a run"
    )
    parser.add_argument(
        "--to", required=True, type=partial(new_place, name="--to"), help="folder to make"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=EXPORTED,
        help="float32, the default, loses nothing; the others halve the files",
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    manager = checkpoint.open_existing(given.run)
    step, said = checkpoint.newest_sound(manager)
    if said:
        print(said)
    meta = checkpoint.read_meta(manager, step)
    config.parse(given.gin_file, given.overrides, meta["gin"])
    size = Size(**meta["model"])
    vocabulary = tokenizer.load(f"{given.run}/{tokenizer.MODEL}")
    # a run that was imported and never trained has no log
    bits = untrained_and_trained(read_metrics(given.run)) if logs(given.run)[1] else None
    print(f"Exporting step {step} of {given.run} in {given.dtype}.", flush=True)
    with new_folder(given.to) as folder:
        export_weights(arrays_of(manager, step), size, folder, given.dtype)
        write_configs(folder, size, given.dtype, config.get("init").std)
        write_tokenizer(folder, vocabulary, size.context)
        (folder / "README.md").write_text(model_card(size, step, meta, bits), encoding="utf-8")
    print(f"The model is in {given.to}; transformers loads it as GPT2LMHeadModel.")
