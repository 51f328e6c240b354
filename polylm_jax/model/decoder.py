"""The PolyLM decoder: GPT-2's shape in Flax, layers scanned, no mesh and no data in sight.

Pre-LayerNorm (eps 1e-5), learned absolute positions, tanh GELU, biases everywhere, tied
embedding, no dropout (paper, section 3.2; release script). The residual stream, norms and
the softmax are float32 whatever the compute dtype: that is what made the 13B run stable
(paper, section 3.3).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from polylm_jax.errors import UserError
from polylm_jax.model.attention import (
    Scope,
    Trees,
    attention,
    causal,
    documents_of,
    in_parts,
    since_first,
    since_stem,
    within,
)
from polylm_jax.model.lora import adapted
from polylm_jax.model.parameters import (
    Init,
    Parameter,
    initializer,
    layer_parameters,
    outer_parameters,
)
from polylm_jax.model.products import (
    FLOAT32,
    QKV,
    Int8,
    OutputsFirst,
    linear,
    one_product,
    query_key_value,
    weighed,
)
from polylm_jax.ranges import OneOf, Range, check
from polylm_jax.sizes import Size

LAYER_NORM_EPSILON = 1e-5
END_OF_DOCUMENT = 2
GELU_SCALE, GELU_CUBE = (2 / math.pi) ** 0.5, 0.044715

# Results that a layer names, in the order of the forward pass, and what each policy keeps of
# them for the backward pass; the rest is computed again. "none" keeps all that is needed.
PRODUCTS = ("qkv", "attention", "attention_out", "mlp_in")
REMAT_POLICIES: dict[str, tuple[str, ...] | None] = {
    "full": (),
    "attention_and_mlp": ("attention", "mlp_in"),
    "dots": PRODUCTS,
    "none": None,
}
ATTENTION = ("auto", "plain", "staircase", "cudnn", "splash")
# The table's logical axes where it is looked up: gathered over fsdp before, or the partitioner
# replicates the whole thing.
WHOLE_TABLE = ("vocabulary", None)
COMPUTE_DTYPES = {name: jnp.dtype(name) for name in ("bfloat16", "float32")}

Constrain = Callable[..., jax.Array]
Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array]
Slots = dict[str, jax.Array]
Cache = tuple[Slots, ...]

Dtype = Annotated[str, OneOf(*COMPUTE_DTYPES)]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tail:
    """Keys and values of the tokens that came since a cache was last written.

    slots: of each layer, as a cache with few slots. place: int32, the slot of the next token.
    more: what of the cache comes behind its first slots, in arrays of its own.
    A cache that is only read is not copied by a loop that adds tokens, whatever the compiler.
    """

    slots: Cache
    place: jax.Array
    more: tuple[Cache, ...] = ()


@dataclass(frozen=True)
class Compute:
    """How the decoder computes, without a say in what it computes.

    dtype: of matrix products, "bfloat16" or "float32".
    remat: what a layer keeps for the backward pass, a name in REMAT_POLICIES.
    attention: "plain", "staircase" (plain, but leaves out up to three eighths of the scores, all
        masked), "cudnn" (GPU, bfloat16 only), "splash" (TPU, lengths that are multiples of 128),
        or "auto", the kernel of the platform where it serves, else staircase.
    shard_length: split the residual stream between the layers along the length over mesh
        axis tensor, too (Megatron's sequence parallelism): less memory, the same traffic.
    unroll: layers in one turn of the loop over them: more of them compile longer. All
        save the copies into and out of the loop's arrays, 14% of a small step on a CPU. 0: by the
        device, see parallel.sharding.for_device.
    loss_block: tokens of one device whose logits are held at a time; 0: by the device, too.
    sum_dtype: in which devices add up their gradients of kernels and table; "bfloat16" sends half
        as much between them. What each adds up by itself, and the sum that is kept, are float32.
    table_sum: when devices add up their gradients of the table: "step", once, for which each holds
        its own of all microbatches, float32, through every backward pass; "use", after each of the
        table's two uses in each microbatch, which takes less memory and sends more.
    attend_across_documents: False resets attention at each document's end; the release does not.
    cache_dtype: of keys and values kept while decoding; as dtype if None, but float32 where a CPU
        serves.
    prefill_chunk: tokens of a prompt read at a time, a power of two.
    compile_cache: folder that keeps what was compiled for accelerators, "" for none.
    """

    dtype: Dtype = "bfloat16"
    remat: Annotated[str, OneOf(*REMAT_POLICIES)] = "full"
    attention: Annotated[str, OneOf(*ATTENTION)] = "auto"
    shard_length: bool = False
    unroll: Annotated[int, Range(1, also=(0, "by the device"))] = 0
    loss_block: Annotated[int, Range(1, also=(0, "by the device"))] = 0
    sum_dtype: Dtype = "float32"
    table_sum: Annotated[str, OneOf("step", "use")] = "step"
    attend_across_documents: bool = True
    cache_dtype: Dtype | None = None
    prefill_chunk: Annotated[int, Range(1)] = 128
    compile_cache: str = "~/.cache/polylm_jax/xla"

    def __post_init__(self) -> None:
        check(self, "compute")
        if self.attention == "cudnn" and self.dtype == "float32":
            raise UserError('compute.attention = "cudnn" needs compute.dtype = "bfloat16".')
        if self.prefill_chunk.bit_count() != 1:
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


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """GPT-2's GELU, 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))), computed in float32."""
    return _gelu(x)[0]


def _gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + _tanh(wide))).astype(x.dtype), x


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    tanh = _tanh(wide)
    inner = GELU_SCALE * (1 + 3 * GELU_CUBE * wide**2)
    slope = 0.5 * (1 + tanh) + 0.5 * wide * (1 - tanh**2) * inner
    return ((gradient * slope).astype(x.dtype),)


def _tanh(x: jax.Array) -> jax.Array:
    """tanh(√(2/π)·(x + 0.044715·x³)) of GELU, float32.

    A GPU's compiler holds tanh for dear and writes it to memory between two kernels; the same by
    one exponential it computes in both.
    """
    inner = lambda x: GELU_SCALE * (x + GELU_CUBE * x**3)  # noqa: E731
    return jax.lax.platform_dependent(
        x,
        cuda=lambda x: 2 / (1 + jnp.exp(-2 * inner(x))) - 1,
        default=lambda x: jnp.tanh(inner(x)),
    )


gelu.defvjp(_gelu, _gelu_backward)


def keeping(names: tuple[str, ...]) -> Callable[..., Any]:
    """The policy of jax.checkpoint that keeps the results of these names, see REMAT_POLICIES.

    The forward kernel of cuDNN's attention names nothing. What it gives, its result and the sums
    of its softmax, is what its backward kernel wants; else the forward kernel runs again.
    """
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(*names)
    if "attention" not in names:
        return policy

    def of_cudnn(primitive: Any, *_: Any, **__: Any) -> bool:
        return primitive.name.startswith("dot_product_attention_fwd")

    return policies.save_from_both_policies(policy, of_cudnn)


def declare(module: nn.Module, table: dict[str, Parameter], init: Init, layers: int) -> Any:
    """Declares a table's parameters in a module; returns function (name) -> float32 array.

    Or the weight of another kind that decoding has there.
    """

    def value_of(name: str, parameter: Parameter) -> Any:
        held: Any = module.get_variable("params", name)
        if isinstance(held, OutputsFirst):  # of another shape, which Flax would not take
            return held
        return module.param(name, initializer(parameter, init, layers), parameter.shape)

    return {name: value_of(name, parameter) for name, parameter in table.items()}.__getitem__


class Layer(nn.Module):
    """One decoder layer: x + attention(norm(x)), then x + mlp(norm(x)).

    fresh: the slots, if any, hold nothing yet: the tokens look at themselves alone.
    adapter_scale: of the adapters in the collection "lora", where there are any.
    """

    size: Size
    compute: Compute
    initial: Init
    constrain: Constrain
    attend: Attend
    fresh: bool
    adapter_scale: float

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        slots: Slots | None,
        scope: Scope,
        first: jax.Array,
        held: Sequence[Slots] = (),
    ) -> tuple[jax.Array, Slots | None]:
        """x: float32 [batch, length, d_model]. Returns the same and the slots with new ones.

        scope: what the attention function takes as its last argument. first: where in the slots
        the new ones begin, see `write`. held: other slots, which are looked at, too, first.
        """
        dtype, sent = (
            COMPUTE_DTYPES[name] for name in (self.compute.dtype, self.compute.sum_dtype)
        )
        value_of = declare(self, layer_parameters(self.size), self.initial, self.size.layers)

        def adapter(equation: str, x: jax.Array, name: str) -> jax.Array | None:
            if not self.has_variable("lora", f"{name}_a"):
                return None
            a: jax.Array = self.get_variable("lora", f"{name}_a")
            b: jax.Array = self.get_variable("lora", f"{name}_b")
            return adapted(equation, x, a, b, self.adapter_scale)

        def named(y: jax.Array, added: jax.Array | None, name: str) -> jax.Array:
            return checkpoint_name(y if added is None else (y + added).astype(y.dtype), name)

        def apply(equation: str, x: jax.Array, name: str) -> jax.Array:
            with jax.named_scope(name):
                y = linear(equation, x, value_of(name), value_of(f"{name}_bias"), sent)
                return named(y, adapter(equation, x, name), name)

        def norm(name: str) -> jax.Array:
            with jax.named_scope(name):
                y = layer_norm(x, value_of(f"{name}_scale"), value_of(f"{name}_bias"))
                y = y.astype(dtype)
            return self.constrain(y, "batch", None, None)

        normed = norm("attention_norm")
        with jax.named_scope("qkv"):
            # while decoding the number of kernels counts
            product = query_key_value if slots is None else one_product
            found = product(normed, value_of("qkv"), value_of("qkv_bias"), sent)
            added = adapter(QKV, normed, "qkv")
            parts = [None] * 3 if added is None else jnp.unstack(added, axis=2)
            query, key, value = (
                self.constrain(named(y, part, "qkv"), "batch", None, "heads", None)
                for y, part in zip(found, parts, strict=True)
            )
        if slots is not None:
            slots = {
                name: self.constrain(
                    write(slots[name], new.swapaxes(1, 2), first),
                    *("batch", "heads", None, None),
                )
                for name, new in (("key", key), ("value", value))
            }
        if slots is not None and not self.fresh:
            # in the wider dtype: to narrow the cache would copy all of it at every token
            wide = jnp.promote_types(dtype, slots["key"].dtype)
            key, value = (slots[name].swapaxes(1, 2).astype(wide) for name in ("key", "value"))
            query = query.astype(wide)
        with jax.named_scope("attention"):
            if slots is None or not held or not isinstance(scope, jax.Array):
                mixed = self.attend(query, key, value, scope).astype(dtype)
            else:
                apart = [(one["key"], one["value"]) for one in (*held, slots)]
                mixed = in_parts(query, apart, scope).astype(dtype)
        x = x + apply("blhe,hed->bld", mixed, "attention_out")
        x = self.constrain(x, "batch", "length", None)

        hidden = apply("bld,df->blf", norm("mlp_norm"), "mlp_in")
        hidden = self.constrain(hidden, "batch", None, "mlp")
        with jax.named_scope("gelu"):
            hidden = gelu(hidden)
        x = x + apply("blf,fd->bld", hidden, "mlp_out")
        return self.constrain(x, "batch", "length", None), slots


class Decoder(nn.Module):
    """Tokens to hidden states; `logits` turns those into scores with the tied embedding.

    constrain: function (x, *logical axes) -> x that pins an activation to the mesh.
    attend: a kernel for whole rows, function (query, key, value, scope) -> mixed; None, and
        a call with positions, takes the plain formula.
    ids: how many the tokenizer has; rows of the embedding beyond them only fill it up, and no
        search chooses one. None if all are the tokenizer's.
    adapter_scale: alpha / rank of the adapters, if any: {"params": …, "lora": {"layers": …}}.
    """

    size: Size
    compute: Compute = Compute()
    initial: Init = Init()
    constrain: Constrain = unconstrained
    attend: Attend | None = None
    ids: int | None = None
    adapter_scale: float = 0.0

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        cache: Cache | None = None,
        positions: jax.Array | None = None,
        documents: jax.Array | None = None,
        branches: jax.Array | None = None,
        tail: Tail | None = None,
        rows: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Runs the decoder.

        tokens: int32 [batch, length].
        cache: of each layer {"key", "value"}, [batch, heads, slots, head_size]; slot i belongs
            to position i, so rows of different lengths live in one cache. Together with it the
            parameters are those of `polylm_jax.decode.weights`.
        positions: int32 [batch, length], each row's in succession, of a cache's tokens; if not
            given, the texts begin here: 0, 1, 2, …, and nothing that the cache held is looked at,
            nor is it where the tokens fill all its slots.
        documents: int32 [batch, length], never falling along a row, without a cache: tokens of
            different numbers are different texts, which do not see each other and each begin at
            position 0. Raises ValueError where positions come without a cache, documents with
            one or branches without documents: attention would not follow them.
        branches: int32 [batch, length], together with documents, each of which is a tree: a stem
            of 0, then branches 1, 2, … that all go on from the stem and do not see each other.
        tail: the cache is only read, and tokens, one of each text, are written here. Of the cache
            a text sees what lies before its tail's first position.
        rows: what look_up gives for the tokens, where it is known already.
        Returns hidden states after the final norm, compute dtype [batch, length, d_model],
        and the cache, or the tail's slots, with the tokens' keys and values written.
        """
        dtype = COMPUTE_DTYPES[self.compute.dtype]
        value_of = declare(self, outer_parameters(self.size), self.initial, self.size.layers)
        if (positions is not None and cache is None) or (documents is not None and cache):
            raise ValueError("positions go with a cache, documents with whole rows")
        if branches is not None and documents is None:
            raise ValueError("branches are of documents")
        room = 0 if cache is None or tail is not None else cache[0]["key"].shape[2]
        fresh = positions is None or room == tokens.shape[1]
        attend = self.attend if fresh else None
        slots = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        if positions is None:
            positions = slots if documents is None else since_first(documents)
        scope: Scope = documents
        if documents is not None and branches is not None:
            scope, positions = Trees(documents, branches), since_stem(documents, branches)

        table, places = value_of("embedding"), value_of("positions")
        if cache is None:
            table, places = table.astype(dtype), places.astype(dtype)
        places = self.constrain(places, None, None)
        rows = look_up(self.constrain(table, *WHOLE_TABLE), tokens) if rows is None else rows
        with jax.named_scope("embedding"):
            x = rows + places[positions].astype(jnp.float32)
        x = self.constrain(x, "batch", "length", None)

        if documents is None and cache is None and not self.compute.attend_across_documents:
            scope = documents_of(tokens, END_OF_DOCUMENT)
        if tail is not None and cache is not None:
            length = tail.slots[0]["key"].shape[2]
            since = causal(jnp.broadcast_to(tail.place, positions.shape), length)
            width = sum(part[0]["key"].shape[2] for part in (cache, *tail.more))
            visible = causal(positions - tail.place - 1, width)
            scope = jnp.concatenate([visible, since], axis=-1)
        elif attend is None:
            visible = causal(slots, tokens.shape[1]) if fresh else causal(positions, room)
            scope = visible if scope is None else visible & within(scope)

        how = (self.constrain, attend or attention, fresh, self.adapter_scale)
        settings = (self.size, self.compute, self.initial, *how)
        if cache is None:
            layer, kept = Layer, REMAT_POLICIES[self.compute.remat]
            unroll = self.compute.unroll or 1
            if kept is not None:
                policy = keeping(kept)
                # in a loop of one turn the compiler would see both and keep the first
                layer = nn.remat(Layer, policy=policy, prevent_cse=unroll > 1)
            layers = nn.scan(
                layer,
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast, nn.broadcast),
                length=self.size.layers,
                unroll=unroll,
            )
            x, _ = layers(*settings, name="layers")(x, None, scope, positions)
        else:
            # not a scan: it would copy every layer's weights and cache at every token
            first, written = jnp.int32(0) if fresh else positions[:, 0].squeeze(), list[Any]()
            for number, held in enumerate(cache):
                one = Layer(*settings, name=f"layer_{number}")
                if tail is None:
                    x, new = one(x, held, scope, first)
                else:
                    parts = (held, *(more[number] for more in tail.more))
                    x, new = one(x, tail.slots[number], scope, tail.place, parts)
                written.append(new)
            cache = tuple(written)
        with jax.named_scope("final_norm"):
            x = layer_norm(x, value_of("final_norm_scale"), value_of("final_norm_bias"))
        return x.astype(dtype), cache


@jax.named_scope("embedding")
def look_up(table: jax.Array | Int8, tokens: jax.Array) -> jax.Array:
    """The table's rows of the tokens, float32 [batch, length, d_model].

    table: [vocabulary, d_model], split as WHOLE_TABLE; tokens: int32 [batch, length].
    """
    return table[tokens].astype(jnp.float32)


@jax.named_scope("logits")
def logits(hidden: jax.Array, embedding: jax.Array | Int8 | OutputsFirst) -> jax.Array:
    """Scores of the next token, float32 [..., vocabulary].

    hidden: [..., d_model]; embedding: [vocabulary, d_model].
    """
    return weighed("...d,vd->...v", hidden, embedding, FLOAT32)


def empty_cache(size: Size, batch: int, slots: int, dtype: str) -> Cache:
    """A key-value cache of zeros, of each layer [batch, heads, slots, head_size]."""
    shape = (batch, size.heads, slots, size.head_size)
    return tuple(
        {name: jnp.zeros(shape, COMPUTE_DTYPES[dtype]) for name in ("key", "value")}
        for _ in range(size.layers)
    )


@jax.named_scope("cache")
def write(slots: jax.Array, new: jax.Array, first: jax.Array) -> jax.Array:
    """Slots [batch, heads, slots, head_size] with new ones from each row's first [batch] on.

    first: one number where it is the same for all. Where the new ones fill all slots it is 0.
    """
    if new.shape[2] == slots.shape[2]:
        return new.astype(slots.dtype)
    if first.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), first, axis=2)
    put = partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
    return jax.vmap(put)(slots, new.astype(slots.dtype), first)
