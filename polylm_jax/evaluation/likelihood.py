"""Log-likelihoods of pairs of any length: to trees in rows, as the items of a benchmark are."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from polylm_jax.evaluation.packing import Pair, Planned, Tree, alike, plan, trees_of
from polylm_jax.evaluation.score import Subject, Sums, score_trees


@dataclass(frozen=True)
class Score:
    """Of one continuation: sum of ln p over its tokens, their number, and whether each was the
    model's best guess."""

    log_likelihood: float
    tokens: int
    greedy: bool


def likelihoods(
    subject: Subject,
    pairs: Sequence[Pair],
    length: int,
    rows: int,
    done: Callable[[dict[int, Score]], None] = lambda scores: None,
    known: Collection[int] = (),
) -> dict[int, Score]:
    """The score of each (context ids, continuation ids) by its place; of no continuation 0.

    What is longer than the model's context is cut as `packing.windows` has it; no context is
    empty. length, rows: of a batch, as in `packing.plan`. done: told each batch's scores.
    known: places of pairs that are not asked; they are part of the plan all the same, which does
    not depend on how far an earlier process came, nor do the scores then, bit by bit.
    """
    scores = {place: Score(0.0, 0, True) for place, (_, tail) in enumerate(pairs) if not tail}
    full = [place for place in range(len(pairs)) if place not in scores]
    trees: list[Tree] = []
    places: list[list[int]] = []  # of each tree, the pairs that its texts are of
    for group in alike([pairs[place] for place in full], length):
        asked = [full[number] for number in group]
        for one, texts in trees_of([pairs[place] for place in asked], subject.decoder.size.context):
            trees.append(one)
            places.append([asked[text] for text in texts])
    left = Counter(place for some in places for place in some)
    sums = dict.fromkeys(full, (0.0, True))

    def keep(_: Planned, found: dict[int, Sums]) -> None:
        new = {}
        for number, texts in found.items():
            for place, (more, best) in zip(places[number], texts, strict=True):
                before, greedy = sums[place]
                sums[place] = before + more, greedy and best
                left[place] -= 1
                if not left[place] and place not in known:
                    new[place] = Score(sums[place][0], len(pairs[place][1]), sums[place][1])
        scores.update(new)
        done(new)

    def asked_in(one: Planned) -> bool:
        return any(
            place not in known for row in one.trees for tree in row for place in places[tree]
        )

    planned = plan([tree.size for tree in trees], length, rows, subject.ways)
    score_trees(subject.decoder, subject.variables, trees, filter(asked_in, planned), keep)
    return scores
