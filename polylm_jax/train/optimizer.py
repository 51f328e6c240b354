"""AdamW with linear warm-up and cosine decay, from optax's parts."""

from dataclasses import dataclass
from typing import Any

import optax

from polylm_jax.errors import UserError


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer of the paper (section 3.3, Table 3); eps is from the release's scripts.

    peak_learning_rate: reached after warmup_steps, from start_learning_rate, linearly.
    final_share: the cosine ends at this share of the peak, decay_steps from the run's start.
    clip: largest global norm of a gradient.
    """

    peak_learning_rate: float = 1e-4
    start_learning_rate: float = 1e-7
    final_share: float = 0.1
    warmup_steps: int = 2000
    decay_steps: int = 608_000
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.warmup_steps >= self.decay_steps:
            raise UserError(
                f"optimizer.warmup_steps = {self.warmup_steps} is not below "
                f"optimizer.decay_steps = {self.decay_steps}; shorten the warm-up."
            )


def learning_rate(settings: OptimizerSettings) -> optax.Schedule:
    """Function of the step: linear warm-up, then cosine to final_share, then constant."""
    return optax.warmup_cosine_decay_schedule(
        init_value=settings.start_learning_rate,
        peak_value=settings.peak_learning_rate,
        warmup_steps=settings.warmup_steps,
        decay_steps=settings.decay_steps,
        end_value=settings.peak_learning_rate * settings.final_share,
    )


def make_optimizer(settings: OptimizerSettings, decays: Any) -> optax.GradientTransformation:
    """The gradient transformation. decays: tree of booleans, True where weight decay applies."""
    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.scale_by_adam(settings.beta1, settings.beta2, settings.eps),
        optax.add_decayed_weights(settings.weight_decay, mask=decays),
        optax.scale_by_learning_rate(learning_rate(settings)),
    )
