"""The model of a run, ready to decode: what several verbs begin with."""

import argparse
import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax

from polylm_jax import config
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.decode import weights
from polylm_jax.model.decoder import Decoder
from polylm_jax.parallel import platform
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import attender, constrainer
from polylm_jax.serve.engine import DeviceEngine
from polylm_jax.serve.settings import Serving
from polylm_jax.train import checkpoint
from polylm_jax.train.door import identity_of, open_run, read_params


@dataclass(frozen=True)
class Model:
    """A checkpoint on the devices.

    params: the tree of training, float32. rows: ways in which the mesh splits a batch.
    checksum: of the parameters, and of those that adapters belong to; "" where the run has none.
    """

    step: int
    decoder: Decoder
    params: Any
    tokenizer: Tokenizer
    rows: int
    checksum: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it another model, for files that tell what they were made with."""
        return {
            "step": self.step,
            "checksum": self.checksum,
            "tokenizer": self.tokenizer.fingerprint,
        }


@contextlib.contextmanager
def model_of(given: argparse.Namespace) -> Iterator[Model]:
    """The newest sound checkpoint of given.run, with its mesh in context and its gin in force."""
    platform.take_memory()
    platform.keep(config.get("compute").compile_cache)
    run = open_run(given.run)
    config.parse(given.gin_file, given.overrides, run.meta["gin"])
    size, compute = run.size, config.get("compute")
    checkpoint.check_model(run.meta, config.get("model"), given.run)
    # as many ways over tensor as the model allows, so that each token reads the weights once
    ways = math.gcd(jax.device_count(), size.heads, size.d_ff, size.vocabulary)
    mesh = make_mesh(MeshShape(data=-1, fsdp=1, tensor=ways))
    with jax.set_mesh(mesh):
        yield Model(
            run.step,
            Decoder(
                size,
                compute,
                constrain=constrainer(mesh),
                attend=attender(compute, mesh),
                ids=run.tokenizer.size,
            ),
            read_params(run, mesh),
            run.tokenizer,
            mesh.shape["data"],
            identity_of(run.meta),
        )


def for_decoding(model: Model, int8: bool) -> Model:
    """The same with its weights as decoding wants them, of one byte if asked."""
    decoder = model.decoder
    cpu = jax.default_backend() == "cpu"
    params = weights.for_decoding(model.params, decoder.size, decoder.compute.dtype, int8, cpu)
    return replace(model, params=params)


def open_engine(model: Model, serving: Serving, ready: bool = True) -> DeviceEngine:
    """An engine for a model `for_decoding`, ready for calls; to be closed.

    ready: compiles all programs first; else each when a call first needs it.
    """
    return DeviceEngine(model.decoder, model.params, serving, model.rows, ready)
