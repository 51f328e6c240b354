"""Reference outputs that others' code made; each has beside it the script that made it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from polylm_jax.interop.hugging_face import params_from, size_of
from polylm_jax.sizes import Size

NAMES = ("a", "b", "c")
FILES = {name: f"gpt2_{name}" for name in NAMES}


def load(name: str) -> tuple[Size, dict[str, Any], dict[str, np.ndarray]]:
    """(size, our parameters, everything in the file) of one Hugging Face GPT-2."""
    with np.load(Path(__file__).parent / f"{FILES.get(name, name)}.npz") as file:
        content = dict(file)
    size = size_in(content)
    return size, params_from(select(content, "weights/"), size), content


def select(content: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}


def size_in(content: dict[str, np.ndarray]) -> Size:
    """The size that a golden file's config/ entries describe."""
    return size_of({name: int(v) for name, v in select(content, "config/").items()}, "golden")


def lm_eval() -> tuple[dict[str, list], dict[str, np.ndarray]]:
    """(what lm-eval made of release.npz's model by kind, everything else in lm_eval.npz)."""
    with np.load(Path(__file__).parent / "lm_eval.npz") as file:
        content = dict(file)
    return json.loads(content.pop("cases").tobytes()), content
