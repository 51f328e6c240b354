"""The way of the data is one-way: who may import what, and what the model must not drag in."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "polylm_jax"

# a room imports from itself and from the rooms before it
ROOMS = [
    *[
        "errors",
        "ranges",
        "console",
        "files",
        "jsonl",
        "records",
        "chips",
        "sizes",
        "model",
        "parallel",
        "data",
        "train",
        "decode",
        "interop",
        "plan",
    ],
    *[
        "runs",
        "tune",
        "evaluation",
        "serve",
        "bench",
        "config",
        "verbs",
        "__main__",
    ],
]

# heavy packages, and the only places that may import them, be it inside a function
TENSORFLOW = ("data/mixture.py", "data/clean/", "bench/")
HOMES = {
    "tensorflow": TENSORFLOW,
    "tensorflow_text": TENSORFLOW,
    "tensorflow_datasets": TENSORFLOW,
    "seqio": TENSORFLOW,
    "torch": ("bench/",),
    "lm_eval": ("bench/", "evaluation/harness.py"),
    "transformers": ("bench/",),
    "rouge_score": ("bench/", "evaluation/metrics.py"),
    "sacrebleu": ("evaluation/metrics.py",),
    "xllamacpp": ("bench/",),
    "gin": ("config.py",),
    "huggingface_hub": ("interop/hub.py",),
    "gguf": ("interop/gguf_file.py",),
    "starlette": ("serve/",),
    "uvicorn": ("serve/",),
    "prometheus_client": ("serve/",),
    "wandb": ("train/",),
}

# imports everything in the rooms named and tells which module brings in what it should not
PROBE = """
import importlib, pkgutil, sys
unwanted = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "gin", "torch"}
for room in sys.argv[1:]:
    package = importlib.import_module(room)
    names = [module.name for module in pkgutil.walk_packages(package.__path__, room + ".")]
    for name in [room, *names]:
        importlib.import_module(name)
        for found in sorted(unwanted & set(sys.modules)):
            print(name, "brings in", found)
            unwanted.remove(found)
"""


def test_model_train_and_decode_bring_in_no_heavy_package():
    rooms = ["polylm_jax.model", "polylm_jax.train", "polylm_jax.decode"]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *rooms],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def imports(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of all that the file imports, wherever in the file."""
    here = [package.name, *path.relative_to(package).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = here[: -node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def offences(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package).as_posix()
        room = file.split("/")[0].removesuffix(".py")
        if room not in [*ROOMS, "__init__"]:
            found.append(f"{file}: {room} is not in ROOMS")
            continue
        for line, name in imports(path, package):
            first, *rest = name.split(".")
            where = f"{file}:{line}: {room} imports {name}"
            if first in HOMES and not file.startswith(HOMES[first]):
                found.append(f"{where}, which belongs to {' '.join(HOMES[first])}")
            if first != package.name or not rest or rest[0] not in ROOMS:
                continue
            if room == "__init__" or ROOMS.index(rest[0]) > ROOMS.index(room):
                found.append(f"{where}, which lies downstream")
            if room == "data" and rest[0] in ("model", "train"):
                found.append(f"{where}, but the data know no model")
    return found


def test_every_import_goes_upstream_and_heavy_packages_stay_at_home():
    assert not offences(PACKAGE), "\n".join(offences(PACKAGE))


def test_the_rules_catch_each_kind_of_offence(tmp_path):
    package = tmp_path / "polylm_jax"
    files = {
        "__init__.py": "from .errors import UserError",
        "config.py": "import gin\nfrom polylm_jax.train import loop",
        "sizes.py": "from . import errors, train",
        "attic.py": "",
        "model/decoder.py": "def f():\n    from ..train.loop import train\n    import torch.nn",
        "data/mixture.py": "import seqio, tensorflow as tf\nimport polylm_jax.errors",
        "data/clean/rules.py": "import tensorflow\nfrom ...parallel import mesh\nimport gin",
        "data/feed.py": "import polylm_jax.model.loss\nfrom tensorflow.io import gfile",
        "bench/train.py": "import torch\nfrom transformers import GPT2LMHeadModel",
        "train/loop.py": "from .step import step\nfrom polylm_jax import config, data",
    }
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert [offence.partition(": ")[0] for offence in offences(package)] == [
        "__init__.py:1",
        "attic.py",
        "data/clean/rules.py:3",
        "data/feed.py:1",
        "data/feed.py:2",
        "model/decoder.py:2",
        "model/decoder.py:3",
        "sizes.py:1",
        "train/loop.py:2",
    ]
