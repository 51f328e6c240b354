"""A corpus in the place of an older one, which stays until the new one stands, whoever is killed.

Nothing else in the folder is touched: what a corpus is there, its manifest tells.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from polylm_jax.data.shards import SPLITS
from polylm_jax.errors import UserError
from polylm_jax.files import MANIFEST, lock

BUILDING, REPLACING = ".building-", ".replacing"  # folders in a corpus's while it is made
BESIDE = {"licences": "packages", "pairs": "pairs"}  # folders that are no sources; their entries


@contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """Holds the folder against others, and finishes or clears what a killed build has left."""
    folder = os.open(root, os.O_RDONLY)
    try:
        lock(folder)
    except BlockingIOError:
        raise UserError(f"Another process is making {root}; wait for it or stop it.") from None
    try:
        _finish(root)
        for left in root.glob(f"{BUILDING}*"):
            shutil.rmtree(left)
        yield
    finally:
        os.close(folder)


def _made(root: Path) -> dict[str, set[str]]:
    """What folders an older corpus has, by its manifest, and which files of text in them."""
    try:
        made = json.loads((root / MANIFEST).read_text("utf-8"))
        plain = {f"{split}.jsonl" for split in SPLITS}
        sources = {
            source: plain | {one["file"] for s in SPLITS for one in entry[s].get("shards", ())}
            for source, entry in made["sources"].items()
        }
        return sources | {name: set() for name, entry in BESIDE.items() if made.get(entry)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def refuse_to_replace(root: Path, sources: Iterable[str]) -> None:
    """Refuses what a corpus of these sources at `root` would take away and no corpus made."""
    made = _made(root)
    others = [
        entry
        for name in {*sources, *made, *BESIDE}
        if (root / name).is_dir()
        for entry in (root / name).iterdir()
        if name not in made or (name not in BESIDE and entry.name not in made[name])
    ]
    if others:
        raise UserError(
            f"corpus.path={root} has text that a corpus there would replace ({min(others)}): "
            "name another folder with --gin.corpus.path=FOLDER"
        )


def replace(root: Path, new: Path) -> None:
    """Puts a finished corpus in the place of an older one."""
    (root / REPLACING / "old").mkdir(parents=True)
    new.rename(root / REPLACING / "new")
    _finish(root)


def _finish(root: Path) -> None:
    """Puts the corpus in root/.replacing/new in the place of an older one, which moves to old/.

    Where a move fails all is put back. Where we are killed, the next build goes on from here: the
    old manifest goes first and the new one comes last, so what has one is whole.
    """
    new, old = root / REPLACING / "new", root / REPLACING / "old"
    if (new / MANIFEST).is_file():
        names = [MANIFEST, *(_made(old) or _made(root))]
        moves = [(root / name, old / name) for name in names if not os.path.lexists(old / name)]
        moves = [move for move in moves if os.path.lexists(move[0])]
        names = sorted(entry.name for entry in new.iterdir())
        moves += [(new / name, root / name) for name in sorted(names, key=MANIFEST.__eq__)]
        for done, (here, there) in enumerate(moves):
            try:
                here.rename(there)
            except OSError as error:
                for back, forth in reversed(moves[:done]):
                    forth.rename(back)
                shutil.rmtree(root / REPLACING)
                raise UserError(
                    f"{there if there.parent == root else here} cannot be replaced "
                    f"({error.strerror}); the corpus that was there still is"
                ) from error
    if (root / REPLACING).is_dir():
        shutil.rmtree(root / REPLACING)
