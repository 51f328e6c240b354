"""The command line: polylm VERB --gin_file=FILE --gin.NAME=VALUE."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
from rich.console import Console
from rich.table import Table

from polylm_jax import config, figures, report
from polylm_jax.data import corpus, rows, tokenizer
from polylm_jax.decode.search import generate
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Decoder
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import constrainer
from polylm_jax.train import checkpoint
from polylm_jax.train.loop import train


def run_corpus(flags: argparse.Namespace) -> None:
    """Fetch real text, or take your own, split off held-out documents."""
    settings = config.get("corpus")
    kind = "large" if flags.large else "small"
    print(f"Building the {kind} corpus from {settings.text or 'packages by name'}.")
    manifest = corpus.build(settings, flags.large)
    print(f"{len(manifest['sources'])} sources are in {settings.path}.")


def run_tokenizer(flags: argparse.Namespace) -> None:
    """Train a SentencePiece tokenizer, or take an existing one."""
    settings, text = config.get("tokenizer"), config.get("corpus").path
    print(
        f"Training a tokenizer ({settings.algorithm}, {settings.pieces:,} pieces) on {text}."
        if not settings.model
        else f"Taking the tokenizer {settings.model}."
    )
    trained = tokenizer.train(settings, text)
    table = tokenizer.bytes_per_token(trained, text)
    shown = Table("source", "bytes per token", title="Held-out text")
    for source, value in table.items():
        shown.add_row(source, f"{value:.2f}")
    Console().print(shown)
    figure = figures.bytes_per_token(table, Path(settings.path) / "bytes_per_token.png")
    print(f"The tokenizer is in {settings.path}; the figure is {figure}.")


def run_rows(flags: argparse.Namespace) -> None:
    """Tokenize the corpus into fixed-length rows."""
    settings = config.get("rows")
    print(f"Packing {config.get('corpus').path} into rows of {settings.length} tokens.")
    manifest = rows.build(
        settings, config.get("corpus").path, tokenizer.load(config.get("tokenizer").path)
    )
    print(f"Rows of {len(manifest['sources'])} sources are in {settings.path}.")


def run_train(flags: argparse.Namespace) -> None:
    """Train, or go on training."""
    if flags.multihost:
        jax.distributed.initialize()
    if config.get("mesh").cpu_devices:
        jax.config.update("jax_num_cpu_devices", config.get("mesh").cpu_devices)
    training = config.get("train")
    train(
        training,
        config.get("model"),
        config.get("init"),
        config.get("compute"),
        config.get("mesh"),
        config.get("optimizer"),
        config.get("curriculum"),
        config.get("rows").path,
        tokenizer.load(config.get("tokenizer").path),
        config.resolved(),
    )
    if jax.process_index() == 0:
        print(f"The run is in {training.folder}; `polylm report --run={training.folder}` shows it.")


def run_generate(flags: argparse.Namespace) -> None:
    """Continue prompts with a trained model."""
    if not flags.prompt:
        raise UserError("give at least one --prompt=TEXT.")
    manager = checkpoint.open_existing(flags.run)
    step = manager.latest_step()
    meta = checkpoint.read_meta(manager, step)
    config.parse(flags.gin_file, flags.overrides, meta["gin"])
    size, sampling = config.get("model"), config.get("sampling")
    vocabulary = tokenizer.load(f"{flags.run}/tokenizer.model")
    mesh = make_mesh(MeshShape(data=1, fsdp=1, tensor=-1))
    print(f"Continuing {len(flags.prompt)} prompts with step {step} of {flags.run}.", flush=True)
    with jax.set_mesh(mesh):
        params = checkpoint.restore_params(manager, step, size, mesh)
        decoder = Decoder(size, config.get("compute"), constrain=constrainer(mesh))
        new = generate(decoder, params, vocabulary.encode(flags.prompt), sampling)
    texts = vocabulary.decode(new)
    samples = "\n".join(
        f"[{prompt}]{text}\n" for prompt, text in zip(flags.prompt, texts, strict=True)
    )
    print(samples, end="")
    if flags.out:
        Path(flags.out).write_text(samples, encoding="utf-8")
        print(f"The texts are in {flags.out}.")


def run_report(flags: argparse.Namespace) -> None:
    """Show a run: bits per byte per language, the curriculum, figures, samples."""
    report.report(flags.run, Console())


def run_config(flags: argparse.Namespace) -> None:
    """Print every setting in force, as gin."""
    print(config.resolved(), end="")


VERBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "corpus": run_corpus,
    "tokenizer": run_tokenizer,
    "rows": run_rows,
    "train": run_train,
    "generate": run_generate,
    "report": run_report,
    "config": run_config,
}


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    main_parser = argparse.ArgumentParser(prog="polylm", description=__doc__, allow_abbrev=False)
    verbs = main_parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, function in VERBS.items():
        verb = verbs.add_parser(
            name, help=function.__doc__, description=function.__doc__, allow_abbrev=False
        )
        verb.add_argument(
            "--gin_file", action="append", default=[], help="gin file; may be given again"
        )
        verb.epilog = "Any setting: --gin.BLOCK.FIELD=VALUE; `polylm config` lists them."
        if name == "corpus":
            size = verb.add_mutually_exclusive_group()
            size.add_argument("--small", action="store_true", help="a few MB, by pip (default)")
            size.add_argument("--large", action="store_true", help="tens of MB, by apt too")
        if name == "train":
            verb.add_argument(
                "--multihost", action="store_true", help="join the other hosts of a pod or cluster"
            )
        if name in ("generate", "report"):
            verb.add_argument("--run", required=True, help="folder of a run")
        if name == "generate":
            verb.add_argument("--prompt", action="append", default=[], help="may be given again")
            verb.add_argument("--out", default="", help="file for the texts")
    return main_parser


def main(arguments: list[str] | None = None) -> int:
    """Runs a verb; returns the exit status: 0, or 1 with one sentence on what to mend."""
    flags, rest = parser().parse_known_args(arguments)
    try:
        unknown = [flag for flag in rest if not flag.startswith("--gin.")]
        if unknown:
            raise UserError(f"{unknown[0]} is not a flag of `polylm {flags.verb}`; see --help.")
        flags.overrides = [flag.removeprefix("--gin.") for flag in rest]
        config.parse(flags.gin_file, flags.overrides)
        VERBS[flags.verb](flags)
    except UserError as error:
        print(f"polylm {flags.verb}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
