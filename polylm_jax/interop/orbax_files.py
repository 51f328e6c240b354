"""The parameters of an Orbax checkpoint one array at a time, through TensorStore.

Orbax saves and restores whole trees, and so needs memory for all of the model at once. What it
writes is one zarr array per leaf in an OCDBT store; here those are opened one by one.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from polylm_jax.model.parameters import layer_parameters, map_parameters
from polylm_jax.sizes import Size
from polylm_jax.train import checkpoint


def create(folder: str, size: Size, meta: checkpoint.Meta) -> Path:
    """Makes step 0 of a run with nothing but placeholders; returns the folder of its arrays."""
    manager = checkpoint.open_manager(folder)
    empty = map_parameters(lambda parameter, layers: np.zeros(1, np.float32), size)
    checkpoint.save(manager, 0, {"params": empty}, meta)
    checkpoint.finish(manager)
    manager.close()
    return arrays_of(manager, 0)


def arrays_of(manager: Any, step: int) -> Path:
    """The folder of a step's arrays."""
    return Path(manager.directory, str(step), "state")


def create_array(
    arrays: Path, size: Size, name: str, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> Any:
    """An array in the place of a parameter's placeholder, float32, read and written by chunks."""
    metadata = {
        "shape": shape,
        "chunks": chunks,
        "dtype": "<f4",
        "fill_value": None,
        "compressor": {"id": "zstd", "level": 1},
    }
    spec = _spec(arrays, size, name) | {
        "metadata": metadata,
        "store_data_equal_to_fill_value": True,
    }
    return ts.open(spec, create=True, delete_existing=True).result()


def open_array(arrays: Path, size: Size, name: str) -> Any:
    """A parameter of the checkpoint, not yet read; the layers' are stacked on a leading axis."""
    return ts.open(_spec(arrays, size, name), open=True, read=True).result()


def _spec(arrays: Path, size: Size, name: str) -> dict[str, Any]:
    leaf = f"params.layers.{name}" if name in layer_parameters(size) else f"params.{name}"
    store = {"driver": "ocdbt", "base": f"file://{arrays}/", "path": f"{leaf}/"}
    return {"driver": "zarr", "kvstore": store}
