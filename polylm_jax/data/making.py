"""What is made piece by piece, here or at any path that fsspec knows, and goes on where it stopped.

Whoever makes a piece again makes the same, so on a file system without locks two may be at it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from polylm_jax.errors import UserError, first_line
from polylm_jax.files import MANIFEST, already_made, new_file, opened, output, put, resumed_folder


@contextmanager
def resumed(path: str, made_from: dict) -> Iterator[tuple[str, str]]:
    """Two folders, as of `files.resumed_folder`: for scratch, and for what will be at `path`.

    Elsewhere than here nothing can take another name, so the second is `path` itself, and is
    whole once its manifest is there, which the block writes last.
    """
    if "://" not in path:
        with resumed_folder(path, made_from) as (here, whole):
            yield str(here), str(whole)
        return
    scratch = f"{path}.partial"
    files, root = opened(scratch)
    begun = f"{scratch}/made_from.json"
    try:
        found = content(begun)
        if found is None or json.loads(found) != made_from:
            remove(scratch)
            if found is not None:  # then what is there was on its way to be another
                remove(path)
            put(begun, json.dumps(made_from).encode())
        yield scratch, path
        files.rm(root, recursive=True)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UserError(
            f"{path} cannot be written ({reason}); mend that and run the same command again: what "
            "is finished is kept."
        ) from error


def is_made(path: str, made_from: dict) -> bool:
    """As `files.already_made`, here or elsewhere."""
    if "://" not in path:
        return already_made(path, made_from)
    manifest = content(f"{path}/{MANIFEST}")
    if manifest is not None:
        if json.loads(manifest).get("made_from") == made_from:
            return True
    elif content(f"{path}.partial/made_from.json") is not None or not there(path):
        return False
    raise UserError(
        f"{path} was made from other text or with other settings; delete it or give another path."
    )


def content(path: str) -> bytes | None:
    """A file of ours; None where there is none."""
    files, file = opened(path)
    try:
        return files.cat_file(file)
    except (FileNotFoundError, NotADirectoryError):
        return None


def there(folder: str) -> set[str]:
    """The names of the files in a folder; none where there is no folder."""
    files, root = opened(folder)
    try:
        return {found.rpartition("/")[2] for found in files.ls(root, detail=False)}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def remove(path: str) -> None:
    """Removes what is at a path, if something is."""
    files, root = opened(path)
    if files.exists(root):
        files.rm(root, recursive=True)


@contextmanager
def written(path: str, scratch: str) -> Iterator[BinaryIO]:
    """A file that is whole or not there. scratch: a folder on the same disk, where it is one."""
    if "://" in path:
        with output(path) as file:
            yield file
    else:
        Path(path).parent.mkdir(exist_ok=True)
        with new_file(Path(path), Path(scratch)) as file:
            yield file


def note(path: str, said: Any, scratch: str) -> None:
    """Writes JSON to a file that is whole or not there."""
    with written(path, scratch) as file:
        file.write(json.dumps(said).encode())
