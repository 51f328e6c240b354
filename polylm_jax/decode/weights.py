"""Weights as decoding wants them: cast once, every layer's an array of its own, int8 if asked.

A step of decoding reads every weight for one token, so it is bound by their bytes. Slices of
stacked layers would be copied at every token, and so would float32 weights on their way to
bfloat16. Int8 halves the bytes of bfloat16: a weight is an integer from -127 to 127 times the
scale of its output channel (of its row, in the embedding and position tables).

A CPU multiplies bfloat16 as it lies in memory only where there are FEW rows or more; else its
compiler makes all weights float32 at every call. There a small model has both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from polylm_jax.model.decoder import Decoder
from polylm_jax.model.parameters import Parameter, count, layer_parameters, outer_parameters
from polylm_jax.model.products import Int8
from polylm_jax.sizes import Size

SMALL = 100_000_000  # parameters of a model whose weights a CPU may hold in both dtypes
FEW = 4  # rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Both:
    """A weight in bfloat16 and in float32: a product takes the one that it would cast to."""

    narrow: jax.Array
    wide: jax.Array

    def astype(self, dtype: Any) -> jax.Array:
        """The weight in one of the two."""
        return self.narrow if jnp.dtype(dtype) == self.narrow.dtype else self.wide.astype(dtype)

    def __getitem__(self, rows: jax.Array) -> jax.Array:
        """Rows of a table, float32."""
        return self.wide[rows]


def for_decoding(
    params: Any, size: Size, dtype: str, int8: bool = False, cpu: bool = False
) -> dict[str, Any]:
    """The tree that the decoder takes together with a cache.

    params: the tree of training, float32. dtype: of the products, "bfloat16" or "float32";
    kernels and tables are cast to it, or quantised. Biases and norms stay float32. The layers'
    stacked arrays become "layer_0", "layer_1", … cpu: they are for a CPU.
    """
    keep = "int8" if int8 else dtype
    if cpu and keep == "bfloat16" and count(size) < SMALL:
        keep = "both"
    return _convert(size, keep, params)


def with_few(decoder: Decoder, params: Any, rows: int) -> Decoder:
    """The decoder that adds one token to each of so many rows, with the weights `for_decoding`."""
    if rows >= FEW or not isinstance(params["embedding"], Both):
        return decoder
    return decoder.clone(compute=replace(decoder.compute, dtype="float32", attention="auto"))


@partial(jax.jit, static_argnums=(0, 1))
def _convert(size: Size, keep: str, params: Any) -> dict[str, Any]:
    def convert(parameter: Parameter, value: jax.Array, inputs: tuple[int, ...]) -> Any:
        return KINDS[keep](value, inputs) if parameter.decays else value

    table = layer_parameters(size)
    tree = {
        name: convert(parameter, params[name], (1,))
        for name, parameter in outer_parameters(size).items()
    }
    for layer in range(size.layers):
        tree[f"layer_{layer}"] = {
            name: convert(parameter, params["layers"][name][layer], input_axes(parameter))
            for name, parameter in table.items()
        }
    return tree


def input_axes(parameter: Parameter) -> tuple[int, ...]:
    """The axes of a layer's kernel that a product sums over: those that Conv1D has first."""
    inputs, axes = parameter.hugging_face_shape[0], 1
    while math.prod(parameter.shape[:axes]) < inputs:
        axes += 1
    return tuple(range(axes))


def quantise(weight: jax.Array, inputs: tuple[int, ...]) -> Int8:
    """Rounds a float weight to int8, with one scale for all along the axes `inputs`."""
    most = jnp.abs(weight).max(inputs, keepdims=True)
    scales = jnp.where(most == 0, 1, most / 127).astype(jnp.float32)
    return Int8(jnp.round(weight / scales).astype(jnp.int8), scales)


def _both(weight: jax.Array, inputs: tuple[int, ...]) -> Both:
    return Both(weight.astype(jnp.bfloat16), weight)


# What becomes of a weight, by how it is kept: function (weight, the axes that are summed over).
KINDS: dict[str, Callable[[jax.Array, tuple[int, ...]], Any]] = {
    "float32": lambda weight, inputs: weight,
    "bfloat16": lambda weight, inputs: weight.astype(jnp.bfloat16),
    "int8": quantise,
    "both": _both,
}
