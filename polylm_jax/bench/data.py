"""The way of the data beside its peers: tokenizing, feeding, seeking; all from one run.

Peers do the same work on the same text: plain SentencePiece on one core; the same rows gathered
in an order known beforehand from one memory map, as Megatron does; seqio's own pipeline, which
tokenizes as it goes; Hugging Face's datasets.
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

from polylm_jax.console import hushed
from polylm_jax.data import corpus
from polylm_jax.data.curriculum import locate, share
from polylm_jax.data.feed import read_rows
from polylm_jax.data.languages import LANGUAGES
from polylm_jax.data.packing import build
from polylm_jax.data.rows import RowSettings, Store, open_store
from polylm_jax.data.schedule import Curriculum, Schedule, make_curriculum
from polylm_jax.data.shards import lines_of
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.files import MANIFEST, write_manifest

BATCH = 512  # rows
TEXT = 30_000_000  # bytes to work on: a small corpus is taken several times, or files' costs show
RUN_LENGTH = 2048  # tokens in a row of the paper's runs, of four bytes each for 256,000 pieces
LARGE = 2**29  # bytes of such a store, more than any cache holds
ROUNDS = 4  # of tokenizing, ours and bare in turn
WARM = 6  # seconds before seqio is timed: it fills a shuffle buffer for each source
TURNS, SECONDS = 20, 0.3  # of the feeds, and how long each
SEEKS = (10**3, 10**6, 10**8)  # rows of the run

# A fresh process, for memory that was ours once stays ours.
SEEK = "import json; from polylm_jax.bench import data; print(json.dumps(data.seek({row})))"


def run(corpus_path: str, tokenizer: Tokenizer, schedule: Schedule, length: int) -> dict:
    """Measure everything on temporary stores of this corpus, which should be a small one.

    Returns tokens per second of each way of tokenizing (on one core) and, for rows of `length`
    and of RUN_LENGTH tokens, of feeding (None where it is not installed; seqio has rows of
    `length` only), and per row sought the seconds and megabytes it took.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = _enough(corpus_path, f"{folder}/text")
        packed = packing_speed(text, tokenizer, f"{folder}/rows", length)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            build(RowSettings(f"{folder}/long", RUN_LENGTH), text, tokenizer)
        _like_a_runs(Path(folder, "long"))
        fed = {}
        for name in ("rows", "long"):
            store = open_store(f"{folder}/{name}")
            sizes = {source: store.rows(source) for source in store.sources}
            curriculum = make_curriculum(schedule, sizes, store.length)
            fed[str(store.length)] = feed_speeds(folder, store, curriculum)
            if name == "rows":
                with hushed():  # TensorFlow tells of all that it lacks
                    peer = seqio_batches(folder, text, tokenizer, curriculum)
                    _speed(peer, WARM)
                    fed[str(length)]["seqio"] = _speed(peer, TURNS * SECONDS)
    return {
        "tokenizing": packed,
        "feeding": fed,
        "seeking": {str(row): _fresh_seek(row) for row in SEEKS},
    }


def show(result: dict, console: Console) -> None:
    """Print what `run` returns as one table, and as JSON on the last line."""
    table = Table("what", "who", "measured", "polylm_jax / it", title="Data, side by side")
    parts = {"tokenizing, one core": result["tokenizing"]}
    parts |= {f"feeding rows of {length}": fed for length, fed in result["feeding"].items()}
    for title, speeds in parts.items():
        for who, speed in speeds.items():
            if speed is None:
                table.add_row(title, who, "not installed", "")
            else:
                ratio = speeds["polylm_jax"] / speed
                table.add_row(title, who, f"{speed:,.0f} tokens/s", f"{ratio:.3g}")
    for row, cost in result["seeking"].items():
        measured = f"{cost['seconds'] * 1000:.1f} ms, {cost['megabytes']:.1f} MB more"
        table.add_row(f"seeking row {int(row):,}", "polylm_jax", measured, "")
    console.print(table)
    print(json.dumps(result))


def _enough(corpus_path: str, path: str) -> str:
    """The corpus, or one in `path` that repeats each of its texts until there is enough text."""
    manifest = corpus.manifest(corpus_path)
    files = {
        (source, split): corpus.files_of(corpus_path, source, split)
        for source in manifest["sources"]
        for split in corpus.SPLITS
    }
    size = sum(text.content for texts in files.values() for text in texts)
    if size >= TEXT:
        return corpus_path
    for (source, split), texts in files.items():
        lines = b""
        for text in texts:
            with lines_of(text) as content:
                lines += content.read()
        manifest["sources"][source][split].pop("shards", None)
        Path(path, source).mkdir(parents=True, exist_ok=True)
        Path(path, source, f"{split}.jsonl").write_bytes(lines * -(-TEXT // size))
    write_manifest(path, manifest)
    return path


def _like_a_runs(path: Path) -> None:
    """Give a store what a run's has: ids of four bytes, and rows that no cache holds.

    A vocabulary of more than 65,536 pieces needs the former; for the latter each source of one
    shard has its rows several times.
    """
    manifest = json.loads((path / MANIFEST).read_text())
    entries = [
        (source, entry)
        for source, splits in manifest["sources"].items()
        for entry in splits.values()
    ]
    size = 4 * sum(entry["tokens"] for _, entry in entries)
    most = max(entry["rows"] for _, entry in entries)
    times = max(1, min(LARGE // size, manifest["made_from"]["shard_rows"] // most))
    for source, entry in entries:
        for shard in entry["shards"]:
            file = path / source / shard["file"]
            ids = np.fromfile(file, manifest["dtype"]).astype("<u4")
            np.append(np.tile(ids[:-1], times), ids[-1]).tofile(file)
            shard["bytes"] = file.stat().st_size
        entry["rows"] *= times
    (path / MANIFEST).write_text(json.dumps(manifest | {"dtype": "uint32"}))


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


def feed_speeds(folder: str, store: Store, curriculum: Curriculum) -> dict:
    """Tokens per second of the training feed and of its peers, the best of rounds in turn."""
    feeds = {"polylm_jax": ours(store, curriculum), "memory map": bare(folder, store, curriculum)}
    if installed := importlib.util.find_spec("datasets") is not None:
        feeds["datasets"] = hugging_face(store, curriculum)
    rounds = [[_speed(feed, SECONDS) for feed in feeds.values()] for _ in range(TURNS + 1)]
    best = [max(speeds) for speeds in zip(*rounds[1:], strict=True)]  # the first warms
    speeds = dict(zip(feeds, best, strict=True))
    return speeds if installed else speeds | {"datasets": None}


def _speed(batches: Iterator[np.ndarray], seconds: float) -> float:
    """Tokens per second of endless batches."""
    tokens, started = 0, time.perf_counter()
    for batch in batches:
        tokens += batch.size
        if time.perf_counter() > started + seconds:
            break
    return tokens / (time.perf_counter() - started)


def ours(store: Store, curriculum: Curriculum) -> Iterator[np.ndarray]:
    """Batches of the run as the training feed reads them, without the target's extra token."""
    for first in _first_rows():
        yield read_rows(store, curriculum, first, first + BATCH)[0][:, :-1]


def bare(folder: str, store: Store, curriculum: Curriculum) -> Iterator[np.ndarray]:
    """The same rows in the same order, the order known beforehand, from one array on disk.

    The array has the store's type; where it has two bytes an id they become four, as they must.
    """
    everything = [store.read(s, np.arange(store.rows(s))) for s in curriculum.sources]
    first_of = np.cumsum([0, *map(len, everything)])
    kind = "<u2" if store.manifest["dtype"] == "uint16" else "<i4"
    np.save(f"{folder}/all.npy", np.concatenate(everything).astype(kind))
    rows = np.asarray(np.load(f"{folder}/all.npy", mmap_mode="r"))
    orders = []
    for first in islice(_first_rows(), 64):
        source, place = locate(curriculum, first, first + BATCH)
        orders.append(first_of[source] + place)
    while True:
        for order in orders:
            yield rows[order].astype(np.int32, copy=False)[:, :-1]


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
    tokens = [row for part in everything for row in part]
    rows = datasets.Dataset.from_dict({"tokens": tokens}).with_format("numpy")
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
