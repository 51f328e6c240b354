"""Files and folders that are whole or not there: made beside their place, then renamed into it."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from polylm_jax.errors import UserError

MANIFEST = "manifest.json"


@contextmanager
def new_folder(path: str) -> Iterator[Path]:
    """A temporary sibling of `path` that takes its name if the block ends well, else goes."""
    target = Path(path)
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    # a killed process may have left one and had the number that is ours now
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def resumed_folder(path: str, made_from: dict) -> Iterator[tuple[Path, Path]]:
    """Two folders in `<path>.partial`: one for scratch, and one that takes the name `path` if
    the block ends well.

    Where it fails or is killed both stay, and the next one that is `made_from` the same has
    them again; another begins anew. A UserError where another process is at it, or where the
    disk is full.
    """
    target = Path(path)
    folder = target.with_name(f"{target.name}.partial")
    scratch, whole, note = folder / "scratch", folder / "whole", folder / "made_from.json"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another process is making {path}; wait for it or stop it.") from None
        try:
            if not note.is_file() or json.loads(note.read_text()) != made_from:
                shutil.rmtree(scratch, ignore_errors=True)
                shutil.rmtree(whole, ignore_errors=True)
                scratch.mkdir()
                with new_file(note, scratch) as file:
                    file.write(json.dumps(made_from).encode())
            whole.mkdir(exist_ok=True)
            yield scratch, whole
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"There is no room left for {folder}; free some and run the same command again: "
                "what is finished is kept."
            ) from error
        os.replace(whole, target)
        shutil.rmtree(folder)


@contextmanager
def new_file(path: Path, scratch: Path) -> Iterator[BinaryIO]:
    """A file made in the folder `scratch`, on the same disk, that moves to `path` when whole."""
    temporary = scratch / f"{path.name}.tmp-{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def put(path: str, content: bytes) -> None:
    """Writes a small file that is whole or not there, locally or on a path that fsspec knows."""
    files, place = url_to_fs(path)
    if not isinstance(files, LocalFileSystem):
        files.pipe_file(place, content)  # an object is whole or not there
        return
    target = Path(place)
    temporary = target.with_name(f".{target.name}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    os.replace(temporary, target)


def write_manifest(folder: Path, manifest: dict) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def already_made(path: str, made_from: dict) -> bool:
    """Whether `path` holds what these inputs give; a UserError where it holds another thing."""
    if not Path(path).exists():
        return False
    manifest = Path(path, MANIFEST)
    if manifest.is_file() and json.loads(manifest.read_text()).get("made_from") == made_from:
        return True
    raise UserError(
        f"{path} was made from other text or with other settings; delete it or give another path."
    )
