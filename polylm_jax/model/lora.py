"""Low-rank adapters (LoRA, arXiv 2106.09685) of a layer's four kernels, from the one table.

A kernel W [in…, out…] becomes W + alpha / rank · A B, with A [in…, rank] and B [rank, out…]; the
product x A B is taken, never A B itself, so that no gradient of W's size is made.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp

from polylm_jax.errors import UserError
from polylm_jax.model.parameters import layer_parameters
from polylm_jax.ranges import HUGE, TINY, OneOf, Range, check
from polylm_jax.sizes import Size, flops_per_token

# A layer's kernels, and how many of their axes are inputs.
TARGETS = {"qkv": 1, "attention_out": 2, "mlp_in": 1, "mlp_out": 1}


@dataclass(frozen=True)
class Lora:
    """Adapters beside frozen weights, as in peft.

    rank: of A B; 0 trains all weights and makes no adapters. alpha: the adapters' sum is scaled
    by alpha / rank. targets: the kernels that get one, out of qkv, attention_out, mlp_in, mlp_out.
    """

    rank: Annotated[int, Range(0)] = 0
    alpha: Annotated[float, Range(TINY, HUGE)] = 16.0
    targets: tuple[Annotated[str, OneOf(*TARGETS)], ...] = tuple(TARGETS)

    def __post_init__(self) -> None:
        check(self, "lora")
        if not self.targets:
            raise UserError(f"lora.targets has nothing; give some of {', '.join(TARGETS)}.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 0.0


def adapter_axes(size: Size, lora: Lora) -> dict[str, tuple[str | None, ...]]:
    """Logical axes of each adapter's arrays, the layers' first: those of its kernel, rank whole."""
    table = layer_parameters(size)
    axes: dict[str, tuple[str | None, ...]] = {}
    for name in lora.targets:
        inputs, kernel = TARGETS[name], table[name].axes
        axes[f"{name}_a"] = ("layers", *kernel[:inputs], None)
        axes[f"{name}_b"] = ("layers", None, *kernel[inputs:])
    return axes


def adapter_shapes(size: Size, lora: Lora) -> dict[str, jax.ShapeDtypeStruct]:
    """NAME_a [layers, in…, rank] and NAME_b [layers, rank, out…] of each target, float32."""
    table = layer_parameters(size)
    shapes = {}
    for name in lora.targets:
        inputs, kernel = TARGETS[name], table[name].shape
        for part, shape in (
            ("a", (*kernel[:inputs], lora.rank)),
            ("b", (lora.rank, *kernel[inputs:])),
        ):
            shapes[f"{name}_{part}"] = jax.ShapeDtypeStruct((size.layers, *shape), jnp.float32)
    return shapes


def initial_adapters(key: jax.Array, size: Size, lora: Lora) -> dict[str, jax.Array]:
    """Adapters that change nothing yet: A uniform within ±1/√inputs (peft's), B zero."""
    made = {}
    for number, (name, shape) in enumerate(adapter_shapes(size, lora).items()):
        if name.endswith("_a"):
            most = math.prod(shape.shape[1:-1]) ** -0.5
            draw = jax.random.fold_in(key, number)
            made[name] = jax.random.uniform(draw, shape.shape, shape.dtype, -most, most)
        else:
            made[name] = jnp.zeros(shape.shape, shape.dtype)
    return made


def adapted(equation: str, x: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """scale · x A B in float32. equation: of x and the kernel, such as "bld,dkhe->blkhe"."""
    operands, result = equation.split("->")
    x_axes, kernel = operands.split(",")
    inputs = "".join(axis for axis in kernel if axis not in result)
    outputs = "".join(axis for axis in kernel if axis in result)
    narrow = x_axes.removesuffix(inputs) + "r"
    low = jnp.einsum(f"{x_axes},{inputs}r->{narrow}", x, a.astype(x.dtype))
    wide = jnp.einsum(
        f"{narrow},r{outputs}->{result}",
        low,
        b.astype(x.dtype),
        preferred_element_type=jnp.float32,
    )
    return scale * wide


def merged(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """A kernel of all layers, [layers, in…, out…], with its adapter added, float32."""
    product = partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST)
    return kernel.astype(jnp.float32) + scale * jax.vmap(product)(a, b)


def adapter_count(size: Size, lora: Lora) -> int:
    """Number of the adapters' parameters, 0 where there are none."""
    shapes = adapter_shapes(size, lora) if lora.rank else {}
    return sum(math.prod(shape.shape) for shape in shapes.values())


def trained_flops(size: Size, length: int, lora: Lora) -> float:
    """FLOPs of one trained token, as flops_per_token: of frozen weights no gradient is made."""
    spared = flops_per_token(size, 0) / 3 if lora.rank else 0.0
    return flops_per_token(size, length) - spared + 6.0 * adapter_count(size, lora)
