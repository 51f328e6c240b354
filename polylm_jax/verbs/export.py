"""Write a trained model for others: a Hugging Face folder, a GGUF file for llama.cpp, or the
adapters (LoRA) alone for peft."""

import argparse
import tempfile
from functools import partial
from pathlib import Path

from polylm_jax import config
from polylm_jax.decode import chat
from polylm_jax.errors import UserError
from polylm_jax.files import existing, new_file, new_folder, new_place
from polylm_jax.interop.convert import EXPORTED, export_weights
from polylm_jax.interop.folder import model_card, write_configs, write_tokenizer
from polylm_jax.interop.gguf_file import likeness, write_gguf
from polylm_jax.interop.peft import write_peft
from polylm_jax.runs.log import read_metrics, untrained_and_trained
from polylm_jax.train.door import Run, open_run
from polylm_jax.train.log import logs

# What each format can be written in; the first is the default.
FORMATS = {
    "hugging_face": tuple(EXPORTED),
    "gguf": ("f16", "q8_0", "f32"),
    "peft": ("float32",),
}


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--run", required=True, type=partial(existing, name="--run"), help="folder of a run"
    )
    parser.add_argument(
        "--to",
        required=True,
        type=partial(new_place, name="--to"),
        help="folder to make, or file.gguf",
    )
    parser.add_argument(
        "--format",
        default="hugging_face",
        choices=FORMATS,
        help="hugging_face, the default, is a folder for transformers; gguf a file for llama.cpp; "
        "both have a run's adapters merged into its base, peft is a folder of the adapters alone",
    )
    parser.add_argument(
        "--dtype",
        default="",
        help="; ".join(f"{name}: {', '.join(types)}" for name, types in FORMATS.items()),
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    dtypes = FORMATS[given.format]
    dtype = given.dtype or dtypes[0]
    if dtype not in dtypes:
        raise UserError(
            f"--dtype={dtype} is nothing that {given.format} is written in; give one of "
            f"{', '.join(dtypes)}."
        )
    model = open_run(given.run)
    config.parse(given.gin_file, given.overrides, model.meta["gin"])
    if given.format == "peft" and model.base is None:
        raise UserError(
            f"{given.run} has no adapters: all its weights were trained; leave out --format=peft."
        )
    print(f"Exporting step {model.step} of {given.run} in {dtype}.", flush=True)
    {"hugging_face": _to_folder, "gguf": _to_gguf, "peft": _to_peft}[given.format](
        model, given.to, dtype
    )


def _to_folder(model: Run, to: str, dtype: str) -> None:
    # a run that was imported and never trained has no log
    bits = untrained_and_trained(read_metrics(model.folder)) if logs(model.folder)[1] else None
    with new_folder(to) as folder:
        agree = write_tokenizer(folder, model.tokenizer, model.size.context, _template())
        write_configs(folder, model.size, dtype, config.get("init").std)
        rounding = export_weights(model, folder, dtype)
        card = model_card(model, bits, agree)
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(agree)
    if model.base is not None:
        print(
            f"The adapters are merged in float32 into step {model.base.step} of "
            f"{model.base.folder}; rounding to {dtype} changed a weight by at most {rounding:.3g}."
        )
    print(f"The model is in {to}; transformers loads it as GPT2LMHeadModel.")


def _template() -> str:
    settings = config.get("chat")
    return chat.template(chat.FORMATS[settings.format], settings.keep_ends)


def _to_peft(model: Run, to: str, dtype: str) -> None:
    with new_folder(to) as folder:
        agree = write_tokenizer(folder, model.tokenizer, model.size.context, _template())
        write_peft(model, folder)
    print(agree)
    assert model.base is not None
    print(
        f"The adapters are in {to}; peft loads them onto what `polylm export "
        f"--run={model.base.folder}` writes."
    )


def _to_gguf(model: Run, to: str, dtype: str) -> None:
    target = Path(to)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        new_file(target, target.parent) as file,
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch,
    ):
        write_gguf(model, Path(file.name), Path(scratch), dtype)
    print(likeness(model.tokenizer.model))
    print(f"The model is in {to}; `llama-server -m {to}` and others of llama.cpp load it.")
