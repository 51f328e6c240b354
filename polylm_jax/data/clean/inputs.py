"""What is to be cleaned: the files of the inputs, and the shards that they are read in.

gs://crawl/*.warc.gz    …/*.warc.wet.gz    folder/of/*.txt    a.jsonl.zst    hf://datasets/…
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from polylm_jax.data import corpus
from polylm_jax.data import documents as users
from polylm_jax.data.clean import parts
from polylm_jax.data.clean.documents import File, Shard, table_of
from polylm_jax.data.compressed import Damaged
from polylm_jax.data.documents import HELD_OUT, LONGEST_LINE
from polylm_jax.data.languages import source_named
from polylm_jax.data.shards import SPLITS, texts
from polylm_jax.errors import UserError
from polylm_jax.files import MANIFEST, info_of, nearest, opened, reading

SHARD_BYTES = 2**26  # of text files that make one shard
JOINED = 2**22  # bytes of other files that do: two seconds' work, and what a shard costs is 0.03

_KIND = re.compile(
    r".+\.(warc|wet|jsonl|ndjson|json|txt)(?:\.gz|\.zst)?|.+\.(parquet)", re.IGNORECASE | re.DOTALL
)
_KINDS = {"wet": "warc", "ndjson": "jsonl", "json": "jsonl"}
_WILD = re.compile(r"[*?\[]")


def shards(
    inputs: Mapping[str, str],
    key: str = "text",
    passed: dict[str, list[int]] | None = None,
) -> list[Shard]:
    """All shards of the inputs, in order of their names.

    inputs: path of a file or folder, local or at a URL, or a pattern of them (*, **, ?, [ab]), and
        the language of its text, "" where that is to be found out; a corpus knows its own.
    passed: is told what is passed over, kind: [files, bytes].

    UserError for an input that has nothing to read, for a language that is none, and for a file
    that two inputs have.
    """
    passed = {} if passed is None else passed
    found = [one for path, language in inputs.items() for one in _found(path, language, passed)]
    if not found:
        raise UserError("there is nothing to clean; name files, folders or patterns as its inputs.")
    for path, language in inputs.items():
        if language and source_named(language) != language:
            raise UserError(f'{path} is said to be in "{language}", which is no language\'s code.')
    by_kind: dict[str, list[File]] = {}
    for file in sorted(
        file._replace(name=f"{before}{file.name}", language=language)
        for language, before, files in _told_apart(found)
        for file in files
    ):
        by_kind.setdefault(_kind(file.name) or "", []).append(file)
    result = []
    for kind, some in by_kind.items():
        groups = _groups(some, SHARD_BYTES) if kind == "txt" else _parted(some, kind, key)
        result += [Shard(_named(group[0]), kind, group, key) for group in groups]
    return sorted(result, key=lambda shard: (shard.files[0].name, shard.files[0].begin))


def holds(path: str, folder: str) -> bool:
    """Whether an input would read what is written into a folder, be it still to come."""
    (files, root), (others, inside) = opened(path), opened(folder)
    if type(files) is not type(others):
        return False
    if isinstance(files, LocalFileSystem):
        root, inside = os.path.realpath(root), os.path.realpath(inside)
    if not _WILD.search(root) or files.exists(root):
        return f"{inside}/".startswith(f"{root}/")
    matches = re.compile(glob_translate(root)).match
    parents = [inside[:at] for at, sign in enumerate(f"{inside}/") if sign == "/" and at]
    return any(map(matches, (*parents, f"{inside}/de/train.jsonl.zst", f"{inside}/x/0.parquet")))


def _found(
    path: str, language: str, passed: dict[str, list[int]]
) -> list[tuple[str, str, list[File]]]:
    """The files of an input, by language, and the folder with "/" at its end that all are below."""
    here = info_of(path)
    sources: dict[str, Any] = {}
    if here and not language and info_of(f"{path}/{MANIFEST}"):
        with suppress(UserError):  # it is no corpus
            sources = corpus.manifest(path)["sources"]
    if sources:
        return [(name, f"{path}/", _of_corpus(path, name, of)) for name, of in sources.items()]
    return [(language, *_files(path, here, passed))]


def _of_corpus(path: str, source: str, entry: dict[str, Any]) -> list[File]:
    found = [text for split in SPLITS for text in texts(path, source, split, entry[split])]
    return [File(one.place.removeprefix(f"{path}/"), one.place, _size(one.place)) for one in found]


def _size(place: str) -> int:
    if info := info_of(place):
        return info.get("size") or 0
    raise UserError(f"{place} is missing; make the corpus again.")


def _files(
    path: str, here: dict[str, Any] | None, passed: dict[str, list[int]]
) -> tuple[str, list[File]]:
    """As `_found`, of what is no corpus. here: as of `info_of`."""
    files, root = opened(path)
    with reading(path):
        if here and here["type"] == "directory":
            found, folder = _below(files, root), f"{root}/"
        elif here:
            found, folder = {root: here}, root[: root.rfind("/") + 1]
        elif _WILD.search(root):
            found = files.glob(root, detail=True)
            for place, info in [*found.items()] if "**" not in root else ():
                found |= _below(files, place) if info["type"] == "directory" else {}
            fixed = _WILD.split(root)[0]
            folder = fixed[: fixed.rfind("/") + 1]
        else:
            raise UserError(f"there is nothing at {path}{nearest(path)}.")
    result = []
    for place, info in sorted(found.items()):
        # a name may hold bytes that are no text
        name = os.fsencode(place.removeprefix(folder)).decode("utf-8", "replace")
        size = info.get("size") or 0
        if info["type"] == "directory":
            continue
        if info["type"] != "file":
            kind = "no file, or a link to none"
        elif benchmark := HELD_OUT.search(f"{Path(folder).name}/{name}"):
            kind = f"{benchmark[0]}, by its name text that models are measured with"
        elif _kind(name) is None:
            kind = Path(name).suffix.lower() or "no ending"
        else:
            url = place if isinstance(files, LocalFileSystem) else files.unstrip_protocol(place)
            result.append(File(name, url, size))
            continue
        count = passed.setdefault(kind, [0, 0])
        count[0] += 1
        count[1] += size
    if not result:
        raise UserError(
            f"{path} has nothing to read: name .warc, .wet, .jsonl or .txt files, perhaps with .gz "
            "or .zst, or .parquet files."
        )
    return folder, result


def _below(files: AbstractFileSystem, root: str) -> dict[str, Any]:
    """All files below a folder. fsspec's own search follows links here without end."""
    if isinstance(files, LocalFileSystem):
        nothing = {"type": "link", "size": 0}
        found = [str(path) for path in users.files(Path(root))]
        return {path: files.info(path) if os.path.exists(path) else nothing for path in found}
    return files.find(root, detail=True)


def _kind(name: str) -> str | None:
    match = _KIND.fullmatch(name.rpartition("/")[2])
    ending = match and (match[1] or match[2]).lower()
    return _KINDS.get(ending, ending) if ending else None


def _told_apart(
    found: list[tuple[str, str, list[File]]],
) -> list[tuple[str, str, list[File]]]:
    """The inputs with what to put before their files' names: as many of the last names of all
    their folders as tell all files apart, mostly none."""
    places = Counter(file.place for *_, files in found for file in files)
    place, times = places.most_common(1)[0]
    if times > 1:
        raise UserError(f"{place} is in two inputs; name it in one.")
    for depth in range(max(folder.count("/") for _, folder, _ in found) + 1):
        befores = ["".join(f"{name}/" for name in _last(folder, depth)) for _, folder, _ in found]
        each = list(zip(befores, found, strict=True))
        names = [f"{before}{file.name}" for before, (*_, files) in each for file in files]
        if len(set(names)) == len(names):
            return [(language, before, files) for before, (language, _, files) in each]
    raise UserError("two files of the inputs have names that differ in no letter; rename one.")


def _last(folder: str, count: int) -> list[str]:
    names = folder.strip("/").split("/")
    return names[len(names) - count :] if count else []


def _groups(files: list[File], most: int) -> Iterator[tuple[File, ...]]:
    """Files in groups that come to `most` bytes; a file counts a kilobyte more, to be opened."""
    return map(tuple, users.batches(files, lambda file: file.bytes + 2**10, most))


def _named(file: File) -> str:
    return f"{file.name}@{file.begin}" if file.begin else file.name


def _parted(files: list[File], kind: str, key: str) -> Iterator[tuple[File, ...]]:
    """Small files in groups, another alone, or each part of a large one."""
    for small, run in groupby(files, lambda file: file.bytes < JOINED):
        some = [*run]
        if small:
            yield from _groups(some, JOINED)
            continue
        for file in some:
            found = _parts(file, kind, key) if file.bytes > parts.PART else []
            for begin, end, size in found or [parts.Part(0, None, file.bytes)]:
                yield (file._replace(begin=begin, end=end, bytes=size),)


def _parts(file: File, kind: str, key: str) -> list[parts.Part]:
    """The parts of a large file; none where it can only be read as a whole."""
    files, path = opened(file.place)
    # damage is told when it is read
    with suppress(Damaged), reading(file.place), files.open(path, "rb") as plain:
        if kind == "jsonl" and not file.name.lower().endswith((".gz", ".zst")):
            return [*parts.of_jsonl(plain, file.bytes, key, LONGEST_LINE)]
        if kind == "parquet":
            return [*parts.of_groups(table_of(plain, file).num_row_groups, file.bytes)]
    return []
