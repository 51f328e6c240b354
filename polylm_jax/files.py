"""What a path means, and files and folders that are whole or not there.

Every path that a user gives, as a flag or a setting, goes through `place`. What is made is made
beside its place and renamed into it, so that what stood there stays until the new one is whole.
"""

import contextlib
import difflib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, BinaryIO

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from polylm_jax.errors import FULL, UserError, first_line, of_storage, out_of_reach

MANIFEST = "manifest.json"


def place(path: str, name: str) -> str:
    """The path that a user gave as `name`, a flag or setting, as all libraries understand it.

    A path on this machine, without ~, file:// or slashes at its end, or a URL that fsspec knows.
    No letter of it is a pattern. Giving what came back gives it again. UserError for an empty
    path and for a URL that is none.
    """
    if not path.strip():
        raise UserError(f"{name} is empty; give it a path.")
    with contextlib.suppress(UnicodeEncodeError):
        if b"\0" not in os.fsencode(path):
            return _place(path, name)
    raise UserError(f"{name}={path!r} holds a character that no path can have; take it out.")


def _place(path: str, name: str) -> str:
    scheme, mark, rest = path.partition("://")
    if mark and scheme in ("file", "local"):
        path, mark = f"/{rest.lstrip('/')}", ""
    if mark:
        known = fsspec.available_protocols()
        if scheme not in known:
            near = difflib.get_close_matches(scheme.lower(), known, 1, 0)[0]
            raise UserError(
                f"{name}={path} begins with no scheme that is known; the nearest is {near}://."
            )
        if not rest.strip("/"):
            raise UserError(f"{name}={path} names nothing; say what lies there.")
        return f"{scheme}://{rest.rstrip('/')}"
    one_slash = re.match(r"([\w+.-]+):/", path)
    if one_slash and one_slash[1] in fsspec.available_protocols():
        url = path.replace(":/", "://", 1)
        raise UserError(f"{name}={path} is a URL with one slash; write {url}, or ./{path}.")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        raise UserError(f"{name}={path}: there is no user {user[1:]}; write ./{path} for a file.")
    plain = str(Path(expanded))
    try:
        os.stat(plain)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{name}={path} is a link that leads to itself; mend it.") from None
    # ./~ and ./gs:/x are told from ~ and gs:/x by the folder before them
    return str(Path(plain).absolute()) if plain[0] == "~" or ":/" in plain else plain


def local(path: str, name: str) -> str:
    """As `place`, for what must lie on this machine."""
    found = place(path, name)
    if "://" in found:
        raise UserError(f"{name}={path} must be on this machine; name a place here and copy it.")
    return found


def _if_given(understand: Callable[[str, str], str]) -> Callable[[str, str], str]:
    return lambda path, name: path and understand(path, name)


# Types of settings that name a file or folder: a setting is what the function makes of it.
Place = Annotated[str, place]
LocalPlace = Annotated[str, local]
MaybePlace = Annotated[str, _if_given(place)]  # "" for none
MaybeLocalPlace = Annotated[str, _if_given(local)]


def existing(path: str, name: str, where: Callable[[str, str], str] = place) -> str:
    """As `where`, for a folder that must be there. UserError with the nearest name beside it."""
    meant = where(path, name)
    if (info_of(meant) or {}).get("type") == "directory":
        return meant
    raise UserError(f"there is no folder {meant}{nearest(meant)}; mend {name}.")


def new_place(path: str, name: str) -> str:
    """As `local`, for a folder to be made: a UserError, before any work, where it cannot be."""
    found = local(path, name)
    _free_target(found, f"{name}=")
    return found


def destination(path: str, name: str) -> str:
    """As `place`, for a file of results: a UserError, before any work, where none can be made."""
    found = place(path, name)
    if "://" in found:
        opened(found)
        return found
    if os.path.isdir(found):
        raise UserError(f"{name}={path} is a folder; name a file in it.")
    folder = os.path.dirname(os.path.realpath(found))
    if not os.path.isdir(folder):
        raise UserError(f"{name}={path}: there is no folder {folder}; make it first.")
    if not os.access(found if written_through(found) else folder, os.W_OK):
        raise UserError(f"{name}={path} cannot be written; name another file.")
    return found


def nearest(path: str) -> str:
    """ "; the nearest name there is X", for a path on this machine that does not exist, or ""."""
    try:
        beside = os.listdir(Path(path).parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(Path(path).name, beside, 1)
    return f"; the nearest name there is {near[0]}" if near else ""


def opened(path: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a place, and what the place is called in it. UserError if it has none."""
    if "://" not in path:
        return LocalFileSystem(), os.path.abspath(path)
    try:
        files, root = fsspec.core.url_to_fs(path)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or error.name or first_line(error)
        raise UserError(f"{path} needs {package} to be opened: pip install {package}.") from error
    except Exception as error:  # each file system fails in its own way to start
        reason = first_line(error).rstrip(".")
        raise UserError(f"{path} cannot be opened: {reason}.") from error
    return files, root.rstrip("/")


def info_of(path: str) -> dict[str, Any] | None:
    """What fsspec tells of what is at a place; None where nothing is.

    UserError where nobody can tell. (fsspec's own `exists` says no where a host does not answer.)
    """
    files, root = opened(path)
    with reading(path):
        try:
            return files.info(root)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # nothing can be there
                return None
            raise


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Whatever is raised inside where the place cannot be read becomes a UserError."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        if "://" in path and (isinstance(error, OSError) or of_storage(error)):
            raise UserError(out_of_reach(path, reason)) from error
        if isinstance(error, OSError):
            raise UserError(f"{path} cannot be read ({reason}); make it readable.") from error
        raise


@contextmanager
def output(path: str) -> Iterator[BinaryIO]:
    """The file of results at a `destination`.

    An older file there is replaced when the new one is whole, and not before; where `path` is a
    link, the file that it leads to. What is no regular file, such as a pipe or /dev/stdout, is
    written through.
    """
    if "://" in path:
        with tempfile.NamedTemporaryFile() as spool:
            yield spool  # type: ignore[misc]
            spool.flush()
            files, root = opened(path)
            files.put_file(spool.name, root)
    elif written_through(path):
        ours = _ours(path)
        sys.stdout.flush()
        # opened anew it would have a place of its own, and what is printed would overwrite it
        with open(path, "ab") if ours is None else os.fdopen(os.dup(ours), "wb") as file:
            yield file
    else:
        target = Path(os.path.realpath(path))
        with new_file(target, target.parent) as file:
            if target.exists():
                shutil.copymode(target, file.name)
            yield file


def written_through(path: str) -> bool:
    """Whether there is something that no file may take the place of."""
    if not os.path.exists(path):
        return False
    return _ours(path) is not None or not stat.S_ISREG(os.stat(path).st_mode)


def _ours(path: str) -> int | None:
    """1 or 2 if a path leads to stdout or stderr, which may be a regular file; else None."""
    found = os.stat(path)
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(found, os.fstat(number)):
                return number
    return None


def is_free(path: str) -> bool:
    """Whether nothing is at `path`, or an empty folder, which is nobody's work."""
    real = os.path.realpath(path)
    return not os.path.lexists(real) or (os.path.isdir(real) and not os.listdir(real))


def _free_target(path: str, flag: str = "") -> Path:
    """Where the folder `path` is to be made. UserError where it cannot take that name."""
    if not is_free(path):
        raise UserError(f"{flag}{path} already exists; delete it or name another.")
    if os.path.ismount(path):
        raise UserError(f"{flag}{path} is where a disk begins; name a folder in it.")
    return Path(os.path.realpath(path))


@contextmanager
def new_folder(path: str) -> Iterator[Path]:
    """A temporary sibling of `path` that takes its name if the block ends well, else goes.

    UserError where something is at `path` but an empty folder.
    """
    target = _free_target(path)
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    # a killed process may have left one and had the number that is ours now
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def lock(file: IO | int) -> bool:
    """Locks an open file, until it is closed; BlockingIOError where another process has it.

    Returns whether it is locked: a file system without locks lets everybody in.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


@contextmanager
def held(
    folder: Path, refusal: Callable[[str, str], UserError], name: str = "lock"
) -> Iterator[bool]:
    """Holds a folder, made if need be, by the file `name` in it, in which the holder stands.

    refusal: function (process, host) -> what is raised where that process holds the folder.
    Yields whether a lock holds it: a file system without locks lets everybody in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "a+") as file:
        try:
            if locked := lock(file):
                file.truncate(0)
                file.write(f"{os.getpid()} {socket.gethostname()}")
                file.flush()
        except BlockingIOError:
            raise refusal(*_holder(folder / name)) from None
        except OSError:
            locked = False
        yield locked


def _holder(lock: Path) -> tuple[str, str]:
    """The process and the host in a lock; its holder may just be about to write them."""
    for _ in range(20):
        if found := lock.read_text().split():
            return found[0], found[1]
        time.sleep(0.05)
    return "?", "?"


@contextmanager
def resumed_folder(path: str, made_from: dict) -> Iterator[tuple[Path, Path]]:
    """Two folders in `<path>.partial`: one for scratch, and one that takes the name `path` if
    the block ends well.

    Where it fails or is killed both stay, and the next one that is `made_from` the same has
    them again; another begins anew. A UserError where another process is at it, or where the
    disk is full.
    """
    target = _free_target(path)
    folder = target.with_name(f"{target.name}.partial")
    scratch, whole, note = folder / "scratch", folder / "whole", folder / "made_from.json"

    def busy(process: str, host: str) -> UserError:
        return UserError(f"Process {process} on {host} is making {path}; wait for it or stop it.")

    with held(folder, busy):
        try:
            if not note.is_file() or _json_or_none(note) != made_from:
                shutil.rmtree(scratch, ignore_errors=True)
                shutil.rmtree(whole, ignore_errors=True)
                scratch.mkdir()
                with new_file(note, scratch) as file:
                    file.write(json.dumps(made_from).encode())
            whole.mkdir(exist_ok=True)
            yield scratch, whole
        except OSError as error:
            if error.errno not in FULL:
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
    # a name may be long enough that no more letters fit
    temporary = scratch / f"{path.name[:40]}.tmp-{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def take_room(file: BinaryIO, size: int) -> None:
    """Makes a new file so many bytes long, all of them on the disk; UserError where it is full.

    A process that writes to a mapped file for which there is no room is killed without a word.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS
            file.truncate(size)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"there is no room for the {size / 1e9:,.2f} GB of {file.name}; free some, or name a "
            "place on another disk."
        ) from None


def put(path: str, content: bytes) -> None:
    """Writes a small file that is whole or not there, locally or at a URL."""
    files, root = opened(path)
    if not isinstance(files, LocalFileSystem):
        files.pipe_file(root, content)  # an object is whole or not there
        return
    target = Path(os.path.realpath(root))
    # processes and threads that write the same file at once have each a file of their own
    own = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    temporary = target.with_name(f".{target.name}.{own}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or path  # a write does not say where it was
        raise


def write_manifest(folder: Path | str, manifest: dict) -> None:
    put(f"{folder}/{MANIFEST}", json.dumps(manifest, indent=1).encode() + b"\n")


def already_made(path: str, made_from: dict) -> bool:
    """Whether `path` holds what these inputs give; a UserError where it holds another thing."""
    if is_free(path):
        return False
    manifest = _json_or_none(Path(path, MANIFEST))
    if isinstance(manifest, dict) and manifest.get("made_from") == made_from:
        return True
    raise UserError(
        f"{path} was made from other text or with other settings; delete it or give another path."
    )


def _json_or_none(file: Path) -> Any:
    """The content of a JSON file of ours; None where it is not there, cut or none."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
