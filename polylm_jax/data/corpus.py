"""The corpus: documents per source, split in train and valid, from packages or a user's folder.

On disk, under its path, if `build` made it (in shards it is as `shards` has it):

    <source>/train.jsonl, valid.jsonl   one {"text": …, "from": "Django"} a line
    pairs/<language>.jsonl              questions and answers to tune on, if corpus.pairs asks
    licences/<package>/                 the notices that came with the text
    packages/                           the downloads, kept so that later builds need no network
    manifest.json                       written last: a folder without one is no corpus

A document of more than a million characters has several lines, with "part": 1, 2, … and, in all
but the last, "more": true. Text goes through as a stream, so memory does not grow with it.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated

from polylm_jax.data import documents as users
from polylm_jax.data import packages, pairs
from polylm_jax.data.documents import Reading, Stretch
from polylm_jax.data.languages import CODE, LANGUAGES, NON_ENGLISH, in_order, is_bilingual, name_of
from polylm_jax.data.packages import Package, Piece
from polylm_jax.data.replacing import BUILDING, only_writer, refuse_to_replace, replace
from polylm_jax.data.shards import COUNT, SHARD, SPLITS, Text, lines_of, record_of, texts
from polylm_jax.data.sides import hashed
from polylm_jax.data.writing import write
from polylm_jax.errors import UserError
from polylm_jax.files import MANIFEST, MaybeLocalPlace, Place, info_of, local
from polylm_jax.jsonl import read_json
from polylm_jax.ranges import OneOf, Range, check

_COUNTS = {"documents": COUNT, "bytes": COUNT, "shards?": [SHARD]}
MANIFEST_FORM = {
    "sha256": str,
    "sources": {str: {"train": _COUNTS, "valid": _COUNTS}},
}

_DOCUMENT = 1200  # bytes of UTF-8 at which a document made of short pieces is full

PAPERS = (*LANGUAGES, *(f"en-{code}" for code in NON_ENGLISH), CODE)

Source = tuple[str, Iterator[Stretch], Reading]


@dataclass(frozen=True)
class Corpus:
    """Where the corpus lies and what it is made of.

    path: folder of the corpus; one in shards may lie on any path that fsspec knows.
    text: folder of the user's own text, instead of the packages: .txt, .jsonl and .parquet files
        named xx.* or below a folder xx, the first two also as .gz and .zst, where xx is a
        language's code (hi, swh, zh-Hant, pt-BR), a pair of them (en-hi) or "code".
    valid_share: share of the documents that is held out, at most 0.5.
    valid_megabytes: most text of a source that is held out, in millions of UTF-8 bytes.
    split: what stands between two documents of a .txt ("\\n" is the end of a line); "" makes
        each file one document.
    key: the text's key in a line of a .jsonl, and its column in a .parquet.
    on_bad_line: what happens to a line that is not UTF-8 or has no text, "refuse" or "skip".
    pairs: share of the packages' aligned messages and dialogues that become questions and answers
        to tune on (`polylm_jax.data.pairs`) and are kept out of the text; 0 makes none.
    """

    path: Place = "data/corpus"
    text: MaybeLocalPlace = ""
    valid_share: Annotated[float, Range(0, 0.5)] = 0.1
    valid_megabytes: Annotated[float, Range(0, 1e6)] = 20.0
    split: str = ""
    key: str = "text"
    on_bad_line: Annotated[str, OneOf("refuse", "skip")] = "refuse"
    pairs: Annotated[float, Range(0, 0.5)] = 0.0

    def __post_init__(self) -> None:
        check(self, "corpus")


def build(corpus: Corpus, large: bool, progress: Callable[[str], None] = print) -> dict:
    """Builds the corpus on disk and returns its manifest; an older one there is replaced.

    large: add the LibreOffice manuals, which takes Debian or Ubuntu.
    progress: is told what is being done, a line at a time.

    Raises UserError, with any older corpus left as it was, for packages that cannot be fetched,
    a user's folder without text, and files of it that are not UTF-8 or not such JSON.
    """
    if corpus.text and large:
        raise UserError("corpus.text replaces the packages: leave out either it or --large")
    root = Path(os.path.realpath(local(corpus.path, "corpus.path")))
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"corpus.path={root} cannot be made a folder: {error.strerror}") from error
    try:
        with only_writer(root), tempfile.TemporaryDirectory(dir=root, prefix=BUILDING) as name:
            return _build(corpus, large, progress, root, Path(name))
    except OSError as error:
        raise UserError(
            f"corpus.path={corpus.path} cannot be written ({error.strerror or error}); "
            "mend that or name another folder"
        ) from error


def _build(
    corpus: Corpus, large: bool, progress: Callable[[str], None], root: Path, scratch: Path
) -> dict:
    new = scratch / "new"
    new.mkdir()
    passed: dict[str, list[int]] = {}
    refuse_to_replace(root, PAPERS)
    counts: dict[str, int] = {}
    if corpus.text:
        if corpus.pairs:
            progress("corpus.pairs are made of the packages, not of corpus.text: there are none")
        found, entries = _users(corpus, root, passed), []
    else:
        files = _fetched(root, large, progress)
        pieces = _pieces(files)
        if corpus.pairs:
            chosen, pieces = pairs.held_back(pieces, corpus.pairs)
            counts = pairs.write(chosen, new / pairs.FOLDER)
            progress(f"{len(chosen):,} questions and answers are kept out of the text, to tune on")
        found, entries = _packaged(pieces), _entries(files, new / "licences")
    sources = {}
    for source, stretches, reading in found:
        sources[source] = write(
            new / source,
            stretches,
            reading,
            corpus.valid_share,
            corpus.valid_megabytes * 1e6,
            scratch,
        )
        for line in _told(source, sources[source], corpus.valid_share):
            progress(line)
    for kind, (number, size) in passed.items():
        progress(f"passed over, {number:,} files of {size:,} bytes: {kind}")
    content = "".join(source["sha256"] for source in sources.values())
    result = {
        "valid_share": corpus.valid_share,
        "valid_megabytes": corpus.valid_megabytes,
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
        "packages": entries,
        "passed_over": passed,
        "pairs": counts,
        "sources": sources,
    }
    (new / MANIFEST).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    replace(root, new)
    progress(_balance([source["bytes"] for source in sources.values()]))
    return result


def manifest(path: str) -> dict:
    """The manifest of a built corpus: valid_share, sha256 of the content, packages, pairs, sources.

    sources: per source and split, documents and bytes (of UTF-8 text); the sha256 of both; and
    "bytes", what became of all that was read (see `writing.write`).
    Raises UserError if there is no corpus at `path`.
    """
    if not info_of(f"{path}/{MANIFEST}"):
        raise UserError(f"no corpus at {path}; run polylm corpus --small")
    wanted = f"the manifest of a corpus; run polylm corpus again to make {path} anew"
    return read_json(f"{path}/{MANIFEST}", MANIFEST_FORM, wanted)


def sources(path: str) -> list[str]:
    """The sources of a built corpus. Raises UserError if there is no corpus at `path`."""
    return list(manifest(path)["sources"])


def documents(path: str, source: str, split: str) -> Iterator[str]:
    """The documents of one source and split ("train" or "valid") of a built corpus, in order.

    A document of more than a million characters comes in several texts.
    Raises UserError if there is no corpus at `path` or if it lacks the source.
    """
    return texts_in(files_of(path, source, split))


def texts_in(files: Iterable[Text]) -> Iterator[str]:
    """The documents of files of a corpus, as of `documents`. UserError names what is damaged."""
    for file in files:
        begin = 0
        with lines_of(file) as lines:
            for line in lines:
                record = record_of(line)
                if record is None:
                    raise UserError(
                        f"{file.place} is damaged at its byte {begin:,}; make the corpus again."
                    )
                yield record["text"]
                begin += len(line)


def files_of(path: str, source: str, split: str) -> list[Text]:
    """The files of one source and split of a built corpus, in order. UserError as of documents."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, not one of {SPLITS}")
    known = manifest(path)["sources"]
    if source not in known:
        raise UserError(f"the corpus at {path} has no source {source!r}, only {', '.join(known)}")
    return texts(path, source, split, known[source][split])


def grouped(pieces: Iterable[Piece], both_ways: bool) -> Iterator[str]:
    """Documents of about 1.2 KB out of consecutive pieces.

    Pieces of one line are put below one another, longer ones set apart by a blank line.
    both_ways: in half of the documents, told by hash, the lines of each piece are reversed.
    """
    document: list[Piece] = []
    size = 0
    for piece in pieces:
        document.append(piece)
        size += sum(len(line.encode()) + 1 for line in piece)
        if size >= _DOCUMENT:
            yield _joined(document, both_ways)
            document, size = [], 0
    if document:
        yield _joined(document, both_ways)


def _joined(document: list[Piece], both_ways: bool) -> str:
    between = "\n" if all(len(piece) == 1 for piece in document) else "\n\n"
    text = between.join("\n".join(piece) for piece in document)
    if both_ways and hashed(text) % 2:
        text = between.join("\n".join(reversed(piece)) for piece in document)
    return text


def _fetched(root: Path, large: bool, progress: Callable[[str], None]) -> dict[Package, Path]:
    wanted = packages.SMALL + (packages.LARGE if large else ())
    progress(f"{len(wanted)} packages, fetched into {root / 'packages'} unless they are there")
    return packages.fetch(wanted, root / "packages")


def _entries(files: dict[Package, Path], licences: Path) -> list[dict]:
    """The packages' entries in the manifest, once their notices are written to `licences`."""
    entries = []
    for package, file in files.items():
        folder = licences / package.name
        folder.mkdir(parents=True)
        for name, content in packages.licences(file).items():
            (folder / name).write_bytes(content)
        entries.append(
            {
                "name": package.name,
                "version": packages.version(package, file),
                "licence": package.licence,
                "file": file.name,
            }
        )
    return entries


def _pieces(files: dict[Package, Path]) -> dict[str, dict[Piece, str]]:
    """The pieces of each source, each with the name of the first package that has it."""
    names = {file: package.name for package, file in files.items()}
    by_source: dict[str, dict[Piece, str]] = {}
    for file, source, found in packages.pieces(list(names)):
        for piece in found:
            by_source.setdefault(source, {}).setdefault(piece, names[file])
    return by_source


def _packaged(by_source: dict[str, dict[Piece, str]]) -> Iterator[Source]:
    """The sources that pieces make; a document is of one package."""
    for source in in_order(by_source):
        texts = [
            Stretch(text, name)
            for name, some in groupby(by_source[source].items(), key=itemgetter(1))
            for text in grouped((piece for piece, _ in some), both_ways=is_bilingual(source))
        ]
        yield source, iter(texts), Reading(read=sum(len(text.text.encode()) for text in texts))


def _users(corpus: Corpus, root: Path, passed: dict[str, list[int]]) -> Iterator[Source]:
    """The sources of a user's folder. UserError for one that has no text."""
    folder = Path(corpus.text)
    if not folder.is_dir():
        raise UserError(f"corpus.text={folder} is no folder: name one that has xx/*.txt in it")
    tops, others = users.tops(folder)
    if not tops:
        raise UserError(
            f"corpus.text={folder} has no languages: put text in xx/*.txt or xx/*.jsonl, where "
            f"xx is a language's code such as {', '.join([*LANGUAGES][:6])}, hi or zh-Hant"
        )
    refuse_to_replace(root, tops)
    for other in others:
        kind = f"{other.name}, whose name is no language's code"
        users.pass_over(passed, kind, users.files(other))
    marker = corpus.split.replace("\\n", "\n").replace("\\t", "\t")
    for source in in_order(tops):
        reading = Reading(corpus.key, marker, corpus.on_bad_line == "skip", passed)
        stretches = users.documents(folder, tops[source], reading)
        first = next(stretches, None)
        if first is None:
            raise UserError(
                f"{folder / source} has no text: put some in *.txt or *.jsonl, or remove it"
            )
        yield source, chain([first], stretches), reading


def _told(source: str, entry: dict, share: float) -> Iterator[str]:
    train, valid = (entry[split]["bytes"] / 1000 for split in SPLITS)
    yield f"{source:6}{train:10,.0f} kB train{valid:8,.0f} kB valid  {name_of(source)}"
    if not entry["valid"]["documents"] and share:
        yield (
            f"{source:6}{entry['train']['documents']:10,} documents are too few to hold one out "
            "(a .txt is one, unless --gin.corpus.split=MARKER says what parts them)"
        )
    if again := entry["duplicates"]:
        yield f"{source:6}{again:10,} documents have been before and are dropped"
    if lines := entry["bad_lines"]["lines"]:
        places = ", ".join(entry["bad_lines"]["first"])
        yield f"{source:6}{lines:10,} bad lines are left out, the first: {places}"


def _balance(bytes_of: list[dict[str, int]]) -> str:
    """What became of all bytes, in one line."""
    total = {name: sum(one[name] for one in bytes_of) for name in bytes_of[0]}
    return (
        "{read:,} bytes read = {documents:,} in documents + {duplicates:,} in documents that have "
        "been before + {around:,} around the text + {bad:,} in bad lines".format(**total)
    )
