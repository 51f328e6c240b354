"""The one table of parameters: shape, logical axes, initial values, Hugging Face name.

Initialisation, sharding, weight decay, checkpoints and conversion all read this table, so
that a parameter is described once. Linear kernels keep the input axes first, as GPT-2's
Conv1D does, so conversion is a reshape and never a transpose.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from polylm_jax.ranges import HUGE, TINY, OneOf, Range, check
from polylm_jax.sizes import Size


@dataclass(frozen=True)
class Init:
    """How weights start. The paper and the release disagree (sections 3.2; release script).

    scheme: "normal", the release's N(0, std) with output projections at std/sqrt(2·layers)
        (Megatron's scaled init), or "xavier", the paper's Xavier normal.
    std: of the "normal" scheme; 0.006 in the release's scripts.
    """

    scheme: Annotated[str, OneOf("normal", "xavier")] = "normal"
    std: Annotated[float, Range(TINY, HUGE)] = 0.006

    def __post_init__(self) -> None:
        check(self, "init")


@dataclass(frozen=True)
class Parameter:
    """One parameter of the decoder.

    shape: without the layer axis.
    axes: logical name of each dimension, None where it is never split.
    role: "kernel", "residual" (a kernel that writes to the residual stream), "scale"
        (ones) or "bias" (zeros).
    hugging_face: name in a GPT2LMHeadModel file, with {layer} in a layer's.
    hugging_face_shape: shape there.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    role: str
    hugging_face: str
    hugging_face_shape: tuple[int, ...]

    @property
    def decays(self) -> bool:
        """Whether weight decay applies: to kernels and tables, not to biases and norms."""
        return self.role in ("kernel", "residual")


def layer_parameters(size: Size) -> dict[str, Parameter]:
    """Parameters of one decoder layer by name; the decoder stacks them over layers."""
    d, ff, heads, head = size.d_model, size.d_ff, size.heads, size.head_size
    prefix = "transformer.h.{layer}."

    def row(shape, axes, role, name, hf_shape):
        return Parameter(shape, axes, role, prefix + name, hf_shape)

    qkv_axes = ("embed", None, "heads", None)
    return {
        "attention_norm_scale": row((d,), (None,), "scale", "ln_1.weight", (d,)),
        "attention_norm_bias": row((d,), (None,), "bias", "ln_1.bias", (d,)),
        "qkv": row((d, 3, heads, head), qkv_axes, "kernel", "attn.c_attn.weight", (d, 3 * d)),
        "qkv_bias": row((3, heads, head), qkv_axes[1:], "bias", "attn.c_attn.bias", (3 * d,)),
        "attention_out": row(
            (heads, head, d), ("heads", None, "embed"), "residual", "attn.c_proj.weight", (d, d)
        ),
        "attention_out_bias": row((d,), (None,), "bias", "attn.c_proj.bias", (d,)),
        "mlp_norm_scale": row((d,), (None,), "scale", "ln_2.weight", (d,)),
        "mlp_norm_bias": row((d,), (None,), "bias", "ln_2.bias", (d,)),
        "mlp_in": row((d, ff), ("embed", "mlp"), "kernel", "mlp.c_fc.weight", (d, ff)),
        "mlp_in_bias": row((ff,), ("mlp",), "bias", "mlp.c_fc.bias", (ff,)),
        "mlp_out": row((ff, d), ("mlp", "embed"), "residual", "mlp.c_proj.weight", (ff, d)),
        "mlp_out_bias": row((d,), (None,), "bias", "mlp.c_proj.bias", (d,)),
    }


def outer_parameters(size: Size) -> dict[str, Parameter]:
    """Parameters outside the layers: tied embedding, positions, final norm."""
    v, d, context = size.vocabulary, size.d_model, size.context
    return {
        "embedding": Parameter(
            (v, d), ("vocabulary", "embed"), "kernel", "transformer.wte.weight", (v, d)
        ),
        "positions": Parameter(
            (context, d), (None, "embed"), "kernel", "transformer.wpe.weight", (context, d)
        ),
        "final_norm_scale": Parameter((d,), (None,), "scale", "transformer.ln_f.weight", (d,)),
        "final_norm_bias": Parameter((d,), (None,), "bias", "transformer.ln_f.bias", (d,)),
    }


def initializer(parameter: Parameter, init: Init, layers: int) -> Callable[..., jax.Array]:
    """Function (key, shape, dtype) -> array that draws one parameter."""
    if parameter.role == "scale":
        return jax.nn.initializers.ones
    if parameter.role == "bias":
        return jax.nn.initializers.zeros
    if init.scheme == "xavier":
        std = math.sqrt(2.0 / sum(parameter.hugging_face_shape))
    else:
        std = init.std / math.sqrt(2 * layers) if parameter.role == "residual" else init.std
    return lambda key, shape, dtype=jnp.float32: std * jax.random.normal(key, shape, dtype)


def map_parameters(function: Callable[[Parameter, int | None], Any], size: Size) -> dict[str, Any]:
    """Tree with the decoder's structure: function(parameter, layers) at every leaf.

    layers is the length of the leading layer axis, None outside the layers.
    """
    tree: dict[str, Any] = {
        name: function(parameter, None) for name, parameter in outer_parameters(size).items()
    }
    tree["layers"] = {
        name: function(parameter, size.layers) for name, parameter in layer_parameters(size).items()
    }
    return tree


def shapes(size: Size) -> dict[str, Any]:
    """Tree of ShapeDtypeStruct (float32), the layers' stacked on a leading axis."""

    def shape(parameter: Parameter, layers: int | None) -> jax.ShapeDtypeStruct:
        stack = () if layers is None else (layers,)
        return jax.ShapeDtypeStruct(stack + parameter.shape, jnp.float32)

    return map_parameters(shape, size)


def logical_axes(size: Size) -> dict[str, Any]:
    """Tree of tuples of logical axis names, one name (or None) per dimension."""

    def axes(parameter: Parameter, layers: int | None) -> tuple[str | None, ...]:
        return parameter.axes if layers is None else ("layers", *parameter.axes)

    return map_parameters(axes, size)


def decay_mask(size: Size) -> dict[str, Any]:
    """Tree of booleans: whether weight decay applies."""
    return map_parameters(lambda parameter, layers: parameter.decays, size)


def count(size: Size) -> int:
    """Number of parameters, by arithmetic on shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(size)))
