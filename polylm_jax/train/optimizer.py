"""AdamW with linear warm-up and cosine decay, from optax's parts."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

import jax.numpy as jnp
import optax

from polylm_jax.errors import UserError
from polylm_jax.ranges import HUGE, TINY, OneOf, Range, Share, check

MOMENTS = ("float32", "bfloat16")
LARGEST_NARROW_BETA = 0.98

Steps = Annotated[int, Range(1)]
Tokens = Annotated[float, Range(0, 1e18, also=(0, "steps count"))]
Rate = Annotated[float, Range(0, HUGE)]
Beta = Annotated[float, Range(0, 0.999999)]  # float32 would round what is closer to 1


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer of the paper (section 3.3, Table 3); eps is from the release's scripts.

    peak_learning_rate: reached after warmup_steps, from start_learning_rate, linearly.
    final_share: the cosine ends at this share of the peak, decay_steps from the run's start.
    warmup_tokens, decay_tokens: the same two in tokens of the run, whatever the batch; 0: in steps.
    clip: largest global norm of a gradient; 0 clips nothing.
    moments: dtype in which the moments are kept, "float32" or "bfloat16".
    spike_sigmas: a step whose loss or gradient norm lies more than this many standard deviations
        above its running mean is skipped; 0 turns the rule off. 6 and a window of 128 are what
        Levanter and MaxText offer.
    spike_window: accepted steps that the running mean and deviation remember; as many must have
        been seen before the rule acts.
    spike_most: skipped spikes in a row after which the next one is taken for the new level and
        followed; some accepted steps between them only add to their number (see spikes.judge).
    spike_patience: skipped steps in a row, spiking or not finite, after which the run stops. If
        it is not above spike_most, a new level stops the run too.
    """

    peak_learning_rate: Annotated[float, Range(TINY, HUGE)] = 1e-4
    start_learning_rate: Rate = 1e-7
    final_share: Share = 0.1
    warmup_steps: Annotated[int, Range(0)] = 2000
    decay_steps: Steps = 608_000
    warmup_tokens: Tokens = 0.0
    decay_tokens: Tokens = 0.0
    beta1: Beta = 0.9
    beta2: Beta = 0.95
    eps: Annotated[float, Range(TINY, HUGE)] = 1e-8
    weight_decay: Rate = 0.1
    clip: Annotated[float, Range(TINY, HUGE, also=(0, "no clipping"))] = 1.0
    moments: Annotated[str, OneOf(*MOMENTS)] = "float32"
    spike_sigmas: Annotated[float, Range(TINY, HUGE, also=(0, "no such rule"))] = 6.0
    spike_window: Steps = 128
    spike_most: Steps = 8
    spike_patience: Steps = 10

    def __post_init__(self) -> None:
        check(self, "optimizer")
        in_tokens = self.warmup_tokens > 0, self.decay_tokens > 0
        if all(in_tokens) and self.warmup_tokens >= self.decay_tokens:
            raise UserError(
                f"optimizer.warmup_tokens = {self.warmup_tokens:,.0f} is not below "
                f"optimizer.decay_tokens = {self.decay_tokens:,.0f}; shorten the warm-up."
            )
        # one in steps and one in tokens are compared when the tokens of a step are known
        if not any(in_tokens) and self.warmup_steps >= self.decay_steps:
            raise UserError(
                f"optimizer.warmup_steps = {self.warmup_steps} is not below "
                f"optimizer.decay_steps = {self.decay_steps}; shorten the warm-up."
            )
        if self.moments == "bfloat16" and max(self.beta1, self.beta2) > LARGEST_NARROW_BETA:
            raise UserError(
                f'optimizer.moments = "bfloat16" loses the updates of optimizer.beta1 or beta2 '
                f"above {LARGEST_NARROW_BETA}; lower it, or keep the moments in float32."
            )


def ahead_of(settings: OptimizerSettings, step: int, row: int, batch: int) -> float:
    """How many steps of this batch more the run's rows are than it has made steps.

    0 but for a run that went on with another batch and has the learning rate's points in tokens.
    """
    in_tokens = settings.warmup_tokens or settings.decay_tokens
    # rounded, so that each start of the run finds the same number
    return round(row / batch - step, 6) if in_tokens else 0.0


def in_steps(
    settings: OptimizerSettings, tokens_a_step: int, ahead: float = 0.0
) -> OptimizerSettings:
    """The same settings with the learning rate's points in steps, the first that reach them.

    ahead: of the steps, see ahead_of; a point that was given in steps comes that much later.
    """
    warmup, decay = (n + round(ahead) for n in (settings.warmup_steps, settings.decay_steps))
    if settings.warmup_tokens:
        warmup = math.ceil(settings.warmup_tokens / tokens_a_step)
    if settings.decay_tokens:
        decay = math.ceil(settings.decay_tokens / tokens_a_step)
    if ahead:  # what lies behind keeps its order
        decay = max(decay, 1)
        warmup = min(max(warmup, 0), decay - 1)
    return replace(
        settings, warmup_steps=warmup, decay_steps=decay, warmup_tokens=0.0, decay_tokens=0.0
    )


def learning_rate(settings: OptimizerSettings, ahead: float = 0.0) -> optax.Schedule:
    """Function of the step: linear warm-up, then cosine to final_share, then constant.

    settings: in steps, see in_steps. ahead: see ahead_of.
    """
    rate = optax.warmup_cosine_decay_schedule(
        init_value=settings.start_learning_rate,
        peak_value=settings.peak_learning_rate,
        warmup_steps=settings.warmup_steps,
        decay_steps=settings.decay_steps,
        end_value=settings.peak_learning_rate * settings.final_share,
    )
    return (lambda step: rate(step + ahead)) if ahead else rate


def keep_moments(
    adam: optax.GradientTransformation, dtype: jnp.dtype
) -> optax.GradientTransformation:
    """Adam computed in float32, with both moments kept in dtype between the steps.

    Rounding to nearest is enough at the paper's betas: a step moves the second moment by
    1 - beta2 = 5% of its distance from the squared gradient, and bfloat16 (8 bits) loses only
    moves below 2^-9 = 0.2% of its value. Stochastic rounding would be needed from about 0.99 on;
    those betas are refused instead.
    """

    def cast(state: optax.ScaleByAdamState, dtype: jnp.dtype) -> optax.ScaleByAdamState:
        mu, nu = optax.tree.cast((state.mu, state.nu), dtype)
        return state._replace(mu=mu, nu=nu)

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = adam.update(gradient, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(adam.init(params), dtype), update)


def make_optimizer(
    settings: OptimizerSettings, decays: Any, ahead: float = 0.0
) -> optax.GradientTransformation:
    """The gradient transformation. decays: tree of booleans, True where weight decay applies.

    ahead: as of learning_rate.
    """
    return optax.chain(
        optax.clip_by_global_norm(settings.clip) if settings.clip else optax.identity(),
        keep_moments(
            optax.scale_by_adam(settings.beta1, settings.beta2, settings.eps),
            jnp.dtype(settings.moments),
        ),
        optax.add_decayed_weights(settings.weight_decay, mask=decays),
        optax.scale_by_learning_rate(learning_rate(settings, ahead)),
    )
