"""Rows of examples to learn from: conversations as ids and marks, packed, in a row store.

An example is what the decoder would see if it were served: the prompt encoded as serving encodes
it, the answer apart, then `</s>`. Rows are `length + 1` ids, whole examples side by side and
padding at the end; `polylm_jax.data.rows` says how they lie on disk and what the marks are.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from polylm_jax.data.permutation import key_of
from polylm_jax.data.rows import EXAMPLE, RowSettings, checksum, open_store
from polylm_jax.data.schedule import Schedule
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.decode.chat import FORMATS, ChatSettings, Segment, Turn, encode, inert, render
from polylm_jax.errors import UserError
from polylm_jax.files import LocalPlace, already_made, local, new_folder, write_manifest
from polylm_jax.ranges import OneOf, Range, Seed, check
from polylm_jax.tune import examples
from polylm_jax.tune.examples import Account, Example, ExampleSettings
from polylm_jax.tune.packing import Encoded, laid_out, pack

SPLITS = ("train", "valid")
AT_ONCE = 4096  # texts that are encoded at once
Parts = list[np.ndarray]  # a text's segments, each int32 ids
MADE_BY = ("validation", "learn", "too_long", "pack", "seed")  # settings that the rows follow from


@dataclass(frozen=True)
class TuneSettings:
    """What is learned from, and how rows are made of it.

    data: JSONL files, one a language or several; see `polylm_jax.tune.examples`.
    epochs: how often each row is read; the run's steps follow, and those of the optimizer's
        decay.
    warmup: share of the steps in which the learning rate rises.
    validation: share of the examples that is held out, told by their hash or their group's.
    learn: all "answers" of a conversation, or the "last" one.
    too_long: what becomes of an example that fits no row: "drop" it, counted, or "refuse" it.
    pack: "examples" that do not see each other and each begin at position 0, or as the release
        did it, "strung" together: positions run on through a row and attention crosses examples.
    seed: of the order in which examples come to the rows, and rows to the run.
    """

    data: tuple[LocalPlace, ...] = ()
    epochs: Annotated[float, Range(0.001, 1e6)] = 1.0
    warmup: Annotated[float, Range(0, 0.999)] = 0.03
    validation: Annotated[float, Range(0, 0.5)] = 0.01
    learn: Annotated[str, OneOf("answers", "last")] = "answers"
    too_long: Annotated[str, OneOf("drop", "refuse")] = "drop"
    pack: Annotated[str, OneOf("examples", "strung")] = "examples"
    seed: Seed = 0

    def __post_init__(self) -> None:
        check(self, "tune")


def schedule_of(rows: dict[str, int], seed: int) -> Schedule:
    """The schedule that reads every row of these sources once before it reads any again."""
    foreign = {source: float(count) for source, count in rows.items() if source != "en" and count}
    share = sum(foreign.values()) / sum(rows.values())
    return Schedule(
        non_english=((0, share),), weights=((0, foreign),) if foreign else (), seed=seed
    )


def steps_of(rows: int, epochs: float, batch: int) -> int:
    """Steps in which so many rows are read so often; the last one may begin another epoch."""
    return math.ceil(epochs * rows / batch)


def build(
    settings: TuneSettings,
    reading: ExampleSettings,
    chat: ChatSettings,
    rows: RowSettings,
    tokenizer: Tokenizer,
) -> dict:
    """Make the store at `rows.path`, print what became of the data, return the manifest.

    One made from the same data, tokenizer and settings is kept. UserError where it was made from
    others, for data that cannot be learned from, and where nothing is left of a source.
    """
    made_from = {
        "corpus": _hash_of(settings.data),
        "tokenizer": tokenizer.fingerprint,
        "length": rows.length,
        "shard_rows": rows.shard_rows,
        "examples": asdict(reading),
        "format": [chat.format, chat.keep_ends],
        **{name: getattr(settings, name) for name in MADE_BY},
    }
    local(rows.path, "rows.path")  # read anywhere, but made here
    if already_made(rows.path, made_from):
        manifest = open_store(rows.path).manifest
        _check_sources(rows.path, settings.data, manifest["files"], reading)
        print(f"tune: {rows.path} is already made; kept.")
        return manifest
    kept, accounts = examples.read(settings.data, reading)
    encoded = encode_all(kept, accounts, settings, chat, rows.length, tokenizer)
    dtype = np.dtype("<u2" if tokenizer.size <= 2**16 else "<u4")
    with new_folder(rows.path) as folder:
        entries: dict[str, dict[str, dict]] = {}
        for source, sides in encoded.items():
            (folder / source).mkdir()
            entries[source] = {
                split: _write(folder / source, split, source, side, settings, rows, dtype)
                for split, side in zip(SPLITS, sides, strict=True)
            }
        hashes = [(name, s, entries[name][s]["sha256"]) for name in entries for s in SPLITS]
        manifest = {
            "made_from": made_from,
            "dtype": dtype.name,
            "marked": True,
            "files": list(settings.data),
            "fingerprint": sha256(json.dumps((rows.length, hashes)).encode()).hexdigest(),
            "accounts": {source: asdict(account) for source, account in accounts.items()},
            "sources": entries,
        }
        write_manifest(folder, manifest)
    _report(manifest, accounts)
    return manifest


def _check_sources(
    path: str, files: Sequence[str], before: Sequence[str], reading: ExampleSettings
) -> None:
    """UserError where files of the same content had names of other languages before."""
    for now, then in zip(files, before, strict=True):
        source, other = (examples.source_of(file, reading) for file in (now, then))
        if source != other:
            raise UserError(
                f'{path} was made when {now} was {then} and its examples counted as "{other}", '
                f'not "{source}"; delete {path} or give rows.path another folder.'
            )


def _hash_of(files: Sequence[str]) -> str:
    digest = sha256()
    for file in files:
        try:
            digest.update(sha256(Path(file).read_bytes()).digest())
        except OSError as error:
            raise UserError(f"{file} of tune.data cannot be read: {error.strerror}.") from None
    return digest.hexdigest()


# --- ids


def texts_of(turns: Sequence[Turn], chat: ChatSettings, learn: str) -> list[list[Segment]]:
    """What a conversation is learned as: one text, or one for each answer.

    Without `chat.keep_ends` a served history is another than was generated, so each answer is
    learned behind the history with which it is served.
    """
    form = FORMATS[chat.format]
    if chat.keep_ends:
        return [render(turns, form, keep_ends=True)]
    first = len(turns) if learn == "last" else 1
    return [render(turns[:n], form, keep_ends=False) for n in range(first, len(turns) + 1)]


def encode_all(
    kept: Sequence[Example],
    accounts: dict[str, Account],
    settings: TuneSettings,
    chat: ChatSettings,
    length: int,
    tokenizer: Tokenizer,
) -> dict[str, tuple[Encoded, Encoded]]:
    """Each source's examples as ids, to train on and held out. The accounts are kept up."""
    form, numbers = FORMATS[chat.format], {file: n for n, file in enumerate(settings.data)}
    texts = [texts_of(example.turns, chat, settings.learn) for example in kept]
    parts = _ids_of(tokenizer, [text for of_one in texts for text in of_one])
    found: dict[str, list[tuple[Example, list[Parts]]]] = {name: [] for name in accounts}
    for example, of_one in zip(kept, texts, strict=True):
        ids = [next(parts) for _ in of_one]
        said = [text for turn in example.turns for text in (turn.question, turn.answer or "")]
        if any(inert(text, form) != text for text in said):
            accounts[example.source].clean("marks in the text", example.place)
        longest = max(sum(map(len, one)) for one in ids)
        if longest <= length + 1:
            found[example.source].append((example, ids))
        elif settings.too_long == "drop":
            accounts[example.source].drop("too long", example.place)
        else:
            raise UserError(
                f"{example.place} has {longest:,} tokens and a row has room for {length + 1:,}; "
                'raise rows.length, or set tune.too_long = "drop".'
            )
    result = {}
    for source, pairs in found.items():
        if not pairs:
            raise UserError(
                f'no example of "{source}" fits a row of {length + 1:,} tokens; raise rows.length.'
            )
        sides = _sides([example for example, _ in pairs], settings.validation)
        result[source] = tuple(
            _encoded([pairs[i] for i in side], numbers, settings.learn) for side in sides
        )
    return result  # type: ignore[return-value]


def _ids_of(tokenizer: Tokenizer, texts: Sequence[Sequence[Segment]]) -> Iterator[Parts]:
    """The ids of each text's segments. A number in a list takes nine times as much memory."""
    for first in range(0, len(texts), AT_ONCE):
        for parts in encode(tokenizer, texts[first : first + AT_ONCE]):
            yield [np.array(ids, np.int32) for ids in parts]


def _sides(kept: Sequence[Example], share: float) -> tuple[list[int], list[int]]:
    """Numbers of the examples to train on, and of those held out: whose hash is below the share.

    Where that is fewer than 2 of 10 (1 of 5), those of the least hashes are taken; one is always
    trained on, and no group is parted.
    """

    def hash_of(example: Example) -> float:
        own = json.dumps([(turn.question, turn.answer) for turn in example.turns])
        digest = sha256((example.group or own).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    hashes = list(map(hash_of, kept))
    least = min(2, len(kept) // 5) if share else 0
    count = min(max(least, sum(value < share for value in hashes)), len(kept) - 1)
    edge = sorted(hashes)[count]
    held = [value < edge for value in hashes]
    return [n for n, out in enumerate(held) if not out], [n for n, out in enumerate(held) if out]


def _encoded(
    pairs: Iterable[tuple[Example, list[Parts]]], numbers: dict[str, int], learn: str
) -> Encoded:
    ids, learned = [np.zeros(0, np.int32)], [np.zeros(0, bool)]
    lengths, places = [], []
    for example, of_one in pairs:
        for parts in of_one:
            for number, part in enumerate(parts):
                # prompts and answers take turns, and the last is an answer
                answer = number % 2 == 1 and (learn == "answers" or number == len(parts) - 1)
                learned.append(np.full(len(part), answer))
            ids += parts
            lengths.append(sum(map(len, parts)))
            places.append((0, numbers[example.file], example.line))
    return Encoded(
        np.concatenate(ids),
        np.concatenate(learned),
        np.array(lengths, np.int64),
        np.array(places, EXAMPLE),
    )


# --- files and report


def _write(
    folder: Path,
    split: str,
    source: str,
    encoded: Encoded,
    settings: TuneSettings,
    rows: RowSettings,
    dtype: np.dtype,
) -> dict:
    """Write the files of a source and split; return its entry in the manifest."""
    room = rows.length + 1
    starts = pack(encoded.lengths, room, key_of(settings.seed, source, split))
    tokens, marks = laid_out(encoded, starts, room, settings.pack == "examples")
    tokens = tokens.astype(dtype)
    digest = sha256(tokens.data)
    digest.update(marks.data)
    entry: dict = {"shards": [], "marks": []}
    for number, first in enumerate(range(0, len(tokens), rows.shard_rows)):
        part = slice(first, first + rows.shard_rows)
        for name, ending, array in (("shards", "tokens", tokens), ("marks", "marks", marks)):
            file = folder / f"{split}-{number:05d}.{ending}"
            entry[name].append(_written(file, array[part]))
    places = encoded.places.copy()
    places["token"] = starts
    places = places[np.argsort(starts)]
    return entry | {
        "index": _written(folder / f"{split}.examples", places),
        "rows": len(tokens),
        "examples": len(starts),
        "tokens": len(encoded.ids),
        "learned": int(encoded.learned.sum()),
        "longest": int(encoded.lengths.max(initial=0)),
        "fill": len(encoded.ids) / max(1, tokens.size),
        "sha256": digest.hexdigest(),
    }


def _written(file: Path, array: np.ndarray) -> dict:
    file.write_bytes(array.tobytes())
    with open(file, "rb") as written:
        return {"file": file.name, "bytes": array.nbytes, "crc32": checksum(written)}


def _report(manifest: dict, accounts: dict[str, Account]) -> None:
    """Print, per source, what became of its rows and what the store holds of them."""
    console = Console()
    table = Table(box=box.SIMPLE if console.is_terminal else None)
    heads = ("source", "read", "kept", "held out", "tokens", "learned", "longest", "rows", "fill")
    for head in heads:
        table.add_column(head, justify="left" if head == "source" else "right")
    for source, account in accounts.items():
        train, valid = (manifest["sources"][source][split] for split in SPLITS)
        table.add_row(
            source,
            f"{account.read:,}",
            f"{account.kept:,}",
            f"{valid['examples']:,}",
            f"{train['tokens']:,}",
            f"{train['learned'] / train['tokens']:.1%}",
            f"{train['longest']:,}",
            f"{train['rows']:,}",
            f"{train['fill']:.2%}",
        )
    console.print(table)
    for source, account in accounts.items():
        for what, reasons in (("dropped", account.dropped), ("cleaned", account.cleaned)):
            for reason, found in reasons.items():
                places = ", ".join(found.places)
                print(f"{source}: {found.count:,} {what}, {reason}: {places}")
