"""Choices as trees, and trees packed into rows: what choices share is computed once.

An item's texts are one stem, the longest beginning that all have, and a branch for each. A row
holds whole trees; a token sees its own stem and branch. What is common is found on ids, so that
premises, passages and few-shot examples are shared wherever a benchmark has them. Pure numpy.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from polylm_jax.data.tokenizer import EOS

Ids = Sequence[int]
Pair = tuple[Ids, Ids]

WIDER = 4  # a tree that fits no row has one up to so many times as wide, or that many times again
# What a token costs beside its attention, in tokens that it looks at; of a small model less, but a
# CPU looks no farther than a tree.
REST = 16384
FEW = 2000  # trees, of which a row or a batch more or less is worth trying


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
    stem = min([stem, *(shared(wholes[0], whole) for whole in wholes[1:])])
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


def shared(one: Ids, other: Ids) -> int:
    """How many ids both begin with."""
    both = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in both if a != b), min(len(one), len(other)))


def trees_of(pairs: Sequence[Pair], context: int) -> list[tuple[Tree, tuple[int, ...]]]:
    """Trees of pairs that are asked together, and which pair each of a tree's texts is of.

    It is one tree, but where a pair is longer than the model's context: then each window of each
    pair is its own.
    """
    parts = [windows(*pair, context) for pair in pairs]
    if all(len(some) == 1 for some in parts):
        return [(tree([pair for [pair] in parts]), tuple(range(len(parts))))]
    return [(tree([pair]), (place,)) for place, some in enumerate(parts) for pair in some]


def alike(pairs: Sequence[Pair], most: int) -> list[list[int]]:
    """The pairs' numbers, those together that have enough in common to be one tree.

    Pairs that follow one another by their ids are together where that takes fewer tokens than
    apart, and none has more in common with the next; a tree has `most` tokens at most.
    """
    wholes = [[*head, *tail] for head, tail in pairs]
    order = sorted(range(len(pairs)), key=lambda number: wholes[number])
    common = [shared(wholes[one], wholes[other]) for one, other in pairwise(order)]
    groups: list[list[int]] = []
    stem = tokens = 0  # of the last group: what all have in common, and all their tokens apart
    for at, number in enumerate(order):
        size = len(wholes[number]) - 1
        before, after = (common[i] if 0 <= i < len(common) else 0 for i in (at - 1, at))
        count = len(groups[-1]) if groups else 0
        both = min(stem, before, size)
        saves = count * both > (count - 1) * stem and before >= after
        if count and saves and tokens + size - count * both <= most:
            groups[-1].append(number)
            stem, tokens = both, tokens + size
        else:
            groups.append([number])
            stem = tokens = size
    return groups


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

    @property
    def positions(self) -> int:
        return self.rows * self.width


def plan(sizes: Sequence[int], width: int, rows: int, ways: int) -> list[Planned]:
    """Which trees go into which row of which batch.

    Trees of up to twice `width` are put into rows of one width, from a quarter to twice of it,
    whichever takes the least work, and so into batches of one shape; what fits none has wider
    ones. rows: of a batch, fewer the wider they are, but always a multiple of ways. The same sizes
    always have the same plan.
    """
    groups: dict[int, list[int]] = {}
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        most = 2 * width
        while most < sizes[number]:
            most *= WIDER
        groups.setdefault(most, []).append(number)
    return [
        one
        for most, numbers in groups.items()
        for one in _spread(numbers, sizes, most, rows * width, ways)
    ]


def _spread(
    numbers: Sequence[int], sizes: Sequence[int], most: int, tokens: int, ways: int
) -> list[Planned]:
    """Batches of one shape, of about so many tokens, with rows of `most` at most."""
    width, each, packed = min(
        _packings(numbers, sizes, most, tokens, ways),
        key=lambda found: -(-len(found[2]) // found[1]) * found[1] * found[0] * (found[0] + REST),
    )
    parts = (packed[first : first + each] for first in range(0, len(packed), each))
    return [Planned(part, width, each) for part in parts]


def _packings(
    numbers: Sequence[int], sizes: Sequence[int], most: int, tokens: int, ways: int
) -> Iterator[tuple[int, int, list[list[int]]]]:
    """Ways to pack trees, as (width of a row, rows of a batch, trees of all rows)."""
    step = -(-most // 8)
    least = -(-sizes[numbers[0]] // step) * step
    total = sum(sizes[number] for number in numbers)
    for width in range(least, most + 1, step):
        full = -(-max(1, tokens // width) // ways) * ways
        packed = _fitted(numbers, sizes, width)
        # as few batches as that takes, all equally full
        batches = -(-len(packed) // full)
        yield width, -(-len(packed) // (batches * ways)) * ways, packed
        if len(numbers) > FEW:
            continue
        more = -(-tokens // (width * ways)) * ways
        fewest = {each: -(-total // (each * width)) for each in (full, more)}
        for each, count in {(e, e * (n + m)) for e, n in fewest.items() for m in (0, 1)}:
            level, fullest = _levelled(numbers, sizes, count)
            if fullest <= most:
                yield -(-fullest // step) * step, each, level


def _fitted(numbers: Sequence[int], sizes: Sequence[int], width: int) -> list[list[int]]:
    """Rows of these trees, the largest first, each put where it leaves the least room."""
    packed: list[list[int]] = []
    room: list[list[int]] = [[] for _ in range(width + 1)]  # rows by the places left in them
    for number in numbers:
        size = sizes[number]
        left = next((left for left in range(size, width + 1) if room[left]), 0)
        if left:
            row = room[left].pop()
            packed[row].append(number)
        else:
            row, left = len(packed), width
            packed.append([number])
        room[left - size].append(row)
    return packed


def _levelled(
    numbers: Sequence[int], sizes: Sequence[int], count: int
) -> tuple[list[list[int]], int]:
    """So many rows of these trees, the largest first, each put into the row that has least; and
    what the fullest has."""
    packed: list[list[int]] = [[] for _ in range(count)]
    filled = [(0, row) for row in range(count)]
    for number in numbers:
        size, row = filled[0]
        packed[row].append(number)
        heapq.heapreplace(filled, (size + sizes[number], row))
    return packed, max(size for size, _ in filled)


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
