"""Compare runs: the settings in which they differ, bits per byte at equal tokens, a figure."""

import argparse
import glob
from functools import partial
from pathlib import Path

from polylm_jax.errors import UserError
from polylm_jax.files import existing, local, opened
from polylm_jax.runs import compared
from polylm_jax.runs.compare import compare, markdown


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--run",
        action="append",
        required=True,
        help="folder of a run, local or a URL; may be given again; * stands for any letters",
    )
    parser.add_argument(
        "--out",
        default="runs/compared",
        type=partial(local, name="--out"),
        help="folder for compare.md and compare.png (default: runs/compared)",
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    folders = list(dict.fromkeys(folder for text in given.run for folder in _folders(text)))
    if len(folders) < 2:
        raise UserError(f"only {folders[0]} is given; compare takes two runs or more.")
    write(folders, given.out)


def write(folders: list[str], out: str) -> None:
    """Compares runs; prints the text and writes it, with its figure, into a folder."""
    found = compare(folders)
    picture = compared.draw(found, Path(out, "compare.png"))
    text = markdown(found, picture.name)
    Path(out, "compare.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"Written to {out}/compare.md and {picture}.")


def _folders(text: str) -> list[str]:
    """The folders that a flag names; no letter but * is a pattern."""
    if "*" not in text:
        return [existing(text, "--run")]
    files, root = opened(text)
    found = files.glob(glob.escape(root).replace("[*]", "*"))
    folders = sorted(path for path in found if files.isdir(path))
    if not folders:
        raise UserError(f"no folder is called {text}; mend --run.")
    return [path if "://" not in text else files.unstrip_protocol(path) for path in folders]
