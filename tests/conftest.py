"""All tests run on 8 fake CPU devices; a test that needs them fails where they are missing.

What is compiled is kept in .pytest_cache, for the other tests, workers and child processes.
"""

import functools
import gc
import math
import os
import re
import resource
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# a third of the compiler's time; with XLA_FLAGS= all is compiled as for users
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

import jax
import pytest

from polylm_jax.__main__ import main
from polylm_jax.train import loop
from tests.data.sentences import SENTENCES

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")

# options of `compile` for a test that reads the program
AS_FOR_USERS = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


def as_large(instructions, sizes):
    """Those of a program's instructions that make an array of so many elements."""
    passed = ("get-tuple-element", "bitcast", "parameter", "tuple")
    return [
        one for one in instructions
        if one.op not in passed
        and any(math.prod(map(int, found.split(","))) in sizes
                for found in re.findall(r"\[([\d,]+)\]", one.type))
    ]  # fmt: skip


TINY = {
    "model.vocabulary": 1024,
    "model.context": 32,
    "model.layers": 2,
    "model.heads": 2,
    "model.d_model": 16,
    "model.d_ff": 32,
    "init.std": 0.05,
    "compute.dtype": "float32",
    "compute.loss_block": 64,
    "mesh.data": 2,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "optimizer.peak_learning_rate": 1e-2,
    "optimizer.warmup_steps": 2,
    "optimizer.decay_steps": 12,
    "curriculum.non_english": ((0, 0.3), (1024, 0.3), (2048, 0.6)),
    "curriculum.smoothing": 0.0,
    "tokenizer.pieces": 1024,
    "rows.length": 16,
    "train.steps": 12,
    "train.batch": 16,
    "train.checkpoint_every": 5,
    "train.validate_every": 6,
    "train.validate_rows": 2,
}


def gin_flags(settings):
    """Command-line flags for a dict of gin settings."""
    return [f"--gin.{name}={value}" for name, value in settings.items()]


def pytest_collection_modifyitems(items):
    """The folders that take long come first, so that no worker is left with one at the end."""
    slow = "processes", "faults", "tune", "plan", "train", "decode", "evaluation", "interop"
    slow = tuple(f"tests/{name}" for name in slow)
    items.sort(key=lambda item: not item.nodeid.startswith(slow))


def pytest_collection_finish():
    """What is imported stays: to look through it for garbage took a second each time."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def compiled_once():
    """Runs of the same settings share their compiled step, as long as no process is between."""
    loop.make_update = functools.cache(loop.make_update)
    loop.make_evaluate = functools.cache(loop.make_evaluate)


@pytest.fixture
def largest_file():
    """Function (bytes): no file that is written may be larger, as where a disk is full."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Settings of a run of seconds: a corpus, tokenizer and rows in 18 languages are there."""
    folder = tmp_path_factory.mktemp("tiny")
    for code, sentences in SENTENCES.items():
        (folder / "text" / code).mkdir(parents=True)
        text = "\n\n".join(" ".join(sentences[i:] + sentences[:i]) for i in range(len(sentences)))
        (folder / "text" / code / "prose.txt").write_text(text, encoding="utf-8")
    settings = TINY | {
        "corpus.split": "\\n\\n",
        "corpus.text": folder / "text",
        "corpus.path": folder / "corpus",
        "tokenizer.path": folder / "tokenizer",
        "rows.path": folder / "rows",
    }
    for verb in ("corpus", "tokenizer", "rows"):
        assert main([verb, *gin_flags(settings)]) == 0
    return settings
