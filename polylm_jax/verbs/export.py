"""Write a trained model as a Hugging Face folder: GPT2LMHeadModel, safetensors, fast tokenizer."""

import argparse
from pathlib import Path

from polylm_jax import config
from polylm_jax.errors import UserError
from polylm_jax.files import new_folder
from polylm_jax.interop.convert import EXPORTED, export_weights
from polylm_jax.interop.folder import model_card, write_configs, write_tokenizer
from polylm_jax.runs import read_metrics, untrained_and_trained
from polylm_jax.train.door import open_run
from polylm_jax.train.log import logs


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument("--run", required=True, help="folder of a run")
    parser.add_argument("--to", required=True, help="folder to make")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=EXPORTED,
        help="float32, the default, loses nothing; the others halve the files",
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    if Path(given.to).exists():
        raise UserError(f"{given.to} already exists; delete it or give another --to.")
    model = open_run(given.run)
    config.parse(given.gin_file, given.overrides, model.meta["gin"])
    # a run that was imported and never trained has no log
    bits = untrained_and_trained(read_metrics(given.run)) if logs(given.run)[1] else None
    print(f"Exporting step {model.step} of {given.run} in {given.dtype}.", flush=True)
    with new_folder(given.to) as folder:
        agree = write_tokenizer(folder, model.tokenizer, model.size.context)
        write_configs(folder, model.size, given.dtype, config.get("init").std)
        export_weights(model, folder, given.dtype)
        card = model_card(model, bits, agree)
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(agree)
    print(f"The model is in {given.to}; transformers loads it as GPT2LMHeadModel.")
