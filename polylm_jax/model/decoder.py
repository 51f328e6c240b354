"""The PolyLM decoder: GPT-2's shape in Flax, layers scanned, no mesh and no data in sight.

Pre-LayerNorm (eps 1e-5), learned absolute positions, tanh GELU, biases everywhere, tied
embedding, no dropout (paper, section 3.2; release script). The residual stream, norms and
the softmax are float32 whatever the compute dtype: that is what made the 13B run stable
(paper, section 3.3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from polylm_jax.errors import UserError
from polylm_jax.model.attention import attention, causal, same_document
from polylm_jax.model.parameters import (
    Init,
    Parameter,
    initializer,
    layer_parameters,
    outer_parameters,
)
from polylm_jax.sizes import Size

LAYER_NORM_EPSILON = 1e-5
END_OF_DOCUMENT = 2

# What the backward pass may keep of a layer; the rest is computed again.
REMAT_POLICIES: dict[str, Callable[..., Any]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "none": jax.checkpoint_policies.everything_saveable,
}
COMPUTE_DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}

Constrain = Callable[..., jax.Array]
Cache = tuple[dict[str, jax.Array], ...]


@dataclass(frozen=True)
class Compute:
    """How the decoder computes, without a say in what it computes.

    dtype: of matrix products, "bfloat16" or "float32".
    remat: what a layer keeps for the backward pass, a name in REMAT_POLICIES.
    loss_block: tokens of one device whose logits are held at a time.
    attend_across_documents: False resets attention at each document's end; the release does not.
    cache_dtype: of keys and values kept while decoding; as dtype if None.
    prefill_chunk: tokens of a prompt read at a time, a power of two.
    """

    dtype: str = "bfloat16"
    remat: str = "full"
    loss_block: int = 1024
    attend_across_documents: bool = True
    cache_dtype: str | None = None
    prefill_chunk: int = 512

    def __post_init__(self) -> None:
        for name, value, known in (
            ("dtype", self.dtype, COMPUTE_DTYPES),
            ("remat", self.remat, REMAT_POLICIES),
            ("cache_dtype", self.cache_dtype or self.dtype, COMPUTE_DTYPES),
        ):
            if value not in known:
                raise UserError(f'compute.{name} is "{value}"; choose one of {", ".join(known)}.')
        if self.prefill_chunk < 1 or self.prefill_chunk.bit_count() != 1:
            raise UserError(
                f"compute.prefill_chunk = {self.prefill_chunk}; it must be a power of two."
            )


def unconstrained(x: jax.Array, *axes: str | None) -> jax.Array:
    """The constraint of a model that runs on one device: none."""
    return x


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """LayerNorm over the last axis of x, [..., d_model], in float32."""
    x = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x).mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON) * scale + bias


def declare(module: nn.Module, table: dict[str, Parameter], init: Init, layers: int) -> Any:
    """Declares a table's parameters in a module; returns function (name) -> float32 array."""
    values = {
        name: module.param(name, initializer(parameter, init, layers), parameter.shape)
        for name, parameter in table.items()
    }
    return values.__getitem__


class Layer(nn.Module):
    """One decoder layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    size: Size
    compute: Compute
    initial: Init
    constrain: Constrain

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        cache: dict[str, jax.Array] | None,
        visible: jax.Array,
        positions: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array] | None]:
        """x: float32 [batch, length, d_model]. Returns the same and the cache with new slots."""
        dtype = COMPUTE_DTYPES[self.compute.dtype]
        value_of = declare(self, layer_parameters(self.size), self.initial, self.size.layers)

        def weight(name: str) -> jax.Array:
            return value_of(name).astype(dtype)

        def norm(name: str) -> jax.Array:
            return layer_norm(x, value_of(f"{name}_scale"), value_of(f"{name}_bias")).astype(dtype)

        qkv = jnp.einsum("bld,dkhe->kblhe", norm("attention_norm"), weight("qkv"))
        qkv = qkv + weight("qkv_bias")[:, None, None]
        query, key, value = self.constrain(qkv, None, "batch", None, "heads", None)
        if cache is not None:
            cache = {
                name: self.constrain(
                    write(cache[name], new.swapaxes(1, 2), positions[:, 0]),
                    *("batch", "heads", None, None),
                )
                for name, new in (("key", key), ("value", value))
            }
            key, value = cache["key"].swapaxes(1, 2), cache["value"].swapaxes(1, 2)
        mixed = attention(query, key.astype(dtype), value.astype(dtype), visible)
        out = jnp.einsum("blhe,hed->bld", mixed, weight("attention_out"))
        x = x + (out + weight("attention_out_bias"))
        x = self.constrain(x, "batch", "length", None)

        hidden = jnp.einsum("bld,df->blf", norm("mlp_norm"), weight("mlp_in"))
        hidden = jax.nn.gelu(hidden + weight("mlp_in_bias"), approximate=True)
        hidden = self.constrain(hidden, "batch", None, "mlp")
        out = jnp.einsum("blf,fd->bld", hidden, weight("mlp_out"))
        x = x + (out + weight("mlp_out_bias"))
        return self.constrain(x, "batch", "length", None), cache


class Decoder(nn.Module):
    """Tokens to hidden states; `logits` turns those into scores with the tied embedding.

    constrain: function (x, *logical axes) -> x that pins an activation to the mesh.
    """

    size: Size
    compute: Compute = Compute()
    initial: Init = Init()
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        cache: Cache | None = None,
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Runs the decoder.

        tokens: int32 [batch, length].
        cache: of each layer {"key", "value"}, [batch, heads, slots, head_size]; slot i belongs
            to position i, so rows of different lengths live in one cache. Together with it the
            parameters are those of `polylm_jax.decode.weights`.
        positions: int32 [batch, length], each row's in succession; 0, 1, 2, … if not given.
        Returns hidden states after the final norm, compute dtype [batch, length, d_model],
        and the cache with the tokens' keys and values written.
        """
        dtype = COMPUTE_DTYPES[self.compute.dtype]
        value_of = declare(self, outer_parameters(self.size), self.initial, self.size.layers)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

        # Gathered over fsdp before the look-up, or the partitioner replicates the whole thing.
        table, places = value_of("embedding"), value_of("positions")
        if cache is None:
            table, places = table.astype(dtype), places.astype(dtype)
        table = self.constrain(table, "vocabulary", None)
        places = self.constrain(places, None, None)
        x = table[tokens].astype(jnp.float32) + places[positions].astype(jnp.float32)
        x = self.constrain(x, "batch", "length", None)

        slots = tokens.shape[1] if cache is None else cache[0]["key"].shape[2]
        visible = causal(positions, slots)
        if not self.compute.attend_across_documents and cache is None:
            visible = visible & same_document(tokens, END_OF_DOCUMENT)

        settings = (self.size, self.compute, self.initial, self.constrain)
        if cache is None:
            policy = REMAT_POLICIES[self.compute.remat]
            layers = nn.scan(
                nn.remat(Layer, policy=policy, prevent_cse=False, static_argnums=()),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast, nn.broadcast),
                length=self.size.layers,
            )
            x, _ = layers(*settings, name="layers")(x, None, visible, positions)
        else:
            # not a scan: it would copy every layer's weights and cache at every token
            written: Any = []
            for number, slot in enumerate(cache):
                x, new = Layer(*settings, name=f"layer_{number}")(x, slot, visible, positions)
                written.append(new)
            cache = tuple(written)
        x = layer_norm(x, value_of("final_norm_scale"), value_of("final_norm_bias"))
        return x.astype(dtype), cache


def logits(hidden: jax.Array, embedding: jax.Array) -> jax.Array:
    """Scores of the next token, float32 [..., vocabulary].

    hidden: [..., d_model]; embedding: [vocabulary, d_model].
    """
    return jnp.einsum(
        "...d,vd->...v", hidden, embedding.astype(hidden.dtype), preferred_element_type=jnp.float32
    )


def empty_cache(size: Size, batch: int, slots: int, dtype: str) -> Cache:
    """A key-value cache of zeros, of each layer [batch, heads, slots, head_size]."""
    shape = (batch, size.heads, slots, size.head_size)
    return tuple(
        {name: jnp.zeros(shape, COMPUTE_DTYPES[dtype]) for name in ("key", "value")}
        for _ in range(size.layers)
    )


def write(slots: jax.Array, new: jax.Array, first: jax.Array) -> jax.Array:
    """Slots [batch, heads, slots, head_size] with new ones from each row's first [batch] on."""
    put = partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
    return jax.vmap(put)(slots, new.astype(slots.dtype), first)
