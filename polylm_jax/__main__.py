"""The command line: polylm VERB --gin_file=FILE --gin.NAME=VALUE."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
from rich.console import Console
from rich.table import Column, Table

from polylm_jax import config, figures, report
from polylm_jax.bench import data as bench_data
from polylm_jax.data import corpus, curriculum, packing, rows, tokenizer
from polylm_jax.decode.search import generate
from polylm_jax.errors import UserError
from polylm_jax.files import MANIFEST
from polylm_jax.model.decoder import Decoder
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import constrainer
from polylm_jax.runs import Rows
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
    """Tokenize the corpus into fixed-length rows; check them; show one."""
    if flags.action == "verify":
        store = rows.open_store(config.get("rows").path)
        print(f"All {rows.verify(store):,} files of {store.path} are as they were written.")
    elif flags.action == "show":
        show_row(flags.row, flags.source)
    else:
        settings = config.get("rows")
        print(f"Packing {config.get('corpus').path} into rows of {settings.length} tokens.")
        manifest = packing.build(
            settings, config.get("corpus").path, tokenizer.load(config.get("tokenizer").path)
        )
        print(f"Rows of {len(manifest['sources'])} sources are in {settings.path}.")


def show_row(number: int | None, source: str) -> None:
    """Print a row of the run, or of one source, and the documents that it is from."""
    if number is None or number < 0:
        raise UserError("say which row, counted from 0: polylm rows show N.")
    store = rows.open_store(config.get("rows").path)
    vocabulary = tokenizer.load(config.get("tokenizer").path)
    if vocabulary.fingerprint != store.tokenizer_fingerprint:
        raise UserError(
            f"{store.path} was not made with the tokenizer in {config.get('tokenizer').path}; "
            "give the one that it was made with as --gin.tokenizer.path=FOLDER."
        )
    place = number
    if source:
        if number >= store.rows(source):
            raise UserError(f'"{source}" has rows 0 to {store.rows(source) - 1:,}; ask for those.')
        print(f"Row {place:,} of the {store.rows(source):,} of {source}:")
    else:
        sizes = {name: store.rows(name) for name in store.sources}
        order = curriculum.make_curriculum(config.get("curriculum"), sizes, store.length)
        indices, places = curriculum.locate(order, number, number + 1)
        source, place = order.sources[indices[0]], int(places[0])
        print(
            f"Row {number:,} of the run is row {place:,} of the {store.rows(source):,} of {source}:"
        )
    [ids] = store.read(source, np.array([place]))
    documents = np.split(ids, np.flatnonzero(ids == tokenizer.EOS) + 1)
    texts = vocabulary.decode([document.tolist() for document in documents])
    print("</s>\n".join(texts))
    found = Table("document", "from", title="Where it is from")
    for origin in store.origins(config.get("corpus").path, source, place):
        found.add_row(f"{origin.file}:{origin.line}", origin.name)
    Console().print(found)


def run_curriculum(flags: argparse.Namespace) -> None:
    """Show what a schedule reads over a run: tokens and epochs of each source, and a figure."""
    training, schedule, settings = (config.get(name) for name in ("train", "curriculum", "rows"))
    total = training.steps * training.batch
    if total < 1:
        raise UserError("train.steps and train.batch must be at least 1.")
    if stored := Path(settings.path, MANIFEST).is_file():
        store = rows.open_store(settings.path)
        sizes, length = {source: store.rows(source) for source in store.sources}, store.length
    else:
        print(f"There are no rows at {settings.path}: all sources are taken, without epochs.")
        sizes, length = dict.fromkeys(curriculum.every_source(schedule), 1), settings.length
    plan = curriculum.make_curriculum(schedule, sizes, length)
    print(f"Reading {total * length:,} tokens, {total:,} rows of {length}.")
    shown = Table("source", *(Column(name, justify="right") for name in ("tokens", "share")))
    if stored:
        shown.add_column("epochs", justify="right")
    read, epochs = curriculum.consumed(plan, total), curriculum.epochs(plan, total)
    for source, count, times in zip(plan.sources, read.tolist(), epochs, strict=True):
        cells = [f"{count * length:,}", f"{count / total:.2%}"]
        shown.add_row(source, *cells, *([f"{times:.2f}"] if stored else []))
    Console().print(shown)
    often = ", ".join(np.array(plan.sources)[epochs > curriculum.MOST_EPOCHS])
    if stored and often:
        print(
            f"Warning: {often} repeat more than {curriculum.MOST_EPOCHS} times, after which "
            "reading again helps little (Muennighoff et al. 2023); add text or lower the share."
        )
    if stored and schedule.on_end == "refuse" and (epochs > 1).any():
        short = ", ".join(np.array(plan.sources)[epochs > 1])
        print(f'Warning: the run will stop early, out of {short} (curriculum.on_end = "refuse").')
    edges = np.unique(np.linspace(0, total, 1001).astype(np.int64))
    due = curriculum.integral(plan, edges)
    drawn = figures.schedule(
        Rows(edges * float(length), list(plan.sources), due, due),
        Path(training.folder) / "figures" / "schedule.png",
    )
    print(f"The figure is {drawn}.")


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
    # as many ways over tensor as the model allows, so that each token reads the weights once
    ways = math.gcd(jax.device_count(), size.heads, size.d_ff, size.vocabulary)
    mesh = make_mesh(MeshShape(data=-1, fsdp=1, tensor=ways))
    print(f"Continuing {len(flags.prompt)} prompts with step {step} of {flags.run}.", flush=True)
    with jax.set_mesh(mesh):
        params = checkpoint.restore_params(manager, step, size, mesh)
        decoder = Decoder(size, config.get("compute"), constrain=constrainer(mesh))
        prompts = vocabulary.encode(flags.prompt)
        new = generate(decoder, params, prompts, sampling, rows=mesh.shape["data"])
    texts = vocabulary.decode(new)
    samples = "\n".join(
        f"[{prompt}]{text}\n" for prompt, text in zip(flags.prompt, texts, strict=True)
    )
    print(samples, end="")
    if flags.out:
        Path(flags.out).write_text(samples, encoding="utf-8")
        print(f"The texts are in {flags.out}.")


def run_bench(flags: argparse.Namespace) -> None:
    """Measure a part of the program beside its peers."""
    length, text = config.get("rows").length, config.get("corpus").path
    print(f"Tokenizing {text} on one core, then feeding rows of {length} tokens; a minute or so.")
    result = bench_data.run(
        text, tokenizer.load(config.get("tokenizer").path), config.get("curriculum"), length
    )
    if flags.json:
        Path(flags.json).write_text(json.dumps(result, indent=1) + "\n")
    bench_data.show(result, Console())


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
    "curriculum": run_curriculum,
    "train": run_train,
    "generate": run_generate,
    "bench": run_bench,
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
        if name == "rows":
            verb.add_argument(
                "action", nargs="?", choices=("build", "verify", "show"), default="build"
            )
            verb.add_argument("row", nargs="?", type=int, help="of the run, to show")
            verb.add_argument("--source", default="", help="show a row of this source instead")
        if name == "bench":
            verb.add_argument("part", choices=("data",), help="what to measure")
            verb.add_argument("--json", default="", help="file for the figures")
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
    given = sys.argv[1:] if arguments is None else arguments
    # argparse takes an unknown flag with a space in it for a positional
    gin_flags = [flag for flag in given if flag.startswith("--gin.")]
    flags, rest = parser().parse_known_args([flag for flag in given if flag not in gin_flags])
    try:
        if rest:
            raise UserError(f"{rest[0]} is not a flag of `polylm {flags.verb}`; see --help.")
        flags.overrides = [flag.removeprefix("--gin.") for flag in gin_flags]
        config.parse(flags.gin_file, flags.overrides)
        VERBS[flags.verb](flags)
    except UserError as error:
        print(f"polylm {flags.verb}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"polylm {flags.verb}: {error.strerror or error}{where}; nothing whole was lost: "
            "mend that and run the same command again.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
