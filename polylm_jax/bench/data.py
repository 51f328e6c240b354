"""The way of the data beside its peers: tokenizing, feeding, seeking; all from one run.

Peers do the same work on the same text: plain SentencePiece on one core; a bare memory map read
in the same order; seqio's own pipeline, which tokenizes as it goes; Hugging Face's datasets.
"""

import importlib.util
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from polylm_jax.data import corpus
from polylm_jax.data.curriculum import Curriculum, Schedule, locate, make_curriculum, share
from polylm_jax.data.feed import read_rows
from polylm_jax.data.languages import LANGUAGES
from polylm_jax.data.packing import build
from polylm_jax.data.rows import RowSettings, Store, open_store
from polylm_jax.data.tokenizer import Tokenizer

BATCH = 512  # rows
ROUNDS = 4  # of tokenizing, ours and bare in turn
WARM = 6  # seconds before a feed is timed: seqio fills a shuffle buffer for each source
SECONDS = 4  # that a feed is timed for
SEEKS = (10**3, 10**6, 10**8)  # rows of the run

# A fresh process, for memory that was ours once stays ours.
SEEK = "import json; from polylm_jax.bench import data; print(json.dumps(data.seek({row})))"


def run(corpus_path: str, tokenizer: Tokenizer, schedule: Schedule, length: int) -> dict:
    """Measure everything on a temporary store of this corpus, which should be a small one.

    Returns tokens per second of each way of tokenizing (on one core) and of feeding (None where
    it is not installed), the ratios, and per row sought the seconds and megabytes it took.
    """
    with tempfile.TemporaryDirectory() as folder:
        packed = packing_speed(corpus_path, tokenizer, f"{folder}/rows", length)
        store = open_store(f"{folder}/rows")
        sizes = {source: store.rows(source) for source in store.sources}
        curriculum = make_curriculum(schedule, sizes, length)
        fed = {
            "polylm_jax": feed_speed(ours(store, curriculum)),
            "memory map": feed_speed(bare(folder, store, curriculum)),
            "seqio": feed_speed(seqio_batches(folder, corpus_path, tokenizer, curriculum)),
        }
        installed = importlib.util.find_spec("datasets") is not None
        arrow = feed_speed(hugging_face(store, curriculum)) if installed else None
    return {
        "tokenizing": packed,
        "feeding": {**fed, "datasets": arrow},
        "ratios": {
            "packing to sentencepiece": packed["polylm_jax"] / packed["sentencepiece"],
            "feed to memory map": fed["polylm_jax"] / fed["memory map"],
            "feed to seqio": fed["polylm_jax"] / fed["seqio"],
        },
        "seeking": {str(row): _fresh_seek(row) for row in SEEKS},
    }


def show(result: dict, console: Console) -> None:
    """Print what `run` returns as one table, and as JSON on the last line."""
    table = Table("what", "who", "measured", "beside polylm_jax", title="Data, side by side")
    for title, speeds in (
        ("tokenizing, one core", result["tokenizing"]),
        ("feeding", result["feeding"]),
    ):
        for who, speed in speeds.items():
            if speed is None:
                table.add_row(title, who, "not installed", "")
            else:
                ratio = speed / speeds["polylm_jax"]
                table.add_row(title, who, f"{speed:,.0f} tokens/s", f"{ratio:.3g} x")
    for row, cost in result["seeking"].items():
        measured = f"{cost['seconds'] * 1000:.1f} ms, {cost['megabytes']:.1f} MB more"
        table.add_row(f"seeking row {int(row):,}", "polylm_jax", measured, "")
    console.print(table)
    print(json.dumps(result))


def packing_speed(corpus_path: str, tokenizer: Tokenizer, path: str, length: int) -> dict:
    """Tokens per second of a core's own time: a whole store built, and a bare encode.

    The best of some rounds in turn; the last store stays at `path`.
    """
    text = [
        text
        for source in corpus.sources(corpus_path)
        for split in corpus.SPLITS
        for text in corpus.documents(corpus_path, source, split)
    ]

    def packed() -> int:
        shutil.rmtree(path, ignore_errors=True)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            return build(RowSettings(path, length), corpus_path, tokenizer, workers=1)["tokens"]

    def encoded() -> int:
        # by the thousand, as one would: all at once the lists outgrow every cache
        thousands = [text[first : first + 1000] for first in range(0, len(text), 1000)]
        ids = (tokenizer.processor.encode(some, add_eos=True, num_threads=1) for some in thousands)
        return sum(sum(map(len, some)) for some in ids)

    def speed(work: Callable[[], int]) -> float:
        started = time.process_time()
        return work() / (time.process_time() - started)

    rounds = [(speed(packed), speed(encoded)) for _ in range(ROUNDS)]
    best = [max(speeds) for speeds in zip(*rounds, strict=True)]
    return dict(zip(("polylm_jax", "sentencepiece"), best, strict=True))


def feed_speed(batches: Iterator[np.ndarray]) -> float:
    """Tokens per second of endless batches [rows, tokens], once they are warm."""
    next(batches)
    _drawn(batches, WARM)
    started = time.perf_counter()
    return _drawn(batches, SECONDS) / (time.perf_counter() - started)


def _drawn(batches: Iterator[np.ndarray], seconds: float) -> int:
    tokens, end = 0, time.perf_counter() + seconds
    for batch in batches:
        tokens += batch.size
        if time.perf_counter() > end:
            break
    return tokens


def ours(store: Store, curriculum: Curriculum) -> Iterator[np.ndarray]:
    """Batches of the run as the training feed reads them, without the target's extra token."""
    for first in _first_rows():
        yield read_rows(store, curriculum, first, first + BATCH)[0][:, :-1]


def bare(folder: str, store: Store, curriculum: Curriculum) -> Iterator[np.ndarray]:
    """The same rows in the same order, the order known beforehand, from one array on disk."""
    everything = [store.read(s, np.arange(store.rows(s))) for s in curriculum.sources]
    first_of = np.cumsum([0, *map(len, everything)])
    np.save(f"{folder}/all.npy", np.concatenate(everything))
    rows = np.load(f"{folder}/all.npy", mmap_mode="r")
    orders = []
    for first in islice(_first_rows(), 64):
        source, place = locate(curriculum, first, first + BATCH)
        orders.append(first_of[source] + place)
    while True:
        for order in orders:
            yield rows[order][:, :-1]


def seqio_batches(
    folder: str, corpus_path: str, tokenizer: Tokenizer, curriculum: Curriculum
) -> Iterator[np.ndarray]:
    """seqio's way: a text task a source, tokenized and packed on the fly, drawn by rates."""
    import seqio

    Path(folder, "tokenizer.model").write_bytes(tokenizer.model)
    features = {
        "targets": seqio.Feature(seqio.SentencePieceVocabulary(f"{folder}/tokenizer.model"))
    }
    rates = []
    for source, rate in zip(curriculum.sources, share(curriculum, 0), strict=True):
        file = Path(folder, f"{source}.txt")
        texts = corpus.documents(corpus_path, source, "train")
        file.write_text("".join(text.replace("\n", " ") + "\n" for text in texts), "utf-8")
        name = f"bench_{source.replace('-', '_')}"
        seqio.TaskRegistry.remove(name)
        seqio.TaskRegistry.add(
            name,
            seqio.TextLineDataSource({"train": str(file)}),
            preprocessors=[
                lambda lines: lines.map(lambda line: {"targets": line}),
                seqio.preprocessors.tokenize,
                seqio.preprocessors.append_eos,
                # whole windows, or it would drop what is beyond a document's first
                lambda examples, sequence_length: (
                    examples.map(lambda example: example["targets"])
                    .rebatch(sequence_length["targets"], drop_remainder=True)
                    .map(lambda targets: {"targets": targets})
                ),
            ],
            output_features=features,
        )
        rates.append((name, float(rate)))
    seqio.MixtureRegistry.remove("bench")
    seqio.MixtureRegistry.add("bench", [(name, rate) for name, rate in rates if rate])
    dataset = seqio.get_dataset(
        "bench",
        {"targets": curriculum.length},
        dataset_split="train",
        shuffle=True,
        num_epochs=None,
        feature_converter=seqio.LMFeatureConverter(pack=True),
    )
    for batch in dataset.batch(32).prefetch(2).as_numpy_iterator():
        targets = batch["decoder_target_tokens"]
        yield targets[batch["decoder_segment_ids"] > 0]  # padding is no work done


def hugging_face(store: Store, curriculum: Curriculum) -> Iterator[np.ndarray]:
    """The same rows in the same order, from an Arrow table of rows tokenized beforehand."""
    import datasets

    everything = [store.read(s, np.arange(store.rows(s))) for s in curriculum.sources]
    first_of = np.cumsum([0, *map(len, everything)])
    rows = datasets.Dataset.from_dict({"tokens": np.concatenate(everything)}).with_format("numpy")
    for first in _first_rows():
        source, place = locate(curriculum, first, first + BATCH)
        yield np.asarray(rows[first_of[source] + place]["tokens"])[:, :-1]


def seek(row: int) -> dict:
    """Seconds and growth of resident memory to find a batch, starting at `row`.

    The schedule is of 20 sources: all languages, and two of bilingual text.
    """
    sizes = dict.fromkeys([*LANGUAGES, "en-de", "en-fr"], 10**6)
    schedule = Schedule(((0, 0.3), (1e11, 0.6)), extras={"bilingual": ((0, 0.05),)})
    curriculum = make_curriculum(schedule, sizes, 2048)
    before, started = _resident_megabytes(), time.perf_counter()
    locate(curriculum, row, row + BATCH)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "megabytes": _resident_megabytes() - before}


def _fresh_seek(row: int) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", SEEK.format(row=row)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def _first_rows() -> Iterator[int]:
    first = 0
    while True:
        yield first
        first += BATCH


def _resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
