"""The last pass: a shard is read again, and what is kept is masked and written.

A shard gives a file of verdicts, a row a document with every score, and the files of its share
of the corpus. Counts and samples of what was dropped go to a note, which is written last.
"""

import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import IO, Any

import numpy as np

from polylm_jax.data.clean import clusters, products
from polylm_jax.data.clean.bilingual import pairs as pairs_in
from polylm_jax.data.clean.bilingual import without
from polylm_jax.data.clean.deciding import DUPLICATE, Deciding, items_held, pairs_of
from polylm_jax.data.clean.documents import Document, read
from polylm_jax.data.clean.fluency import SCORES
from polylm_jax.data.clean.measuring import FEATURES, mended_again, opened_index
from polylm_jax.data.clean.pairing import MISALIGNED, RULES
from polylm_jax.data.clean.private import mask
from polylm_jax.data.clean.products import Piece
from polylm_jax.data.shards import Lined, as_lines, write_lines
from polylm_jax.data.sides import hash_of
from polylm_jax.errors import UserError

FOLDER = "verdicts"
_ABOUT = ("file", "record", "url", "language", "score", "language_share", "bytes", "mended")
SAMPLES = 10  # dropped documents of each language and reason that are shown
SHOWN = 300  # characters of each

_SIZES = struct.Struct("<3Q")  # bytes of a document's lines and of its text, and its hash
_HELD_IN_MEMORY = 2**24  # bytes of a shard's lines, before they go to a disk


@dataclass(frozen=True)
class Share:
    """What a shard writes of a language: file `number` of `count`; see `write_lines`."""

    number: int
    count: int
    held_out: int


@dataclass(frozen=True)
class Task:
    """A shard to be written, and its share of each language that it keeps some of.

    note: a file, called by all that decides on what is written.
    """

    piece: Piece
    shares: dict[str, Share]
    note: str


def name_of(number: int) -> str:
    return f"{number:08}.parquet"


def write(job: Deciding, output: str, task: Task) -> None:
    """Writes a shard's verdicts and texts below `output`, and its note."""
    piece = task.piece
    scores = products.load_table(f"{job.measured}/{piece.key}.scores.arrow")
    settled = products.load(f"{job.folder}/{piece.number:08}.settled.npy")
    pairs, broken, scores[MISALIGNED] = pairs_of(job, piece, scores)
    wrong = _wrong(pairs, broken)
    verdicts = _verdicts(job, piece, scores, settled) | {
        "pairs": np.bincount(pairs["document"], minlength=len(settled)),
        "wrong_pairs": [_told(wrong[at]) if at in wrong else "" for at in range(len(settled))],
    }
    kept = settled["kept"].tolist()
    ids, hashes = scores["id"].tolist(), scores["hash"].tolist()
    masked = np.zeros(len(settled), np.int64)
    samples: dict[str, list[tuple[str, str]]] = {}
    with _Texts() as texts:
        for at, document in enumerate(_documents(piece, scores)):
            reason = verdicts["reason"][at]
            wanted = reason and len(samples.setdefault(_of(scores, at, reason), [])) < SAMPLES
            if not (kept[at] or wanted):
                continue
            text = mended_again(document, scores["mended"][at], job.clean.scraps)
            content, hash_ = text.encode(), hashes[at]
            if hash_of(content) != hash_:
                raise _changed(piece)
            if at in wrong and not wanted:
                for place, rules in wrong[at].items():
                    some = samples.setdefault(_of(scores, at, rules[0]), [])
                    if len(some) < SAMPLES:
                        pair = "\n".join(pairs_in(text)[place])
                        some.append((verdicts["id"][at], pair[:SHOWN]))
                text = without(text, wrong[at])
            text, places = mask(text) if job.clean.mask else (text, {})
            masked[at] = sum(places.values())
            if wanted:
                samples[_of(scores, at, reason)].append((verdicts["id"][at], text[:SHOWN]))
                continue
            if places or at in wrong:
                content = text.encode()
                hash_ = hash_of(content)
            lines = as_lines(content, document.origin, ids[at])
            texts.add(scores["language"][at], Lined(lines, len(content), hash_))
        entries = {
            language: write_lines(
                output, language, share.number, share.count, texts.of(language), share.held_out
            )
            for language, share in task.shares.items()
        }
    verdicts["masked"] = masked
    products.save_table(f"{output}/{FOLDER}/{name_of(piece.number)}", verdicts)
    note = {
        "counts": _counts(verdicts, entries),
        "pairs": _pairs(verdicts, pairs, broken),
        "entries": entries,
        "samples": samples,
        "masked": int(masked.sum()),
    }
    products.save_json(task.note, note)


def _wrong(pairs: np.ndarray, broken: np.ndarray) -> dict[int, dict[int, list[str]]]:
    """Of each document that has some the wrong pairs by number, and the rules that each breaks."""
    found: dict[int, dict[int, list[str]]] = {}
    names = np.array([*RULES], object)
    for at in np.flatnonzero(broken.any(1)):
        document, place = int(pairs["document"][at]), int(pairs["place"][at])
        found.setdefault(document, {})[place] = [*names[broken[at]]]
    return found


def _told(wrong: dict[int, list[str]]) -> str:
    """Wrong pairs for a verdict, counted from 1: "3 swapped, 7 alignment+lengths"."""
    return ", ".join(f"{place + 1} {'+'.join(rules)}" for place, rules in wrong.items())


def _of(scores: dict[str, Any], at: int, reason: str) -> str:
    return f"{scores['language'][at]} {reason}"


def _documents(piece: Piece, scores: dict[str, Any]) -> Iterator[Document]:
    """The documents that were measured, in order; a UserError where they are no longer those."""
    found = (one for one in read(piece.shard) if isinstance(one, Document))
    for one, identity in zip_longest(found, scores["id"].tolist()):
        if one is None or one.id != identity:
            raise _changed(piece)
        yield one


def _changed(piece: Piece) -> UserError:
    return UserError(f"{piece.shard.name} has changed while it was cleaned; run it again.")


def _verdicts(
    job: Deciding, piece: Piece, scores: dict[str, Any], settled: np.ndarray
) -> dict[str, Any]:
    """The columns of a shard's verdicts but for `masked` and those of pairs."""
    failed = products.load(f"{job.folder}/{piece.number:08}.failed.npy")
    failed[:, job.order.index(DUPLICATE)] = ~settled["survives"] & (DUPLICATE not in job.clean.off)
    cluster, size = clusters.of(job.clusters, piece.number, len(failed))
    names = np.array(job.order, object)
    reasons: list[list[str]] = [[] for _ in failed]
    for at in np.flatnonzero(failed.any(1)):
        reasons[at] = [*names[failed[at]]]
    held: dict[int, list[str]] = {}
    for document, item, share in items_held(job, piece).tolist():
        name = opened_index(job.index).names[item]
        held.setdefault(document, []).append(f"{name} {share / 10:.0f}%")
    return {
        "id": [f"{one:016x}" for one in scores["id"].tolist()],
        **{name: scores[name] for name in (*_ABOUT, *FEATURES, *SCORES, MISALIGNED)},
        "cluster": cluster,
        "cluster_size": size,
        "survivor": [f"{one:016x}" if one else "" for one in settled["survivor"].tolist()],
        "items": [" ".join(held.get(at, [])) for at in range(len(failed))],
        "kept": settled["kept"],
        "reason": [some[0] if some else "" for some in reasons],
        "reasons": [" ".join(some) for some in reasons],
    }


def _counts(verdicts: dict[str, Any], entries: dict[str, dict]) -> dict[str, dict[str, Any]]:
    """Documents and bytes of each language: read, kept, and by first reason; and by any reason.

    entries: what is written of each language. Of what is kept some may be masked or left out, so
    its bytes are what is written of it.
    """
    number: dict[tuple[str, str], int] = {}
    both = zip(verdicts["language"], verdicts["reasons"], strict=True)
    kinds = np.array([number.setdefault(one, len(number)) for one in both], np.int64)
    totals = zip(np.bincount(kinds), np.bincount(kinds, verdicts["bytes"]), strict=True)
    found: dict[str, dict[str, Any]] = {}
    for (language, reasons), (documents, size) in zip(number, totals, strict=True):
        counts = found.setdefault(
            language, {"read": [0, 0], "kept": [0, 0], "first": {}, "any": {}}
        )
        first, *_ = some = reasons.split(" ")
        sides = (
            counts["read"],
            counts["first"].setdefault(first, [0, 0]) if first else counts["kept"],
        )
        for side in sides:
            side[0] += int(documents)
            side[1] += int(size)
        for one in some if first else ():
            counts["any"][one] = counts["any"].get(one, 0) + int(documents)
    for language, splits in entries.items():
        found[language]["kept"][1] = sum(split["bytes"] for split in splits.values())
    return found


def _pairs(
    verdicts: dict[str, Any], pairs: np.ndarray, broken: np.ndarray
) -> dict[str, dict[str, int]]:
    """How many pairs each language has in documents that are kept, and how many of them are left
    out, by rule: a pair counts for each that it breaks."""
    kept = np.asarray(verdicts["kept"], bool)[pairs["document"]]
    languages = np.array(verdicts["language"], object)[pairs["document"]]
    found: dict[str, dict[str, int]] = {}
    for language in sorted({*languages[kept]}):
        some = broken[kept & (languages == language)]
        by_rule = dict(zip(RULES, some.sum(0).tolist(), strict=True))
        found[language] = {"pairs": len(some), "wrong": int(some.any(1).sum())} | by_rule
    return found


class _Texts:
    """Documents of several languages in the order they come, in memory while they are few."""

    def __enter__(self) -> "_Texts":
        self._held: dict[str, list[Lined]] = {}
        self._size = 0  # bytes of what is held
        self._files: dict[str, IO[bytes]] = {}
        return self

    def __exit__(self, *_: Any) -> None:
        for file in self._files.values():
            file.close()

    def add(self, language: str, document: Lined) -> None:
        self._held.setdefault(language, []).append(document)
        self._size += len(document.lines)
        if self._size > _HELD_IN_MEMORY:
            self._put()

    def _put(self) -> None:
        for language, some in self._held.items():
            if language not in self._files:
                self._files[language] = tempfile.TemporaryFile()  # noqa: SIM115
            for one in some:
                sizes = _SIZES.pack(len(one.lines), one.bytes, one.hash)
                self._files[language].write(sizes + one.lines)
        self._held, self._size = {}, 0

    def of(self, language: str) -> Iterator[Lined]:
        if file := self._files.get(language):
            file.seek(0)
            while sizes := file.read(_SIZES.size):
                length, size, hash_ = _SIZES.unpack(sizes)
                yield Lined(file.read(length), size, hash_)
        yield from self._held.get(language, ())
