"""Matrix products of activations and weights: narrow operands, sums in float32."""

from functools import partial

import jax
import jax.numpy as jnp

FLOAT32 = jnp.dtype(jnp.float32)


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


def _over_tokens(x: jax.Array) -> jax.Array:
    """Sum over the first two axes in float32; a CPU does it fastest as a product with ones."""

    def by_product(x: jax.Array) -> jax.Array:
        flat = x.reshape(-1, x[0, 0].size)
        total = dot("bt,tf->bf", jnp.ones((1, len(flat)), x.dtype), flat, FLOAT32)
        return total.reshape(x.shape[2:])

    return jax.lax.platform_dependent(x, cpu=by_product, default=lambda x: x.sum((0, 1), FLOAT32))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear(equation: str, x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """einsum(equation, x, weight) + bias in the dtype of x, to which the weight is cast.

    x: [batch, length, …] in the compute dtype. weight, bias: float32.
    The gradient of x is in its dtype; those of weight and bias are float32, never rounded to less.
    """
    return dot(equation, x, weight.astype(x.dtype), x.dtype) + bias.astype(x.dtype)


def _forward(
    equation: str, x: jax.Array, weight: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return linear(equation, x, weight, bias), (x, weight)


def _backward(
    equation: str, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, weight = residuals
    operands, result = equation.split("->")
    left, right = operands.split(",")
    gradient = gradient.astype(x.dtype)
    # Tokens are summed over, so a CPU transposes the first operand: let that be the smaller.
    sides = [(left, x), (result, gradient)]
    (one, a), (two, b) = sorted(sides, key=lambda side: side[1].size)
    return (
        dot(f"{result},{right}->{left}", gradient, weight.astype(x.dtype), x.dtype),
        dot(f"{one},{two}->{right}", a, b, FLOAT32),
        _over_tokens(gradient),
    )


linear.defvjp(_forward, _backward)
