"""Weights as decoding wants them: cast once, every layer's an array of its own, int8 if asked.

A step of decoding reads every weight for one token, so it is bound by their bytes. Slices of
stacked layers would be copied at every token, and so would float32 weights on their way to
bfloat16. Int8 halves the bytes of bfloat16: a weight is an integer from -127 to 127 times the
scale of its output channel (of its row, in the embedding and position tables).

For a CPU the outputs' axes of bfloat16 come first, see `model.products.OutputsFirst`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from polylm_jax.model.parameters import Parameter, layer_parameters, outer_parameters
from polylm_jax.model.products import Int8, OutputsFirst
from polylm_jax.sizes import Size


def for_decoding(
    params: Any, size: Size, dtype: str, int8: bool = False, cpu: bool = False
) -> dict[str, Any]:
    """The tree that the decoder takes together with a cache.

    params: the tree of training, float32. dtype: of the products, "bfloat16" or "float32";
    kernels and tables are cast to it, or quantised. Biases and norms stay float32. The layers'
    stacked arrays become "layer_0", "layer_1", … cpu: they are for a CPU.
    """
    keep = "int8" if int8 else dtype
    if cpu and keep == "bfloat16":
        keep = "outputs first"
    return _convert(size, keep, params)


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


def outputs_first(weight: jax.Array, inputs: tuple[int, ...]) -> OutputsFirst:
    """A float weight whose products sum over the axes `inputs`."""
    last = tuple(range(-len(inputs), 0))
    return OutputsFirst(jnp.moveaxis(weight.astype(jnp.bfloat16), inputs, last))


# What becomes of a weight, by how it is kept: function (weight, the axes that are summed over).
KINDS: dict[str, Callable[[jax.Array, tuple[int, ...]], Any]] = {
    "float32": lambda weight, inputs: weight,
    "bfloat16": lambda weight, inputs: weight.astype(jnp.bfloat16),
    "int8": quantise,
    "outputs first": outputs_first,
}
