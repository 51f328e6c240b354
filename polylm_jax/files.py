"""Folders that are whole or not there: made beside their place, then renamed into it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polylm_jax.errors import UserError

MANIFEST = "manifest.json"


@contextmanager
def new_folder(path: str) -> Iterator[Path]:
    """A temporary sibling of `path` that takes its name if the block ends well, else goes."""
    target = Path(path)
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
