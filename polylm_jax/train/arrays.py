"""The parameters of an Orbax checkpoint one array at a time, through TensorStore.

Orbax saves and restores whole trees, and so needs memory for all of the model at once. What it
writes is one zarr array per leaf in an OCDBT store; here those are opened one by one.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath

from polylm_jax.model.parameters import layer_parameters, map_parameters, outer_parameters
from polylm_jax.sizes import Size
from polylm_jax.train import checkpoint, checksum


def create(
    folder: str, size: Size, meta: checkpoint.Meta, write: Callable[[epath.Path], dict[str, int]]
) -> None:
    """Makes a run whose step 0 has the arrays that `write` puts into the folder it is given.

    write: returns each array's sum by the parameter's name, as `checksum.part_sum` gives it.
    RunEnded where the storage does not take them.
    """
    manager = checkpoint.open_manager(folder)
    empty = map_parameters(lambda parameter, layers: np.zeros(1, np.float32), size)
    checkpoint.save(manager, 0, {"params": empty}, meta)
    checkpoint.finish(manager)
    try:
        total = total_of(write(arrays_of(manager, 0)), size)
    except (OSError, ValueError, RuntimeError) as error:
        raise checkpoint.not_saved(manager, 0, error) from error
    # a state that is parameters and nothing else has their checksum
    checkpoint.write_meta(manager, 0, checkpoint.sealed(meta, total, total))
    manager.close()


def total_of(sums: dict[str, int], size: Size) -> int:
    """The checksum of all parameters, given each array's sum by the parameter's name."""
    tree: dict[str, Any] = {name: sums[name] for name in outer_parameters(size)}
    return checksum.joined(tree | {"layers": {name: sums[name] for name in layer_parameters(size)}})


def arrays_of(manager: Any, step: int) -> epath.Path:
    """The folder of a step's arrays."""
    return manager.directory / str(step) / "state"


def create_array(
    arrays: epath.Path, size: Size, name: str, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> Any:
    """An array in the place of a parameter's placeholder, float32, read and written by chunks.

    Bits of like weight lie together, so that the zeros of what was float16 or bfloat16 cost
    nothing: 1.9 and 1.5 bytes a parameter were seen, 3.5 of float32, and twice zstd's speed.
    """
    metadata = {
        "shape": shape,
        "chunks": chunks,
        "dtype": "<f4",
        "fill_value": None,
        "compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 2, "blocksize": 0},
    }
    spec = _spec(arrays, size, name) | {
        "metadata": metadata,
        "store_data_equal_to_fill_value": True,
    }
    return ts.open(spec, create=True, delete_existing=True).result()


def open_array(arrays: epath.Path, size: Size, name: str) -> Any:
    """A parameter of the checkpoint, not yet read; the layers' are stacked on a leading axis."""
    return ts.open(_spec(arrays, size, name), open=True, read=True).result()


def _spec(arrays: epath.Path, size: Size, name: str) -> dict[str, Any]:
    leaf = f"params.layers.{name}" if name in layer_parameters(size) else f"params.{name}"
    base = str(arrays) if "://" in str(arrays) else f"file://{arrays}"
    store = {"driver": "ocdbt", "base": f"{base}/", "path": f"{leaf}/"}
    return {"driver": "zarr", "kvstore": store}
