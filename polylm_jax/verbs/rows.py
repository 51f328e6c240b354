"""Tokenize the corpus into fixed-length rows; check them; show one."""

import argparse
from dataclasses import replace
from functools import partial
from typing import Annotated

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polylm_jax import config
from polylm_jax.console import visible
from polylm_jax.data import curriculum, packing, rows, tokenizer
from polylm_jax.data.schedule import HORIZON
from polylm_jax.decode.chat import decode_after
from polylm_jax.errors import UserError
from polylm_jax.files import existing
from polylm_jax.ranges import Range
from polylm_jax.train.course import planned
from polylm_jax.tune.instruct import schedule_of
from polylm_jax.tune.packing import spans
from polylm_jax.verbs import number

Row = Annotated[int, Range(0, HORIZON - 1)]


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument("action", nargs="?", choices=("build", "verify", "show"), default="build")
    parser.add_argument("row", nargs="?", type=number("N", Row), help="of the run, to show")
    parser.add_argument(
        "--extend",
        type=partial(existing, name="--extend"),
        metavar="DIR",
        help="rows that come first, to which those of the corpus are added",
    )
    parser.add_argument(
        "--runner", default="", help="of Apache Beam, to share the work of build and verify"
    )
    parser.add_argument("--source", default="", help="show a row of this source instead")


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    beam = replace(config.get("beam"), runner=given.runner) if given.runner else None
    if given.action == "verify":
        store = rows.open_store(config.get("rows").path)
        print(f"All {rows.verify(store, beam):,} files of {store.path} are as they were written.")
    elif given.action == "show":
        show_row(given.row, given.source)
    else:
        settings = config.get("rows")
        print(f"Packing {config.get('corpus').path} into rows of {settings.length} tokens.")
        manifest = packing.build(
            settings,
            config.get("corpus").path,
            tokenizer.load(config.get("tokenizer").path),
            extends=given.extend or "",
            beam=beam,
        )
        print(f"Rows of {len(manifest['sources'])} sources are in {settings.path}.")


def show_row(number: int | None, source: str) -> None:
    """Print a row of the run, or of one source, and the documents that it is from."""
    if number is None:
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
        training, schedule = config.get("train"), config.get("curriculum")
        if store.marked:
            sizes = {name: store.rows(name) for name in store.sources}
            schedule = schedule_of(sizes, config.get("tune").seed)
        order = planned(training.folder, training.accept_changes, schedule, store)
        indices, places = curriculum.locate(order, number, number + 1)
        source, place = order.sources[indices[0]], int(places[0])
        print(
            f"Row {number:,} of the run is row {place:,} of the {store.rows(source):,} of {source}:"
        )
    [ids] = store.read(source, np.array([place]))
    if store.marked:
        [marks] = store.marks_mixed((source,), np.array([0]), np.array([place]))
        _paint(spans(ids, marks), vocabulary)
    else:
        # the first may go on from the row before, with the space that stands between them
        before = store.read(source, np.array([place - 1]))[0, : store.length] if place else ids[:0]
        _print_documents(before, ids, vocabulary)
    found = Table("document", "from", title="Where it is from")
    for origin in store.origins(config.get("corpus").path, source, place):
        found.add_row(f"{origin.file}:{origin.line}", visible(origin.name))
    Console().print(found)


def _print_documents(before: np.ndarray, ids: np.ndarray, vocabulary: tokenizer.Tokenizer) -> None:
    documents = np.split(ids, np.flatnonzero(ids == tokenizer.EOS) + 1)
    begun = before[np.flatnonzero(before == tokenizer.EOS).max(initial=-1) + 1 :]
    befores = [begun.tolist(), *([[]] * (len(documents) - 1))]
    texts = [
        decode_after(vocabulary, known, document.tolist())
        for known, document in zip(befores, documents, strict=True)
    ]
    print(visible("</s>\n".join(texts)))


def _paint(examples: list[list[tuple[str, list[int]]]], vocabulary: tokenizer.Tokenizer) -> None:
    """Print what each token is for: in colours on a terminal, else by name."""
    console = Console(soft_wrap=True, highlight=False)
    styles = {"prompt": "default", "answer": "bold green", "end": "reverse", "padding": "dim"}
    if console.is_terminal:
        console.print(*(Text(kind, style) for kind, style in styles.items()))
    for nth, parts in enumerate(examples, 1):
        shown = Text(f"{nth:>4} ", "dim")
        for kind, ids in parts:
            text = visible(vocabulary.decode([ids])[0])
            text = {"end": "</s>", "padding": f"({len(ids)} places)"}.get(kind, text)
            shown.append(text if console.is_terminal else f"[{kind}]{text}", styles[kind])
        console.print(shown)
