"""One training step and one evaluation step, compiled for a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from polylm_jax.data.rows import FIRST, LEARNED
from polylm_jax.model.decoder import COMPUTE_DTYPES, WHOLE_TABLE, Compute, Decoder, look_up
from polylm_jax.model.lora import Lora, adapter_axes, initial_adapters
from polylm_jax.model.loss import cross_entropy, loss_and_gradients
from polylm_jax.model.parameters import Init, decay_mask, shapes
from polylm_jax.model.table import add_looked_up, no_sums, summed
from polylm_jax.parallel.sharding import (
    adapter_shardings,
    attender,
    batch_sharding,
    constrainer,
    for_device,
    like_parameters,
    loss_axes,
    parameter_shardings,
    replicated,
)
from polylm_jax.sizes import Size
from polylm_jax.train.optimizer import OptimizerSettings, learning_rate, make_optimizer
from polylm_jax.train.spikes import highest_level, judge, nothing_seen

State = dict[str, Any]
Batch = dict[str, jax.Array]
WHOLE = Lora()  # all parameters are trained


def make_state(
    size: Size, init: Init, optimizer: OptimizerSettings, lora: Lora = WHOLE
) -> Callable[..., State]:
    """Function (key) -> a fresh state: step, skipped steps, params, moments, usual, spikes.

    params: what is trained: all parameters, or the adapters alone, NAME_a and NAME_b.
    """
    decoder = Decoder(size, initial=init)
    transformation = make_optimizer(optimizer, decays(size, lora))

    def fresh(key: jax.Array) -> State:
        if lora.rank:
            params = initial_adapters(key, size, lora)
        else:
            params = decoder.init(key, jnp.zeros((1, 1), jnp.int32))["params"]
        usual, spikes = nothing_seen()
        return {
            "step": jnp.zeros((), jnp.int32),
            "skipped": jnp.zeros((), jnp.int32),
            "skipped_in_a_row": jnp.zeros((), jnp.int32),
            "params": params,
            "optimizer": transformation.init(params),
            "usual": usual,
            "spikes": spikes,
        }

    return fresh


def decays(size: Size, lora: Lora) -> dict[str, Any]:
    """Tree of booleans like what is trained: whether weight decay applies."""
    return dict.fromkeys(adapter_axes(size, lora), True) if lora.rank else decay_mask(size)


def trained_shardings(size: Size, lora: Lora, mesh: Mesh) -> dict[str, Any]:
    """Tree of NamedSharding of what is trained."""
    return adapter_shardings(size, lora, mesh) if lora.rank else parameter_shardings(size, mesh)


def abstract_state(
    size: Size, init: Init, optimizer: OptimizerSettings, mesh: Mesh, lora: Lora = WHOLE
) -> State:
    """The state as ShapeDtypeStructs with the mesh's shardings; costs no memory."""
    # the key is made while tracing: a mesh of devices that are not here can run nothing
    state = jax.eval_shape(lambda: make_state(size, init, optimizer, lora)(jax.random.key(0)))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        like_parameters(state, trained_shardings(size, lora, mesh), mesh),
    )


def abstract_base(size: Size, compute: Compute, mesh: Mesh, lora: Lora) -> tuple[Any, ...]:
    """What a step takes after its batch: the frozen parameters' ShapeDtypeStructs, or nothing."""
    if not lora.rank:
        return ()
    dtype = COMPUTE_DTYPES[compute.dtype]
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)  # noqa: E731
    return (jax.tree.map(place, shapes(size), parameter_shardings(size, mesh)),)


def variables_of(trained: Any, lora: Lora, *base: Any) -> dict[str, Any]:
    """What the decoder is applied to: parameters, and adapters beside frozen ones if there are."""
    return {"params": base[0], "lora": {"layers": trained}} if lora.rank else {"params": trained}


def sharded_decoder(size: Size, compute: Compute, mesh: Mesh, lora: Lora = WHOLE) -> Decoder:
    """The decoder of a mesh: activations pinned, attention by the platform's kernel."""
    return Decoder(
        size,
        compute,
        constrain=constrainer(mesh, compute.shard_length),
        attend=attender(compute, mesh),
        adapter_scale=lora.scale,
    )


def make_gradients(
    size: Size, compute: Compute, mesh: Mesh, microbatches: int, lora: Lora = WHOLE
) -> Callable[..., tuple[Any, jax.Array]]:
    """Function (params, batch, *base) -> (gradient of the summed loss, each row's summed loss).

    The gradient is like params, float32; the losses are float32 [batch].
    Where the batch has marks, only tokens that are LEARNED count, and examples are apart.
    """
    whole_shardings = trained_shardings(size, lora, mesh)
    shardings, at_once = _others(whole_shardings), compute.table_sum == "step"
    of_part, axes = _make_part(size, compute, mesh, lora), loss_axes(mesh)

    def gradients(params: Any, batch: Batch, *base: Any) -> tuple[Any, jax.Array]:
        embedding = (base[0] if lora.rank else params)["embedding"]
        sums, others = None, _others(params)
        if not lora.rank and at_once:
            sums = no_sums(embedding, axes)
        elif not lora.rank:
            nothing = jnp.zeros_like(embedding)
            sums = jax.lax.with_sharding_constraint(nothing, whole_shardings["embedding"])
        if microbatches == 1:
            gradient, sums, losses = of_part(others, embedding, sums, batch, *base)
        else:

            def add(carry: tuple[Any, Any], part: Batch) -> tuple[Any, jax.Array]:
                total, sums = carry
                gradient, sums, losses = of_part(others, embedding, sums, part, *base)
                total = jax.tree.map(jnp.add, total, gradient)
                return (jax.lax.with_sharding_constraint(total, shardings), sums), losses

            # Row i goes to microbatch i mod n, so that every device keeps its own rows.
            parts = jax.tree.map(
                lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch
            )
            start = jax.tree.map(jnp.zeros_like, others)
            (gradient, sums), losses = jax.lax.scan(add, (start, sums), parts)
            losses = losses.swapaxes(0, 1).reshape(-1)
        if sums is not None and at_once:
            with jax.named_scope("embedding"):
                sums = summed(sums, axes, COMPUTE_DTYPES[compute.sum_dtype])
        return gradient if sums is None else gradient | {"embedding": sums}, losses

    return gradients


def _make_part(
    size: Size, compute: Compute, mesh: Mesh, lora: Lora
) -> Callable[..., tuple[Any, Any, jax.Array]]:
    """Function (params, embedding, sums, batch, *base) -> (gradient, sums, losses) of a microbatch.

    params: what is trained but the embedding. sums: the gradient of that so far, to which the
    microbatch's is added: each device's own, see model.table, or all devices' together where
    compute.table_sum is "use"; None where it is frozen.
    """
    compute = for_device(compute, size.layers, mesh.devices.flat[0].device_kind)
    decoder, axes = sharded_decoder(size, compute, mesh, lora), loss_axes(mesh)
    at_once, sent = compute.table_sum == "step", COMPUTE_DTYPES[compute.sum_dtype]

    def of_part(
        params: Any, embedding: jax.Array, sums: Any, batch: Batch, *base: Any
    ) -> tuple[Any, Any, jax.Array]:
        inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        # gathered by each microbatch: to keep it would cost memory in the backward pass
        table = embedding.astype(COMPUTE_DTYPES[compute.dtype])
        table = constrainer(mesh)(table, *WHOLE_TABLE)
        beside = {} if lora.rank else {"embedding": table}

        def run(params: Any, rows: jax.Array) -> jax.Array:
            variables = variables_of(params | beside, lora, *base)
            hidden: jax.Array
            hidden, _ = decoder.apply(variables, inputs, documents=_documents(batch), rows=rows)
            return hidden

        hidden, back = jax.vjp(run, params, look_up(table, inputs))
        own: Any = sums if sums is None or at_once else no_sums(embedding, axes)
        with jax.named_scope("loss"):
            losses, of_hidden, own = loss_and_gradients(
                *(hidden, table, targets, _weights(batch), own, compute.loss_block, axes),
                learned="marks" in batch,
            )
        gradient, of_rows = back(of_hidden)
        with jax.named_scope("embedding"):
            if sums is not None and at_once:
                sums = add_looked_up(own, inputs, of_rows, axes)
            elif sums is not None:
                looked_up = no_sums(embedding, axes)
                looked_up = add_looked_up(looked_up, inputs, of_rows, axes)
                sums += summed(own, axes, sent) + summed(looked_up, axes, sent)
        return gradient, sums, losses.sum(axis=-1)

    return of_part


def _documents(batch: Batch) -> jax.Array | None:
    """The number of each input token's text, int32 [batch, length]; None of whole rows."""
    if "marks" not in batch:
        return None
    return jnp.cumsum((batch["marks"][:, :-1] & FIRST) > 0, axis=1)


def _weights(batch: Batch) -> jax.Array:
    """1 for each target that is learned, else 0: float32 [batch, length]."""
    if "marks" in batch:
        return (batch["marks"][:, 1:] & LEARNED).astype(jnp.float32)
    return jnp.ones(batch["tokens"][:, 1:].shape, jnp.float32)


def make_update(
    size: Size,
    compute: Compute,
    optimizer: OptimizerSettings,
    mesh: Mesh,
    microbatches: int,
    sources: int,
    lora: Lora = WHOLE,
    ahead: float = 0.0,
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """The compiled training step (state, batch) -> (state, metrics); the state is donated.

    batch: tokens int32 [batch, length + 1], source int32 [batch] and perhaps marks uint8 [batch,
    length + 1], split over data x fsdp. With lora the step takes the frozen parameters, of the
    compute dtype, after the batch. ahead: as of learning_rate.
    Gradients are averaged over the learned tokens of the batch, whatever the number of
    microbatches. A step whose loss or gradient norm is not finite, as where nothing is learned,
    or spikes (see spikes.judge), leaves params, optimizer and what is usual as they were and
    counts as skipped.
    Metrics: loss, gradient_norm, learning_rate, float32; skipped, skipped_in_a_row, levels, int32;
    and per source loss_sum, token_count (of learned ones) and row_count, float32 [sources].
    """
    transformation = make_optimizer(optimizer, decays(size, lora), ahead)
    rate, highest = learning_rate(optimizer, ahead), highest_level(size.vocabulary)
    gradients = make_gradients(size, compute, mesh, microbatches, lora)

    def update(state: State, batch: Batch, *base: Any) -> tuple[State, dict[str, jax.Array]]:
        gradient, losses = gradients(state["params"], batch, *base)
        learned = _weights(batch).sum(axis=-1)
        tokens = learned.sum() if "marks" in batch else _weights(batch).size
        loss = losses.sum() / tokens
        with jax.named_scope("optimizer"):
            gradient = jax.tree.map(lambda g: g / tokens, gradient)
            norm = optax.tree.norm(gradient)
        seen = state["step"] - state["skipped"]
        values = jnp.stack([loss, norm])
        accepted, usual, spikes = judge(
            values, state["usual"], state["spikes"], seen, optimizer, highest
        )

        keep = lambda new, old: jnp.where(accepted, new, old)  # noqa: E731
        with jax.named_scope("optimizer"):
            updates, moments = transformation.update(gradient, state["optimizer"], state["params"])
            params = optax.apply_updates(state["params"], updates)
            params = jax.tree.map(keep, params, state["params"])
            moments = jax.tree.map(keep, moments, state["optimizer"])
        fresh = {
            "step": state["step"] + 1,
            "skipped": state["skipped"] + ~accepted,
            "skipped_in_a_row": jnp.where(accepted, 0, state["skipped_in_a_row"] + 1),
            "params": params,
            "optimizer": moments,
            "usual": usual,
            "spikes": spikes,
        }
        per_source = lambda x: jax.ops.segment_sum(x, batch["source"], sources)  # noqa: E731
        metrics = {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": rate(seen),
            "skipped": fresh["skipped"],
            "skipped_in_a_row": fresh["skipped_in_a_row"],
            "levels": spikes.levels,
            "loss_sum": per_source(losses),
            "token_count": per_source(learned),
            "row_count": per_source(jnp.ones_like(losses)),
        }
        return fresh, metrics

    abstract = abstract_state(size, Init(), optimizer, mesh, lora)
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(
        update,
        in_shardings=(state_shardings, batch_sharding(mesh), *_of_base(size, lora, mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )


def _others(tree: dict[str, Any]) -> dict[str, Any]:
    """All but the embedding."""
    return {name: leaf for name, leaf in tree.items() if name != "embedding"}


def _of_base(size: Size, lora: Lora, mesh: Mesh) -> tuple[Any, ...]:
    """Shardings of the frozen parameters, where there are any."""
    return (parameter_shardings(size, mesh),) if lora.rank else ()


def make_evaluate(
    size: Size, compute: Compute, mesh: Mesh, lora: Lora = WHOLE
) -> Callable[..., jax.Array]:
    """The compiled function (params, batch, *base) -> summed loss of each row [batch].

    batch: tokens and perhaps marks, as in make_update.
    """
    compute = for_device(compute, size.layers, mesh.devices.flat[0].device_kind)
    decoder = sharded_decoder(size, compute, mesh, lora)

    def evaluate(params: Any, batch: Batch, *base: Any) -> jax.Array:
        variables = variables_of(params, lora, *base)
        inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        hidden, _ = decoder.apply(variables, inputs, documents=_documents(batch))
        table, weights = variables["params"]["embedding"], _weights(batch)
        block, learned = compute.loss_block, "marks" in batch
        _, losses = cross_entropy(hidden, table, targets, weights, block, loss_axes(mesh), learned)
        return losses.sum(axis=-1)

    return jax.jit(
        evaluate,
        in_shardings=(
            trained_shardings(size, lora, mesh),
            batch_sharding(mesh),
            *_of_base(size, lora, mesh),
        ),
        out_shardings=replicated(mesh),
    )
