"""Tasks that are scored by likelihood: items to trees, trees to sums, sums to figures."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.errors import UserError
from polylm_jax.evaluation.items import Item, Measure
from polylm_jax.evaluation.packing import Batch, Tree, batch, plan, tree, windows
from polylm_jax.evaluation.results import Store
from polylm_jax.evaluation.score import encode_pairs, score_rows
from polylm_jax.evaluation.settings import Evaluation
from polylm_jax.evaluation.tasks import Asked
from polylm_jax.model.decoder import Decoder


@dataclass(frozen=True)
class Subject:
    """The model that is asked. params: the tree of training. ways: in which its mesh splits a
    batch."""

    decoder: Decoder
    params: Any
    tokenizer: Tokenizer
    ways: int


@dataclass(frozen=True)
class Result:
    """What came of a task in a language.

    measures: the headline first. samples: a line for each item, as lm-eval writes them.
    truncated: items that are longer than the model's context. left_out: the same where that is
    asked, and items with a choice of no tokens.
    favourite: the choice that was taken most often, and its share; None if nothing is chosen.
    """

    asked: Asked
    measures: tuple[Measure, ...]
    samples: list[dict[str, Any]]
    truncated: int = 0
    left_out: int = 0
    favourite: tuple[int, float] | None = None


@dataclass(frozen=True)
class Work:
    """A task that is ready to run. positions: tokens to compute, those in store not counted.
    run: function (done) that tells `done` how many positions more are computed."""

    items: int
    positions: int
    run: Callable[[Callable[[int], None]], list[Result]]


@dataclass(frozen=True)
class _Encoded:
    """An item as trees: for each, its number and the choice that each of its texts is of."""

    item: Item
    trees: tuple[tuple[int, tuple[int, ...]], ...]
    tokens: tuple[int, ...]
    long: bool


def prepare(subject: Subject, asked: Sequence[Asked], settings: Evaluation, kept: Store) -> Work:
    """A task of kind "choice" or "text" in some languages."""
    trees: list[Tree] = []
    numbers: dict[str, int] = {}
    encoded = [
        list(_encoded(subject, one.items, settings.too_long, kept, trees, numbers)) for one in asked
    ]
    keys = list(numbers)
    # of all trees, whatever is in store: so each comes in the same batch again and has the same
    # sums, bit by bit
    sizes = [one.size for one in trees]
    todo = [
        one
        for one in plan(sizes, settings.row_length, settings.rows, subject.ways)
        if any(keys[number] not in kept for row in one.trees for number in row)
    ]

    def run(done: Callable[[int], None]) -> list[Result]:
        _score(subject, (batch(trees, one) for one in todo), trees, keys, kept, done)
        measure = _texts if asked[0].task.kind == "text" else _choices
        return [measure(one, items, keys, kept) for one, items in zip(asked, encoded, strict=True)]

    positions = sum(one.rows * one.width for one in todo)
    return Work(sum(len(one.items) for one in asked), positions, run)


def _encoded(
    subject: Subject,
    items: Sequence[Item],
    too_long: str,
    kept: Store,
    trees: list[Tree],
    numbers: dict[str, int],
) -> Iterator[_Encoded]:
    """Items as trees, each put once into `trees`, and its key into `numbers`; an item with a
    choice of no tokens has none, nor has one that is too long and to be left out."""
    texts = [(c.context, c.continuation) for item in items for c in item.choices]
    pairs = iter(encode_pairs(subject.tokenizer, texts))
    context = subject.decoder.size.context
    for item in items:
        mine = [next(pairs) for _ in item.choices]
        tokens = tuple(len(tail) for _, tail in mine)
        long = any(len(head) + len(tail) - 1 > context for head, tail in mine)
        if not all(tokens) or (long and too_long == "leave_out"):
            yield _Encoded(item, (), tokens, long)
            continue
        parts = [windows(*pair, context) for pair in mine]
        if all(len(some) == 1 for some in parts):
            groups = [([pair for [pair] in parts], tuple(range(len(parts))))]
        else:
            groups = [([pair], (choice,)) for choice, some in enumerate(parts) for pair in some]
        found = []
        for group, choices in groups:
            one = tree(group)
            key = kept.key(
                "choices", one.tokens, one.branches, one.sources, one.targets, *one.texts
            )
            if key not in numbers:
                numbers[key] = len(trees)
                trees.append(one)
            found.append((numbers[key], choices))
        yield _Encoded(item, tuple(found), tokens, long)


def _score(
    subject: Subject,
    batches: Iterator[Batch],
    trees: Sequence[Tree],
    keys: Sequence[str],
    kept: Store,
    done: Callable[[int], None],
) -> None:
    def keep(one: Batch, found: tuple[jax.Array, jax.Array]) -> None:
        chances, best = map(np.asarray, found)
        if not np.isfinite(chances[: one.count]).all():
            raise UserError(
                "the model's scores are not finite, so nothing can be said of it; take a "
                "checkpoint from before its parameters went wrong, or try "
                "--gin.evaluation.dtype=float32."
            )
        kept.add(
            {
                keys[number]: [
                    [chances[first + text].sum(dtype=np.float64), bool(best[first + text].all())]
                    for text in trees[number].texts
                ]
                for number, first in one.trees
            }
        )
        done(one.tokens.size)

    # one batch is computed while the one before it is kept
    before: tuple[Batch, tuple[jax.Array, jax.Array]] | None = None
    for one in batches:
        found = score_rows(subject.decoder, subject.params, one)
        if before:
            keep(*before)
        before = one, found
    if before:
        keep(*before)


def _answer(one: _Encoded, keys: Sequence[str], kept: Store) -> tuple[np.ndarray, list[bool]]:
    """Of each choice, the sum of ln p and whether all its tokens are the model's best guess."""
    sums, greedy = np.zeros(len(one.tokens)), [True] * len(one.tokens)
    for number, choices in one.trees:
        for choice, (log_likelihood, best) in zip(choices, kept[keys[number]], strict=True):
            sums[choice] += log_likelihood
            greedy[choice] &= best
    return sums, greedy


def _sample(one: _Encoded, sums: np.ndarray, greedy: list[bool]) -> dict[str, Any]:
    scored = [[float(value), best] for value, best in zip(sums, greedy, strict=True)]
    return {
        "doc_id": one.item.number,
        "doc": one.item.document,
        "target": one.item.gold,
        "arguments": {
            f"gen_args_{i}": {"arg_0": choice.context, "arg_1": choice.continuation}
            for i, choice in enumerate(one.item.choices)
        },
        "resps": [[pair] for pair in scored],
        "filtered_resps": scored,
        "filter": "none",
        "truncated": one.long,
    }


# What the sum of ln p is divided by, under lm-eval's names where it has one; its acc_norm divides
# by characters.
DIVISORS: dict[str, Callable[[_Encoded], list[int]]] = {
    "acc": lambda one: [1] * len(one.tokens),
    "acc_norm": lambda one: [len(_said(c.continuation)) for c in one.item.choices],
    "acc_bytes": lambda one: [len(_said(c.continuation).encode()) for c in one.item.choices],
    "acc_token": lambda one: list(one.tokens),
}


def _said(continuation: str) -> str:
    """A continuation without the space that joins it to its context; never nothing."""
    return continuation.removeprefix(" ") or continuation


def _choices(asked: Asked, items: list[_Encoded], keys: Sequence[str], kept: Store) -> Result:
    asked_of = [one for one in items if one.trees]
    right: dict[str, list[bool]] = {name: [] for name in DIVISORS}
    samples, taken = [], Counter[int]()
    for one in asked_of:
        sums, greedy = _answer(one, keys, kept)
        sample = _sample(one, sums, greedy)
        for name, divisors in DIVISORS.items():
            choice = int(np.argmax(sums / divisors(one)))
            right[name].append(choice == one.item.gold)
            sample[name] = float(right[name][-1])
            if name == "acc":
                taken[choice] += 1
        samples.append(sample | {"metrics": list(DIVISORS)})
    favourite = None
    if taken:
        choice, times = min(taken.items(), key=lambda pair: (-pair[1], pair[0]))
        favourite = choice, times / len(asked_of)
    return Result(
        asked,
        tuple(share(name, each) for name, each in right.items()),
        samples,
        sum(one.long for one in asked_of),
        len(items) - len(asked_of),
        favourite,
    )


def share(name: str, right: Sequence[bool]) -> Measure:
    """How many are right, with lm-eval's standard error, the root of p (1 - p) / (n - 1)."""
    each = np.array(right, float)
    return mean(name, each)


def mean(name: str, each: np.ndarray, note: str = "") -> Measure:
    """The mean of one value an item, and its standard error, NaN of fewer than two."""
    count = len(each)
    value = float(each.mean()) if count else math.nan
    error = float(each.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Measure(name, value, error, each, note)


def _texts(asked: Asked, items: list[_Encoded], keys: Sequence[str], kept: Store) -> Result:
    asked_of = [one for one in items if one.trees]
    answers = [_answer(one, keys, kept) for one in asked_of]
    bits = np.array([-sums[0] for sums, _ in answers]) / math.log(2)
    size = np.array([len(one.item.choices[0].continuation.encode()) for one in asked_of], float)
    value = bits.sum() / size.sum() if asked_of else math.nan
    # a ratio of sums, made straight at its value: its mean is the value, its scatter the error
    each = value + (bits - value * size) / size.mean() if asked_of else bits
    samples = [
        _sample(one, *answer)
        | {
            "metrics": ["bits_per_byte"],
            "bits": float(b),
            "bytes": int(n),
            "bits_per_byte": float(e),
        }
        for one, answer, b, n, e in zip(asked_of, answers, bits, size, each, strict=True)
    ]
    long = sum(one.long for one in asked_of)
    measures = (mean("bits_per_byte", each),)
    return Result(asked, measures, samples, long, len(items) - len(asked_of))
