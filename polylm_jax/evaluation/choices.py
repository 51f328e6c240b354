"""Tasks that are scored by likelihood: items to trees, trees to sums, sums to figures."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.evaluation.items import Item, Measure
from polylm_jax.evaluation.packing import Planned, Tree, plan, trees_of
from polylm_jax.evaluation.results import Store
from polylm_jax.evaluation.score import Subject, Sums, encode_pairs, score_trees
from polylm_jax.evaluation.settings import Evaluation
from polylm_jax.evaluation.tasks import Asked
from polylm_jax.evaluation.work import Result, Work, agreed
from polylm_jax.model.decoder import Decoder


@dataclass(frozen=True)
class Encoded:
    """An item as trees: for each, its number and the choice that each of its texts is of."""

    item: Item
    trees: tuple[tuple[int, tuple[int, ...]], ...]
    tokens: tuple[int, ...]
    long: bool


@dataclass(frozen=True)
class Plan:
    """Tasks of kind "choice" and "text" as trees in rows; it knows no parameters.

    items: of each of `asked`. keys: of each tree, its name in a store. planned: of all trees,
    whatever is in store: so each comes in the same batch again and has the same sums, bit by bit.
    """

    asked: Sequence[Asked]
    items: list[list[Encoded]]
    trees: list[Tree]
    keys: list[str]
    planned: list[Planned]


def make_plan(
    tokenizer: Tokenizer,
    context: int,
    asked: Sequence[Asked],
    settings: Evaluation,
    ways: int,
    key: Callable[..., str],
) -> Plan:
    """context: the model's. ways: see Subject. key: `Store.key`."""
    trees: list[Tree] = []
    numbers: dict[str, int] = {}
    items: list[list[Encoded]] = []
    for one in asked:
        texts = [(c.context, c.continuation) for item in one.items for c in item.choices]
        pairs = iter(encode_pairs(tokenizer, texts))
        items.append([])
        for item in one.items:
            mine = [next(pairs) for _ in item.choices]
            tokens = tuple(len(tail) for _, tail in mine)
            long = any(len(head) + len(tail) - 1 > context for head, tail in mine)
            found = []
            if all(tokens) and not (long and settings.too_long == "leave_out"):
                found = trees_of(mine, context)
            placed = []
            for each, texts_of in found:
                name = key(
                    "choices", each.tokens, each.branches, each.sources, each.targets, *each.texts
                )
                if name not in numbers:
                    numbers[name] = len(trees)
                    trees.append(each)
                placed.append((numbers[name], texts_of))
            items[-1].append(Encoded(item, tuple(placed), tokens, long))
    planned = plan([one.size for one in trees], settings.row_length, settings.rows, ways)
    return Plan(asked, items, trees, list(numbers), planned)


def left_of(made: Plan, kept: Store) -> list[int]:
    """The numbers of the batches that are not in store."""
    return [
        number
        for number, one in enumerate(made.planned)
        if any(made.keys[tree] not in kept for row in one.trees for tree in row)
    ]


def ask(
    decoder: Decoder,
    variables: dict[str, Any],
    made: Plan,
    batches: Sequence[int],
    kept: Store,
    done: Callable[[int], None] = lambda positions: None,
) -> None:
    """Computes some batches of a plan and keeps their answers; `done` is told their positions."""

    def keep(one: Planned, found: dict[int, Sums]) -> None:
        kept.add({made.keys[number]: texts for number, texts in found.items()})
        done(one.positions)

    score_trees(decoder, variables, made.trees, (made.planned[n] for n in batches), keep)


def results(made: Plan, kept: Store) -> list[Result]:
    """What came of each task in each language, in the order in which they were asked."""
    return [
        (_texts if asked.task.kind == "text" else _choices)(asked, items, made.keys, kept)
        for asked, items in zip(made.asked, made.items, strict=True)
    ]


def prepare(subject: Subject, asked: Sequence[Asked], settings: Evaluation, kept: Store) -> Work:
    """Tasks of kind "choice" or "text" in some languages."""
    context = subject.decoder.size.context
    made = make_plan(subject.tokenizer, context, asked, settings, subject.ways, kept.key)
    left = agreed("choices", left_of(made, kept), made.keys)
    return Work(
        sum(len(one.items) for one in asked),
        sum(made.planned[number].positions for number in left),
        lambda done: ask(subject.decoder, subject.variables, made, left, kept, done),
        lambda: results(made, kept),
    )


def _answer(one: Encoded, keys: Sequence[str], kept: Store) -> tuple[np.ndarray, list[bool]]:
    """Of each choice, the sum of ln p and whether all its tokens are the model's best guess."""
    sums, greedy = np.zeros(len(one.tokens)), [True] * len(one.tokens)
    for number, choices in one.trees:
        for choice, (log_likelihood, best) in zip(choices, kept[keys[number]], strict=True):
            sums[choice] += log_likelihood
            greedy[choice] &= best
    return sums, greedy


def _sample(one: Encoded, sums: np.ndarray, greedy: list[bool]) -> dict[str, Any]:
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
DIVISORS: dict[str, Callable[[Encoded], list[int]]] = {
    "acc": lambda one: [1] * len(one.tokens),
    "acc_norm": lambda one: [len(_said(c.continuation)) for c in one.item.choices],
    "acc_bytes": lambda one: [len(_said(c.continuation).encode()) for c in one.item.choices],
    "acc_token": lambda one: list(one.tokens),
}


def _said(continuation: str) -> str:
    """A continuation without the space that joins it to its context; never nothing."""
    return continuation.removeprefix(" ") or continuation


def _choices(asked: Asked, items: list[Encoded], keys: Sequence[str], kept: Store) -> Result:
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


def _texts(asked: Asked, items: list[Encoded], keys: Sequence[str], kept: Store) -> Result:
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
