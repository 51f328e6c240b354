"""How the next token is chosen: settings, the repetition penalty, the draw."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from polylm_jax.errors import UserError
from polylm_jax.ranges import TINY, OneOf, Range, Seed, check

ENDS = ("yes", "no", "never")
NO_TOKEN = -1

NewTokens = Annotated[int, Range(1)]
# wide enough for any use, and scores divided by these stay far from what float32 cannot hold
Temperature = Annotated[float, Range(1e-9, 1e9, also=(0, "the best token"))]
Penalty = Annotated[float, Range(1e-3, 1e3)]
TopP = Annotated[float, Range(TINY, 1)]


def _some_text(text: str, name: str) -> str:
    if not text:
        raise UserError(f"{name} is empty; give at least one character.")
    return text


StopText = Annotated[str, _some_text]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are greedy.

    new_tokens: most that are added; generation ends earlier at </s> (id 2).
    temperature: 0 takes the best token; the release's demo samples at 0.7 with top_p 0.8.
    top_k, top_p: keep the k best, or the fewest best whose probabilities reach p; 0 and 1: all.
    repetition_penalty: divides positive scores of tokens seen before, multiplies negative ones
        (Keskar et al. 2019); 1 does nothing.
    seed: with the prompt's own ids, decides the draw, whatever else is in the batch.
    stop: texts before any of which an answer ends.
    beams: texts that a beam search follows; 1 is no search. The rules are Hugging Face's.
    length_penalty: a beam's score is its log-probability / new tokens ** length_penalty.
    early_stopping: a search ends "yes", once as many texts as beams have ended; "no", once no
        running text would overtake them if it ended now; "never", unless it could at no length.
    """

    block: ClassVar[str] = "sampling"

    new_tokens: NewTokens = 64
    temperature: Temperature = 0.0
    top_k: Annotated[int, Range(1, also=(0, "all"))] = 0
    top_p: TopP = 1.0
    repetition_penalty: Penalty = 1.0
    seed: Seed = 0
    stop: tuple[StopText, ...] = ()
    beams: Annotated[int, Range(1, 1024)] = 1
    length_penalty: Annotated[float, Range(-10, 10)] = 1.0
    early_stopping: Annotated[str, OneOf(*ENDS)] = "no"

    def __post_init__(self) -> None:
        check(self, self.block)
        if self.beams > 1 and self.stop:
            raise UserError(
                f"{self.block}.stop = {self.stop}; it must be () where "
                f"{self.block}.beams = {self.beams} are searched."
            )
        if self.beams > 1 and self.temperature:
            raise UserError(
                f"{self.block}.temperature = {self.temperature}; it must be 0 where "
                f"{self.block}.beams = {self.beams} are searched."
            )


def penalise(scores: jax.Array, seen: jax.Array | None, penalty: float | jax.Array) -> jax.Array:
    """Scores with the repetition penalty, float32 [..., vocabulary].

    seen: boolean of the same shape, tokens of the text so far; None where the penalty is 1.
    penalty: one for all, or an array that broadcasts to the scores.
    """
    if seen is None:
        return scores
    return jnp.where(seen, jnp.where(scores > 0, scores / penalty, scores * penalty), scores)


def choosable(scores: jax.Array, ids: int | None) -> jax.Array:
    """Scores [..., vocabulary] with minus infinity for the ids that the tokenizer has not.

    ids: how many it has, None for all. What is chosen is masked, never what is normalised: a
    log-probability is that of the whole vocabulary, as in Hugging Face's `suppress_tokens`.
    """
    if ids is None or ids >= scores.shape[-1]:
        return scores
    return jnp.where(jnp.arange(scores.shape[-1]) < ids, scores, -jnp.inf)


def are_numbers(scores: jax.Array) -> jax.Array:
    """Whether one can choose by the scores: boolean [...], False where one is NaN or infinite."""
    return jnp.isfinite(scores.max(-1))  # the greatest is NaN where any is


NOT_FINITE = (
    "the model's scores are not finite, so there is no next token; take a checkpoint from before "
    "its parameters went wrong, or try --gin.compute.dtype=float32."
)


def check_chosen(tokens: np.ndarray) -> None:
    """UserError if a search found no token, which it says with NO_TOKEN."""
    if (tokens == NO_TOKEN).any():
        raise UserError(NOT_FINITE)


def best(scores: jax.Array) -> jax.Array:
    """The first index of the greatest, int32 [batch]; a CPU takes argmax an entry at a time."""
    places = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    greatest = scores == scores.max(-1, keepdims=True)
    return jnp.where(greatest, places, scores.shape[-1]).min(-1)


@jax.named_scope("choice")
def choose(
    scores: jax.Array, seen: jax.Array | None, keys: jax.Array, drawn: jax.Array, sampling: Sampling
) -> jax.Array:
    """The next token of each row, int32 [batch]; NO_TOKEN where the scores are no numbers.

    scores: float32 [batch, vocabulary]; seen: see `penalise`; keys: a random key per row;
    drawn: int32 [batch], tokens drawn before, which with the key decides the draw. The order
    (penalty, temperature, top-k, top-p) is Hugging Face's.
    """
    numbers = are_numbers(scores)
    scores = penalise(scores, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return jnp.where(numbers, best(scores), NO_TOKEN)
    scores = scores / sampling.temperature
    if sampling.top_k:
        least = jax.lax.top_k(scores, min(sampling.top_k, scores.shape[-1]))[0][:, -1:]
        scores = jnp.where(scores < least, -jnp.inf, scores)
    if sampling.top_p < 1:
        ordered = jnp.sort(scores, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = probabilities.cumsum(-1) - probabilities
        least = jnp.where(before < sampling.top_p, ordered, jnp.inf).min(-1, keepdims=True)
        scores = jnp.where(scores < least, -jnp.inf, scores)
    keys = jax.vmap(jax.random.fold_in)(keys, drawn)
    tokens = jax.vmap(jax.random.categorical)(keys, scores)
    return jnp.where(numbers, tokens, NO_TOKEN).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Wishes:
    """How the next token of each row is chosen, where every row has settings of its own.

    Arrays [batch]. temperature, top_k, top_p, repetition, presence, frequency: float32, but for
    top_k int32; the first four as in `Sampling`, the last are taken off the scores of tokens that
    were said, once or as often as they were. seed, draw: uint32, which decide the draw as the seed
    and `prefill.draw_of` do in a batch of one setting.
    """

    temperature: Any
    top_k: Any
    top_p: Any
    repetition: Any
    presence: Any
    frequency: Any
    seed: Any
    draw: Any


# What a text holds of a token, int32: 1 if the prompt does, and SAID for each time in the answer.
HEARD, SAID = 1, 2


@jax.named_scope("choice")
def choose_each(scores: jax.Array, held: jax.Array, wishes: Wishes, drawn: jax.Array) -> jax.Array:
    """As `choose`, by each row's own wishes; what no row wishes is not computed.

    scores: float32 [batch, vocabulary]; held: int32 of the same shape, of HEARD and SAID; drawn:
    int32 [batch]. Whatever other rows wish, a row's token is the same.
    """

    def penalised(scores: jax.Array) -> jax.Array:
        said = (held // SAID).astype(jnp.float32)
        scores = penalise(scores, held > 0, wishes.repetition[:, None])
        scores = scores - jnp.where(said > 0, wishes.presence[:, None], 0)
        return scores - wishes.frequency[:, None] * said

    def sampled(scores: jax.Array) -> jax.Array:
        scores = scores / jnp.where(warm, wishes.temperature, 1)[:, None]
        cut = (warm & ((wishes.top_k > 0) | (wishes.top_p < 1))).any()
        scores = jax.lax.cond(cut, lambda x: _most_likely(x, wishes), lambda x: x, scores)
        keys = jax.vmap(_key)(wishes.seed, wishes.draw, drawn)
        tokens = jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)
        return jnp.where(warm, tokens, greedy)

    numbers, warm = are_numbers(scores), wishes.temperature > 0
    apply = (wishes.repetition != 1) | (wishes.presence != 0) | (wishes.frequency != 0)
    scores = jax.lax.cond(apply.any(), penalised, lambda x: x, scores)
    greedy = best(scores)
    tokens = jax.lax.cond(warm.any(), sampled, lambda _: greedy, scores)
    return jnp.where(numbers, tokens, NO_TOKEN)


def _most_likely(scores: jax.Array, wishes: Wishes) -> jax.Array:
    """Minus infinity for what each row's top_k and top_p leave out."""
    most = scores.shape[-1]
    ordered = jnp.sort(scores, axis=-1, descending=True)
    count = jnp.where(wishes.top_k > 0, jnp.minimum(wishes.top_k, most), most)
    least = jnp.take_along_axis(ordered, count[:, None] - 1, axis=-1)
    ordered, scores = (jnp.where(x < least, -jnp.inf, x) for x in (ordered, scores))
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = probabilities.cumsum(-1) - probabilities
    top_p = wishes.top_p[:, None]
    least = jnp.where(before < top_p, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where((top_p < 1) & (scores < least), -jnp.inf, scores)


def _key(seed: jax.Array, draw: jax.Array, drawn: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), draw), drawn)
