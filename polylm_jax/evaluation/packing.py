"""Choices as trees, and trees packed into rows: what choices share is computed once.

An item's texts are one stem, the longest beginning that all have, and a branch for each. A row
holds whole trees; a token sees its own stem and branch. What is common is found on ids, so that
premises, passages and few-shot examples are shared wherever a benchmark has them. Pure numpy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from polylm_jax.data.tokenizer import EOS

Ids = Sequence[int]
Pair = tuple[Ids, Ids]

WIDER = 4  # a tree that fits no row has one so many times as wide, or that many times again


@dataclass(frozen=True)
class Tree:
    """Texts behind one stem.

    All are int32. tokens, branches: [tokens]; branch 0 is the stem, i + 1 is text i's.
    sources, targets: [targets], the place whose hidden state says how likely a target is.
    texts: of each text its targets' numbers; what several have in common is one target for all.
    """

    tokens: np.ndarray
    branches: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    texts: tuple[np.ndarray, ...]

    @property
    def size(self) -> int:
        """What of a row it takes: a row has as many places for targets as for tokens."""
        return max(len(self.tokens), len(self.targets))


def tree(pairs: Sequence[Pair]) -> Tree:
    """The tree of an item's (context ids, continuation ids), no context and no other empty."""
    wholes = [[*head, *tail] for head, tail in pairs]
    stem = min(len(whole) - 1 for whole in wholes)
    for whole in wholes[1:]:
        both = zip(wholes[0][:stem], whole, strict=False)
        stem = next((at for at, (one, other) in enumerate(both) if one != other), stem)
    tokens, branches = wholes[0][:stem], [0] * stem
    numbers: dict[tuple[int, int], int] = {}
    texts = []
    for number, ((head, _), whole) in enumerate(zip(pairs, wholes, strict=True), 1):
        shift = len(tokens) - stem
        tokens += whole[stem:-1]
        branches += [number] * (len(whole) - 1 - stem)
        texts.append(
            [
                numbers.setdefault((at + (shift if at >= stem else 0), whole[at + 1]), len(numbers))
                for at in range(len(head) - 1, len(whole) - 1)
            ]
        )
    sources, targets = zip(*numbers, strict=True)
    return Tree(
        _int32(tokens),
        _int32(branches),
        _int32(sources),
        _int32(targets),
        tuple(map(_int32, texts)),
    )


def _int32(ids: Ids) -> np.ndarray:
    return np.array(ids, np.int32)


def windows(head: Ids, tail: Ids, context: int) -> list[Pair]:
    """A pair that is longer than the model's context, as lm-eval cuts it.

    A context too long loses its beginning. A continuation too long itself is read in windows, in
    which each of its tokens is scored once: the first after one token, the last with as many
    before it as fit.
    """
    if len(tail) <= context:
        return [([*head, *tail][-context - 1 : -len(tail)], tail)]
    whole, parts = [head[-1], *tail], list[Pair]()
    for first in range(1, len(whole), context):
        last = min(first + context, len(whole))
        begin = max(0, last - context - 1)
        parts.append((whole[begin:first], whole[first:last]))
    return parts


@dataclass(frozen=True)
class Batch:
    """Rows that are computed at once.

    tokens, documents, branches: int32 [rows, width], as the decoder takes them; what fills a row
    up are documents of one token. sources: int32 [rows · width], places in the flattened rows;
    targets: int32 of the same shape; the first `count` are real.
    trees: which trees are in it, and the number of each one's first target.
    """

    tokens: np.ndarray
    documents: np.ndarray
    branches: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    count: int
    trees: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Planned:
    """A batch that is not yet made: the trees of each row, and the shape of its arrays, which may
    have more rows."""

    trees: list[list[int]]
    width: int
    rows: int


def plan(sizes: Sequence[int], width: int, rows: int, ways: int) -> list[Planned]:
    """Which trees go into which row of which batch, the largest first.

    Rows are as wide as `width` or a little wider, whichever leaves the least room; what fits none
    has much wider ones. rows: of a batch, fewer the wider they are, but always a multiple of ways.
    The same sizes always have the same plan.
    """

    def positions(planned: list[Planned]) -> int:
        return sum(one.rows * one.width for one in planned)

    bases = (width, width * 3 // 2, width * 2)
    return min((_planned(sizes, base, rows * width, ways) for base in bases), key=positions)


def _planned(sizes: Sequence[int], width: int, tokens: int, ways: int) -> list[Planned]:
    groups: dict[int, list[int]] = {}
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        wide = width
        while wide < sizes[number]:
            wide *= WIDER
        groups.setdefault(wide, []).append(number)
    found = []
    for wide, numbers in groups.items():
        packed, some = _fitted(numbers, sizes, wide), -(-max(1, tokens // wide) // ways) * ways
        parts = (packed[first : first + some] for first in range(0, len(packed), some))
        found += [Planned(part, wide, some) for part in parts]
    return found


def _fitted(numbers: Sequence[int], sizes: Sequence[int], width: int) -> list[list[int]]:
    """Rows of these trees, the largest first, each put where it leaves the least room."""
    packed: list[list[int]] = []
    room: list[list[int]] = [[] for _ in range(width + 1)]  # rows by the places left in them
    for number in numbers:
        size = sizes[number]
        left = next((left for left in range(size, width + 1) if room[left]), 0)
        if left:
            row = room[left].pop(0)
            packed[row].append(number)
        else:
            row, left = len(packed), width
            packed.append([number])
        room[left - size].append(row)
    return packed


def batch(trees: Sequence[Tree], planned: Planned) -> Batch:
    """The arrays of a planned batch."""
    count, width = planned.rows, planned.width
    tokens = np.full((count, width), EOS, np.int32)
    documents = np.tile(np.arange(width, dtype=np.int32), (count, 1))
    branches = np.zeros((count, width), np.int32)
    sources, targets = np.zeros((2, count * width), np.int32)
    placed, filled = [], 0
    for row, numbers in enumerate(planned.trees):
        at = 0
        for number in numbers:
            one = trees[number]
            end = at + len(one.tokens)
            tokens[row, at:end] = one.tokens
            documents[row, at:end] = at
            branches[row, at:end] = one.branches
            placed.append((number, filled))
            more = slice(filled, filled + len(one.targets))
            sources[more] = row * width + at + one.sources
            targets[more] = one.targets
            at, filled = end, more.stop
    return Batch(tokens, documents, branches, sources, targets, filled, tuple(placed))


def batches(trees: Sequence[Tree], width: int, rows: int, ways: int) -> Iterator[Batch]:
    """All trees in rows, batch by batch."""
    for planned in plan([one.size for one in trees], width, rows, ways):
        yield batch(trees, planned)
