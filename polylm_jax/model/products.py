"""Matrix products of activations and weights: narrow operands, sums in float32."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

FLOAT32 = jnp.dtype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """A quantised weight: int8 weights times float32 scales, 1 wide on the input axes."""

    weights: jax.Array
    scales: jax.Array

    def astype(self, dtype: Any) -> jax.Array:
        """The weight itself, rounded once."""
        return (self.weights * self.scales).astype(dtype)

    def __getitem__(self, rows: jax.Array) -> jax.Array:
        """Rows of a table, float32."""
        return self.weights[rows] * self.scales[rows]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OutputsFirst:
    """A weight as a CPU decodes with it: bfloat16 [outputs…, inputs…], read as it lies in memory.

    The CPU's kernels take the left operand of a product row by row and rearrange the right one,
    at every call. So where few tokens are multiplied the weight stands on the left.
    """

    weights: jax.Array

    def __getitem__(self, rows: jax.Array) -> jax.Array:
        """Rows of a table. As integers: a CPU makes float32 of all of it to look up bfloat16."""
        table, rows = jax.lax.optimization_barrier((self.weights, rows))
        bits = jax.lax.bitcast_convert_type(table, jnp.uint16)[rows]
        return jax.lax.bitcast_convert_type(bits, self.weights.dtype)


COLUMNS = 16  # of the right operand, a tile's; of fewer a CPU's product takes longer


def dot(equation: str, x: jax.Array, y: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """einsum that sums in float32 and returns dtype.

    A CPU has fast kernels for bfloat16 operands only where the result is float32; other
    platforms sum in float32 by themselves and write half the bytes if asked for bfloat16.
    """

    def wide(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32).astype(dtype)

    def narrow(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum(equation, x, y, preferred_element_type=dtype)

    return jax.lax.platform_dependent(x, y, cpu=wide, default=narrow)


def weighed(
    equation: str, x: jax.Array, weight: jax.Array | Int8 | OutputsFirst, dtype: jnp.dtype
) -> jax.Array:
    """dot with a weight, cast to the dtype of x; the scales of int8 multiply the result.

    An integer is exact in bfloat16, and a product reads it as it lies in memory; the weight times
    its scales would have to be written there first, at every token.
    """
    if isinstance(weight, OutputsFirst):
        return _outputs_first(equation, x, weight.weights, dtype)
    if not isinstance(weight, Int8):
        return dot(equation, x, weight.astype(x.dtype), dtype)
    operands, result = equation.split("->")
    axes = operands.split(",")[1]
    inputs = [place for place, axis in enumerate(axes) if axis not in result]
    product = dot(equation, x, weight.weights.astype(x.dtype), FLOAT32)
    return (product * weight.scales.squeeze(inputs)).astype(dtype)


def _outputs_first(equation: str, x: jax.Array, weights: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """weighed, on a CPU: x is [tokens…, inputs…] and weights are [outputs…, inputs…]."""
    operands, result = equation.split("->")
    outputs = weights.ndim - len(set(operands.split(",")[1]) - set(result))
    inputs = math.prod(weights.shape[outputs:])
    rows, matrix = x.reshape(-1, inputs), weights.reshape(-1, inputs)
    product = partial(
        jax.lax.dot_general,
        dimension_numbers=(((1,), (1,)), ((), ())),
        preferred_element_type=FLOAT32,
    )
    if len(rows) < COLUMNS:
        padded = jnp.pad(rows, ((0, COLUMNS - len(rows)), (0, 0)))
        found = product(matrix, padded)[:, : len(rows)].T
    else:
        found = product(rows, matrix)
    tokens = x.shape[: x.ndim - (weights.ndim - outputs)]
    return found.reshape(*tokens, *weights.shape[:outputs]).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def linear(
    equation: str,
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    sent: jnp.dtype = FLOAT32,
) -> jax.Array:
    """einsum(equation, x, weight) + bias in the dtype of x, to which the weight is cast.

    x: [batch, length, …] in the compute dtype. weight, bias: float32, or the weight as decoding
    has it. sent: to which a device rounds its gradient of the weight before devices add up theirs.
    The gradient of x is in its dtype; those of weight and bias are float32, and all sums over a
    device's tokens.
    """
    return weighed(equation, x, weight, x.dtype) + bias.astype(x.dtype)


def _forward(
    equation: str, x: jax.Array, weight: jax.Array, bias: jax.Array, sent: jnp.dtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return linear(equation, x, weight, bias, sent), (x, weight)


def _backward(
    equation: str,
    sent: jnp.dtype,
    residuals: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
    dtype: jnp.dtype | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dtype: of the gradient of x, that of x if None."""
    x, weight = residuals
    operands, result = equation.split("->")
    left, right = operands.split(",")
    gradient = gradient.astype(x.dtype)
    # Tokens are summed over, so a CPU transposes the first operand: let that be the smaller.
    sides = [(left, x), (result, gradient)]
    (one, a), (two, b) = sorted(sides, key=lambda side: side[1].size)
    return (
        dot(f"{result},{right}->{left}", gradient, weight.astype(x.dtype), dtype or x.dtype),
        dot(f"{one},{two}->{right}", a, b, sent).astype(FLOAT32),
        gradient.sum((0, 1), FLOAT32),
    )


linear.defvjp(_forward, _backward)


QKV = "bld,dkhe->blkhe"


def one_product(
    x: jax.Array, weight: jax.Array, bias: jax.Array, sent: jnp.dtype = FLOAT32
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """query_key_value by one product of the whole kernel, float32 or Int8."""
    query, key, value = jnp.unstack(linear(QKV, x, weight, bias, sent), axis=2)
    return query, key, value


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def query_key_value(
    x: jax.Array, weight: jax.Array, bias: jax.Array, sent: jnp.dtype = FLOAT32
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """linear of a layer's qkv kernel, its three results apart: each [batch, length, heads, size].

    x: [batch, length, d]; weight: [d, 3, heads, size]; bias: [3, heads, size]; float32. sent: as
    linear has it.
    A GPU takes three products, whose biases are part of them: it would copy one product's result
    into three, and three gradients into one. So does a CPU, where those copies cost more than the
    products. Other platforms read x once.
    """

    def three_products(x, weight, bias):
        d, kinds, heads, size = weight.shape
        found = (
            linear("bld,df->blf", x, weight[:, kind].reshape(d, -1), bias[kind].reshape(-1))
            for kind in range(kinds)
        )
        return tuple(y.reshape(*x.shape[:2], heads, size) for y in found)

    return jax.lax.platform_dependent(
        x, weight, bias, cuda=three_products, cpu=three_products, default=one_product
    )


def _qkv_forward(x, weight, bias, sent):
    return query_key_value(x, weight, bias, sent), (x, weight)


def _qkv_backward(sent, residuals, gradients):
    x, weight = residuals

    def one(x, weight, *gradients):
        return _backward(QKV, sent, (x, weight), jnp.stack(gradients, axis=2))

    def three(x, weight, *gradients, dtype=None):
        d, _, heads, size = weight.shape
        found = [
            _backward(
                "bld,df->blf",
                sent,
                (x, weight[:, kind].reshape(d, -1)),
                gradient.reshape(*x.shape[:2], -1),
                dtype,
            )
            for kind, gradient in enumerate(gradients)
        ]
        of_x, of_weight, of_bias = zip(*found, strict=True)
        return (
            sum(of_x).astype(x.dtype),
            jnp.stack([one.reshape(d, heads, size) for one in of_weight], axis=1),
            jnp.stack([one.reshape(heads, size) for one in of_bias]),
        )

    # what a CPU's products give is float32 until it is cast: it is added as that
    return jax.lax.platform_dependent(
        x, weight, *gradients, cuda=three, cpu=partial(three, dtype=FLOAT32), default=one
    )


query_key_value.defvjp(_qkv_forward, _qkv_backward)
