"""Sizes of the model, and what follows from them by arithmetic: parameters, FLOPs, MFU."""

from dataclasses import dataclass
from typing import Annotated

from polylm_jax.errors import UserError
from polylm_jax.ranges import Range, check

Count = Annotated[int, Range(1)]


@dataclass(frozen=True)
class Size:
    """Shape of one decoder (paper, Table 3; the release's config.json).

    vocabulary: rows of the tied embedding.
    context: learned positions, the longest input in tokens.
    layers, heads, d_model, d_ff: as usual; the head size is d_model / heads.
    """

    vocabulary: Count = 256_000
    context: Count = 2048
    layers: Count = 24
    heads: Count = 16
    d_model: Count = 2048
    d_ff: Count = 8192

    def __post_init__(self) -> None:
        check(self, "model")
        if self.d_model % self.heads:
            raise UserError(
                f"model.heads = {self.heads} does not divide model.d_model = {self.d_model}; "
                "choose a number of heads that does."
            )

    @property
    def head_size(self) -> int:
        return self.d_model // self.heads


def flops_by_part(size: Size, length: int) -> dict[str, float]:
    """FLOPs of one trained token, forward and backward, in each part of the decoder.

    6N + 12·layers·d_model·length (PaLM, appendix B), N being the parameters that are
    multiplied: all but the position table. Causal attention is not halved. Norms count with
    what they feed; a look-up multiplies nothing.
    """
    d, ff = size.d_model, size.d_ff
    return {
        "embedding": 0.0,
        "attention": size.layers * (6.0 * (4 * d**2 + 6 * d) + 12 * d * length),
        "mlp": size.layers * 6.0 * (2 * d * ff + ff + 3 * d),
        "head": 6.0 * (size.vocabulary * d + 2 * d),
    }


def flops_per_token(size: Size, length: int) -> float:
    """FLOPs of one trained token, forward and backward: the sum of flops_by_part."""
    return sum(flops_by_part(size, length).values())
