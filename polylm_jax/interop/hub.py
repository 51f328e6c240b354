"""A model's files from the Hugging Face hub into a folder, resumed where a download broke off.

huggingface_hub speaks with the hub. Within a process it goes on by itself after a broken
connection; that a later process goes on, too, is because what came lies here under a name of ours.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

from polylm_jax.errors import UserError
from polylm_jax.interop.convert import read_size
from polylm_jax.interop.found_tokenizer import find_tokenizer
from polylm_jax.interop.tensor_files import CHOICES, shards

# What belongs to a model but for its weights: settings, tokenizers, the index of shards.
SETTINGS = (".json", ".model")
_SHA256 = re.compile("[0-9a-f]{64}")


def is_name(source: str) -> bool:
    """Whether this is ORG/NAME on the hub, and no folder here."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source)) and not Path(source).exists()


def download(name: str, folder: Path, tokenizer: str = "") -> None:
    """Fetches a model's files into a folder; those that are there already are kept.

    name: ORG/NAME. tokenizer: as in `find_tokenizer`. Settings come first, so that a model that
    cannot be imported, or for which there is no room, is refused before its weights are fetched.
    UserError, too, where the hub does not have it or cannot be reached.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HTTPError, RepositoryNotFoundError
    except ImportError:
        raise UserError(
            f"{name} is no folder here, and to fetch it from the hub huggingface_hub is needed: "
            "pip install huggingface_hub (or polylm_jax[hub])."
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    try:
        info = huggingface_hub.HfApi().model_info(name, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        for file in sizes:
            if file.endswith(SETTINGS) and "/" not in file:
                _fetch(name, file, str(info.sha), folder)
        weights = _weights(name, sizes, folder)
        read_size(str(folder))
        find_tokenizer(str(folder), tokenizer)
        left = sum(sizes[file] for file in weights if not (folder / file).is_file())
        # the run is smaller than what it is made of: see `arrays.create_array`
        _check_room(name, folder, left, sum(sizes[file] for file in weights))
        for file in weights:
            _fetch(name, file, str(info.sha), folder)
    except RepositoryNotFoundError:
        raise UserError(
            f"{name} is no folder here and no model on the hub that you may read; mend the name, "
            "or log in with `hf auth login`."
        ) from None
    except (OSError, HTTPError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise UserError(
            f"{name} is no folder here and could not be fetched from the hub ({reason}); what came "
            f"is kept in {folder}: run the same command again."
        ) from error


def _weights(name: str, sizes: dict[str, int], folder: Path) -> list[str]:
    """The files of weights that transformers would load."""
    chosen = next((file for file in CHOICES if file in sizes), None)
    if chosen is None:
        raise UserError(f"{name} has no {CHOICES[0]}, no {CHOICES[2]} and no index of either.")
    if not chosen.endswith(".json"):
        return [chosen]
    files = shards(folder / chosen)
    if missing := set(files) - sizes.keys():
        raise UserError(f"{name} has no {missing.pop()}, which its {chosen} names.")
    return files


def _check_room(name: str, folder: Path, fetch: int, run: int) -> None:
    """UserError if there is no room for so many bytes still to fetch and for the run."""
    free = shutil.disk_usage(folder).free
    if free < fetch + run:
        raise UserError(
            f"{name} needs {(fetch + run) / 1e9:,.1f} GB of disk, {fetch / 1e9:,.1f} to fetch and "
            f"{run / 1e9:,.1f} for the run, but {folder} has {free / 1e9:,.1f} GB left; free some "
            "or give a --run on another disk."
        )
    print(f"Fetching {fetch / 1e9:,.2f} GB into {folder}.", flush=True)


def _fetch(name: str, file: str, revision: str, folder: Path) -> None:
    """Fetches one file, from where an earlier try of the same content broke off."""
    from huggingface_hub import file_download, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(name, file, revision=revision)
    found: Any = get_hf_file_metadata(url)
    etag = re.sub(r"\W", "", found.etag or "")
    whole, part = folder / file, folder / f"{file}.{etag}.part"
    if whole.is_file() and whole.stat().st_size == found.size:
        return
    with open(part, "ab") as content:
        file_download.http_get(
            url,
            content,
            resume_size=content.tell(),
            headers=build_hf_headers(),
            expected_size=found.size,
            displayed_filename=file,
        )
    # of a large file the hub says the sha256
    if _SHA256.fullmatch(etag):
        with open(part, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest != etag:
            part.unlink()
            raise OSError(f"{file} came with other bytes than the hub has")
    os.replace(part, whole)
