"""A folder as Hugging Face has it, made from what a real GPT-2 answered, and runs read back."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from polylm_jax.__main__ import main
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.train import checkpoint
from tests import golden
from tests.conftest import gin_flags
from tests.evaluation import BENCHMARKS

# As in the release: its activation, and its wrong ids.
RELEASE = {
    "model_type": "gpt2",
    "architectures": ["PolyLMHeadModel"],
    "activation_function": "gelu_fast",
    "layer_norm_epsilon": 1e-05,
    "bos_token_id": 255999,
    "eos_token_id": 255999,
}
RELEASE_GOLDEN = Path(golden.__file__).parent / "release.npz"


@pytest.fixture(scope="session")
def release():
    """(size, everything in the file) of the golden model that has the tiny tokenizer's size."""
    with np.load(RELEASE_GOLDEN) as file:
        content = dict(file)
    return golden.size_in(content), content


@pytest.fixture(scope="session")
def weights(release):
    return golden.select(release[1], "weights/")


@pytest.fixture
def hugging_face(release, tiny, tmp_path):
    """Function (weights or {file name: weights}, config changes) -> a Hugging Face folder."""

    def make(files, **changes):
        folder = tmp_path / "hugging_face"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        config = {k: int(v) for k, v in golden.select(release[1], "config/").items()}
        (folder / "config.json").write_text(json.dumps(RELEASE | config | changes))
        shutil.copy(Path(tiny["tokenizer.path"]) / "tokenizer.model", folder)
        if not all(name.endswith(".safetensors") for name in files):
            files = {"model.safetensors": files}
        for name, content in files.items():
            save_file({k: np.ascontiguousarray(v) for k, v in content.items()}, folder / name)
        return folder

    return make


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory):
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("of") / "trained" / "run"
    settings = {"train.folder": folder, "train.steps": 2, "train.validate_rows": 1}
    assert main(["train", *gin_flags(tiny | settings)]) == 0
    return folder


# adapters that move far in two steps, on all kernels
LORA = {"lora.rank": 3, "lora.alpha": 6.0, "optimizer.peak_learning_rate": 0.05}

EVALUATION = {
    "evaluation.folder": BENCHMARKS,
    "evaluation.limit": 2,
    "evaluation.row_length": 64,
    "evaluation.languages": ("th",),
}


def with_adapters(tiny, base, folder, steps, **changes):
    """Flags of a run of adapters beside a base, up to a step."""
    settings = {"train.start": base, "train.folder": folder, "train.steps": steps}
    return gin_flags(tiny | LORA | settings | {"train.validate_rows": 1} | changes)


@pytest.fixture(scope="session")
def adapted(trained, tiny):
    """A run of two steps of adapters to the trained one, evaluated before and after them."""
    folder = trained.parents[1] / "adapted" / "run"
    every = EVALUATION | {"train.evaluate_every": 2}
    assert main(["train", *with_adapters(tiny, trained, folder, 2, **every)]) == 0
    return folder


def params_of(run, size, shape=(2, 2, 2)):
    """The parameters of a run's newest checkpoint, restored on a mesh."""
    manager = checkpoint.open_existing(str(run))
    mesh = make_mesh(MeshShape(*shape), jax.devices()[: int(np.prod(shape))])
    return checkpoint.restore_params(manager, manager.latest_step(), size, mesh)
