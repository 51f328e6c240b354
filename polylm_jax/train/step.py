"""One training step and one evaluation step, compiled for a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.model.loss import cross_entropy
from polylm_jax.model.parameters import Init, decay_mask
from polylm_jax.parallel.sharding import (
    LOSS_AXES,
    attender,
    batch_sharding,
    constrainer,
    like_parameters,
    parameter_shardings,
    replicated,
)
from polylm_jax.sizes import Size
from polylm_jax.train.optimizer import OptimizerSettings, learning_rate, make_optimizer
from polylm_jax.train.spikes import highest_level, judge, nothing_seen

State = dict[str, Any]
Batch = dict[str, jax.Array]


def make_state(size: Size, init: Init, optimizer: OptimizerSettings) -> Callable[..., State]:
    """Function (key) -> a fresh state: step, skipped steps, params, moments, usual, spikes."""
    decoder = Decoder(size, initial=init)
    transformation = make_optimizer(optimizer, decay_mask(size))

    def fresh(key: jax.Array) -> State:
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


def abstract_state(size: Size, init: Init, optimizer: OptimizerSettings, mesh: Mesh) -> State:
    """The state as ShapeDtypeStructs with the mesh's shardings; costs no memory."""
    # the key is made while tracing: a mesh of devices that are not here can run nothing
    shapes = jax.eval_shape(lambda: make_state(size, init, optimizer)(jax.random.key(0)))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        like_parameters(shapes, size, mesh),
    )


def sharded_decoder(size: Size, compute: Compute, mesh: Mesh) -> Decoder:
    """The decoder of a mesh: activations pinned, attention by the platform's kernel."""
    return Decoder(
        size,
        compute,
        constrain=constrainer(mesh, compute.shard_length),
        attend=attender(compute, mesh),
    )


def make_update(
    size: Size,
    compute: Compute,
    optimizer: OptimizerSettings,
    mesh: Mesh,
    microbatches: int,
    sources: int,
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """The compiled training step (state, batch) -> (state, metrics); the state is donated.

    batch: tokens int32 [batch, length + 1] and source int32 [batch], split over data x fsdp.
    Gradients are averaged over tokens, whatever the number of microbatches. A step whose loss
    or gradient norm is not finite, or spikes (see spikes.judge), leaves params, optimizer and
    what is usual as they were and counts as skipped.
    Metrics: loss, gradient_norm, learning_rate, float32; skipped, skipped_in_a_row, levels, int32;
    and per source loss_sum and row_count, float32 [sources].
    """
    decoder = sharded_decoder(size, compute, mesh)
    transformation = make_optimizer(optimizer, decay_mask(size))
    rate, highest = learning_rate(optimizer), highest_level(size.vocabulary)
    shardings = parameter_shardings(size, mesh)

    def loss_of(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        tokens = batch["tokens"]
        hidden, _ = decoder.apply({"params": params}, tokens[:, :-1])
        targets = tokens[:, 1:]
        weights = jnp.ones(targets.shape, jnp.float32)
        total, losses = cross_entropy(
            hidden, params["embedding"], targets, weights, compute.loss_block, LOSS_AXES
        )
        return total, losses.sum(axis=-1)

    gradient_of = jax.value_and_grad(loss_of, has_aux=True)

    def gradients(params: Any, batch: Batch) -> tuple[Any, jax.Array]:
        """Summed gradient and each row's summed loss, float32 [batch]."""
        if microbatches == 1:
            (_, losses), gradient = gradient_of(params, batch)
            return gradient, losses

        def add(total: Any, part: Batch) -> tuple[Any, jax.Array]:
            (_, losses), gradient = gradient_of(params, part)
            total = jax.tree.map(jnp.add, total, gradient)
            return jax.lax.with_sharding_constraint(total, shardings), losses

        # Row i goes to microbatch i mod n, so that every device keeps its own rows.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch
        )
        start = jax.tree.map(jnp.zeros_like, params)
        gradient, losses = jax.lax.scan(add, start, parts)
        return gradient, losses.swapaxes(0, 1).reshape(-1)

    def update(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        gradient, losses = gradients(state["params"], batch)
        tokens = batch["tokens"].shape[0] * (batch["tokens"].shape[1] - 1)
        gradient = jax.tree.map(lambda g: g / tokens, gradient)
        loss = losses.sum() / tokens
        norm = optax.tree.norm(gradient)
        seen = state["step"] - state["skipped"]
        values = jnp.stack([loss, norm])
        accepted, usual, spikes = judge(
            values, state["usual"], state["spikes"], seen, optimizer, highest
        )

        updates, moments = transformation.update(gradient, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        keep = lambda new, old: jnp.where(accepted, new, old)  # noqa: E731
        fresh = {
            "step": state["step"] + 1,
            "skipped": state["skipped"] + ~accepted,
            "skipped_in_a_row": jnp.where(accepted, 0, state["skipped_in_a_row"] + 1),
            "params": jax.tree.map(keep, params, state["params"]),
            "optimizer": jax.tree.map(keep, moments, state["optimizer"]),
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
            "row_count": per_source(jnp.ones_like(losses)),
        }
        return fresh, metrics

    abstract = abstract_state(size, Init(), optimizer, mesh)
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(
        update,
        in_shardings=(state_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )


def make_evaluate(size: Size, compute: Compute, mesh: Mesh) -> Callable[..., jax.Array]:
    """The compiled function (params, tokens [batch, length + 1]) -> summed loss per row [batch]."""
    decoder = sharded_decoder(size, compute, mesh)

    def evaluate(params: Any, tokens: jax.Array) -> jax.Array:
        hidden, _ = decoder.apply({"params": params}, tokens[:, :-1])
        weights = jnp.ones(tokens[:, 1:].shape, jnp.float32)
        _, losses = cross_entropy(
            hidden, params["embedding"], tokens[:, 1:], weights, compute.loss_block, LOSS_AXES
        )
        return losses.sum(axis=-1)

    return jax.jit(
        evaluate,
        in_shardings=(parameter_shardings(size, mesh), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
