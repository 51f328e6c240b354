"""Junk that is put into a corpus on purpose, and what `polylm clean` makes of it, kind by kind.

Two corpora come of a clean one: with the junk in its text to train on, and of what cleaning keeps
of that. What is held out is the first corpus's in both, so that models which read the one and the
other are measured on the same text (docs/cleaning.md).
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from random import Random

from rich.console import Console
from rich.table import Table

from polylm_jax.data import corpus
from polylm_jax.data.clean import products, verdicts
from polylm_jax.data.clean.jobs import Job
from polylm_jax.data.languages import is_language
from polylm_jax.data.shards import write_manifest, write_shard

SHARE, SEED = 0.3, 0  # of the bytes; of what is drawn
ORIGINAL = "original"

_TRAIN = "train-00000-of-00002.jsonl"
_CHANGED = 0.01  # of the words of a near copy
_FIXED = 6  # lines of boilerplate
_ENTRIES, _WORDS = 40, 150  # of a menu; of noise


def _copy(chance: Random, own: Sequence[str], others: Sequence[str]) -> str:
    return chance.choice(own)


def _near_copy(chance: Random, own: Sequence[str], others: Sequence[str]) -> str:
    words = chance.choice(own).split(" ")
    return " ".join(chance.choice(words) if chance.random() < _CHANGED else w for w in words)


def _boilerplate(chance: Random, own: Sequence[str], others: Sequence[str]) -> str:
    """The same lines at each page's head and foot, and one line of its own."""
    head, foot = own[0].split("\n")[:_FIXED], own[-1].split("\n")[:_FIXED]
    return "\n".join([*head, chance.choice(chance.choice(own).split("\n")), *foot])


def _elsewhere(chance: Random, own: Sequence[str], others: Sequence[str]) -> str:
    return chance.choice(others)


def _mojibake(chance: Random, own: Sequence[str], others: Sequence[str]) -> str:
    """UTF-8 that somebody took for Latin-1, or for Windows' code page, which loses some bytes."""
    return chance.choice(own).encode().decode(chance.choice(("latin-1", "cp1252")), "replace")


def _menu(chance: Random, own: Sequence[str], others: Sequence[str]) -> str:
    words = chance.choice(own).split()
    entries = [chance.sample(words, min(len(words), chance.randint(1, 3))) for _ in range(_ENTRIES)]
    return chance.choice(("\n", " | ", "\n• ")).join(map(" ".join, entries))


def _noise(chance: Random, own: Sequence[str], others: Sequence[str]) -> str:
    """Characters of a text, drawn evenly."""
    letters = sorted({*chance.choice(own)})
    return " ".join(
        "".join(chance.choices(letters, k=chance.randint(2, 12))) for _ in range(_WORDS)
    )


# each makes a document from the texts of its language and those of all others
KINDS: dict[str, Callable[[Random, Sequence[str], Sequence[str]], str]] = {
    "copies": _copy,
    "near copies": _near_copy,
    "boilerplate": _boilerplate,
    "another language": _elsewhere,
    "mojibake": _mojibake,
    "menus": _menu,
    "random characters": _noise,
}


def put(path: str, out: str) -> None:
    """Writes the corpus at `path`, its single languages, with junk into the folder `out`.

    SHARE of the bytes are junk, of each of the KINDS as much.
    """
    texts = {
        source: [*corpus.documents(path, source, "train")]
        for source in corpus.sources(path)
        if is_language(source)
    }
    entries = {}
    for source, own in texts.items():
        chance = Random(f"{SEED} {source}")
        others = [text for other, some in texts.items() if other != source for text in some]
        junk = SHARE / (1 - SHARE) * sum(len(text.encode()) for text in own) / len(KINDS)
        documents = [(text, ORIGINAL) for text in own]
        for kind, make in KINDS.items():
            left = junk
            while left > 0:
                documents.append((make(chance, own, others), kind))
                left -= len(documents[-1][0].encode())
        chance.shuffle(documents)
        entries[source] = _written(path, out, source, documents)
    write_manifest(out, entries)


def inputs(out: str) -> dict[str, str]:
    """What is to be cleaned of a corpus that `put` wrote; nobody says in which languages it is."""
    return {f"{out}/*/{_TRAIN}": ""}


def keep(path: str, junk: str, job: Job, out: str) -> dict[str, dict[str, int]]:
    """Writes what a job has kept of the corpus `junk` into `out`; tells what became of each kind.

    path: of the first corpus, whose held-out text is taken.
    """
    write_manifest(
        out,
        {
            source: _written(path, out, source, _kept(job, source))
            for source in corpus.sources(junk)
        },
    )
    found: dict[str, Counter[str]] = {}
    for piece in job.pieces:
        table = products.load_table(
            f"{job.clean.output}/{verdicts.FOLDER}/{verdicts.name_of(piece.number)}"
        )
        rows = zip(table["language"], table["reason"], strict=True)
        for file in piece.shard.files:
            source = Path(file.place).parent.name
            lines = Path(junk, source, _TRAIN).read_text("utf-8").split("\n")[:-1]
            for line, (language, reason) in zip(lines, rows, strict=False):
                counts = found.setdefault(json.loads(line)["from"], Counter())
                counts["documents"] += 1
                counts[reason or ("kept" if language == source else "moved")] += 1
    return {kind: dict(found[kind]) for kind in (ORIGINAL, *KINDS) if kind in found}


def _kept(job: Job, source: str) -> Iterator[tuple[str, str]]:
    if source in corpus.sources(job.clean.output):
        for text in corpus.documents(job.clean.output, source, "train"):
            yield text, ""


def _written(
    path: str, out: str, source: str, documents: Iterable[tuple[str, str]]
) -> list[dict[str, dict]]:
    """A source's shards: of documents and where they are from, and of what `path` holds out."""
    train = ((text, origin, at) for at, (text, origin) in enumerate(documents))
    held = ((text, "", at) for at, text in enumerate(corpus.documents(path, source, "valid")))
    return [
        write_shard(out, source, 0, 2, train, 0, ".jsonl"),
        write_shard(out, source, 1, 2, held, 2**64, ".jsonl"),
    ]


def show(result: dict[str, dict[str, int]], console: Console) -> None:
    """Prints what became of each kind."""
    heads = ("documents", "kept", "moved", "dropped", "mostly as")
    table = Table("kind", *heads, title="Junk, and what became of it")
    for kind, counts in result.items():
        total, kept, moved = (counts.get(name, 0) for name in ("documents", "kept", "moved"))
        why = {name: n for name, n in counts.items() if name not in heads}
        most = ", ".join(sorted(why, key=lambda name: -why[name])[:3])
        shares = [f"{n / total:.1%}" for n in (kept, moved, total - kept - moved)]
        table.add_row(kind, f"{total:,}", *shares, most)
    console.print(table)
    print(json.dumps(result))
