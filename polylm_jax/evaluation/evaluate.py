"""A benchmark from its settings to its results: read, plan, ask, measure, average."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

import numpy as np

from polylm_jax.console import LiveLine, format_duration
from polylm_jax.errors import UserError
from polylm_jax.evaluation import choices, generated, paper
from polylm_jax.evaluation.results import Store
from polylm_jax.evaluation.score import Subject
from polylm_jax.evaluation.settings import Evaluation
from polylm_jax.evaluation.tasks import Asked
from polylm_jax.evaluation.work import Result, Work, agreed
from polylm_jax.parallel import together

# What makes tasks of each kind ready: (subject, tasks in languages, settings, store). Those of one
# function are asked together, so that few shapes are compiled and rows are full.
Prepare = Callable[[Subject, Sequence[Asked], Evaluation, Store], Work]
KINDS: dict[str, Prepare] = {
    "choice": choices.prepare,
    "text": choices.prepare,
    "generated": generated.prepare,
}
DRAWS = 2000  # of the bootstrap
AT_ONCE = 2**22  # values that are drawn at once: 64 MB, however many items a task has
FEW = 9  # n p (1 - p) below which the normal distribution is no good, a rule of thumb


@dataclass(frozen=True)
class Average:
    """Over some languages of a task. error: of a bootstrap over items, which are drawn for all
    languages together where these are translations of one another."""

    name: str
    languages: tuple[str, ...]
    value: float
    error: float


@dataclass(frozen=True)
class Report:
    """A task in all its languages. missing: those that could not be asked."""

    results: list[Result]
    missing: list[Asked]
    averages: list[Average]


def evaluate(
    subject: Subject,
    settings: Evaluation,
    kept: Store,
    say: Callable[[str], None] = print,
    corpus: str = "",
) -> dict[str, Report]:
    """Asks everything that the settings name; task -> what came of it. A file that is missing
    is said and listed, and nothing else depends on it; UserError if all are.

    corpus: see `settings.asked`. Of several processes only the first has reports.
    """
    every = settings.asked(corpus)
    there = [one for some in every.values() for one in some if not one.missing]
    # one that lacks the files of a kind would wait for another answer than the others
    agreed("tables", [], [f"{one.task.name} {one.language} " for one in there])
    groups: dict[Prepare, list[Asked]] = {}
    for one in there:
        groups.setdefault(KINDS[one.task.kind], []).append(one)
    works = [prepare(subject, some, settings, kept) for prepare, some in groups.items()]
    positions = sum(work.positions for work in works)
    say(
        f"{len({one.task.name for one in there})} tasks in {len(there)} tables, "
        f"{sum(work.items for work in works):,} items, protocol {settings.protocol}; "
        f"{positions:,} tokens to compute, {subject.decoder.compute.dtype}."
    )
    for line in missing(every):
        say(line)
    if not works:
        raise nothing_there(settings)
    first = together.process() == 0
    done = partial(_show, LiveLine(seconds=10), time.monotonic(), positions, [0])
    for work in works:
        work.ask(done if first else lambda more: None)
    if not first:
        return {}
    found: dict[str, list[Result]] = {name: [] for name in every}
    for work in works:
        for result in work.results():
            found[result.asked.task.name].append(result)
    return {
        name: Report(
            found[name],
            [one for one in some if one.missing],
            averages(name, found[name], settings.seed),
        )
        for name, some in every.items()
    }


def missing(every: dict[str, list[Asked]]) -> list[str]:
    """A line for each task that has no files in some languages."""
    absent = {name: [one for one in some if one.missing] for name, some in every.items()}
    return [
        f"missing: {name} {' '.join(one.language for one in some)}: {some[0].missing}"
        for name, some in absent.items()
        if some
    ]


def nothing_there(settings: Evaluation) -> UserError:
    return UserError(
        f"there is no file of any of these tasks in {settings.folder}; docs/evaluation.md tells "
        "what goes there."
    )


def _show(line: LiveLine, started: float, of: int, before: list[int], more: int) -> None:
    before[0] += more
    seconds = time.monotonic() - started
    left = seconds / before[0] * (of - before[0])
    line.show(
        f"{before[0] / of:.0%} of {of:,} tokens, {before[0] / seconds:,.0f} a second, "
        f"ETA {format_duration(left)}",
        last=before[0] >= of,
    )


def averages(task: str, results: Sequence[Result], seed: int) -> list[Average]:
    """Over the paper's groups of languages, as far as all of a group are there, and over all."""
    by_code = {one.asked.language: one for one in results if len(one.samples)}
    groups = {
        name: codes for name, codes in paper.groups(task).items() if set(codes) <= set(by_code)
    }
    if len(by_code) > 1 and tuple(by_code) not in groups.values():
        groups["here"] = tuple(by_code)
    return [
        average(name, codes, [by_code[code] for code in codes], seed)
        for name, codes in groups.items()
    ]


def average(name: str, codes: tuple[str, ...], results: list[Result], seed: int) -> Average:
    """Over these languages' results, of one task."""
    first = [one.measures[0] for one in results]
    value = float(np.mean([one.value for one in first]))
    values = [one.each for one in first if one.each is not None]
    if len(values) < len(first):
        error = math.sqrt(sum(one.error**2 for one in first)) / len(first)
        return Average(name, codes, value, error)
    draw = np.random.default_rng(seed)
    if not results[0].asked.task.translated:
        means = [_means(each, draw) for each in values]
        return Average(name, codes, value, float(np.mean(means, axis=0).std(ddof=1)))
    numbers = [[sample["doc_id"] for sample in one.samples] for one in results]
    places = {number: at for at, number in enumerate(sorted(set().union(*numbers)))}
    table = np.zeros((2, len(results), len(places)))  # value or 0, and whether there is one
    for at, (mine, each) in enumerate(zip(numbers, values, strict=True)):
        columns = [places[number] for number in mine]
        table[0, at, columns], table[1, at, columns] = each, 1
    sums = np.array(
        [
            table @ np.bincount(draw.integers(0, len(places), len(places)), minlength=len(places))
            for _ in range(DRAWS)
        ]
    )
    drawn = (sums[:, 0] / np.maximum(sums[:, 1], 1)).mean(axis=1)
    return Average(name, codes, value, float(drawn.std(ddof=1)))


def _means(each: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The means of DRAWS draws of as many values as there are."""
    step = max(1, AT_ONCE // max(1, len(each)))
    sizes = [(min(step, DRAWS - first), len(each)) for first in range(0, DRAWS, step)]
    return np.concatenate([each[draw.integers(0, len(each), size)].mean(axis=1) for size in sizes])


def above_chance(result: Result) -> bool | None:
    """Whether a score differs from guessing (two-sided, 95%); None where nothing is guessed.

    By the normal distribution, of few items by the binomial one.
    """
    chance, count = result.asked.task.chance, len(result.samples)
    if chance is None or not count:
        return None
    value, spread = result.measures[0].value, chance * (1 - chance)
    if count * spread >= FEW:
        return abs(value - chance) > 1.96 * math.sqrt(spread / count)
    shares = [
        math.comb(count, right) * chance**right * (1 - chance) ** (count - right)
        for right in range(count + 1)
    ]
    right = round(value * count)
    return 2 * min(sum(shares[: right + 1]), sum(shares[right:])) < 0.05


def fingerprint(result: Result) -> str:
    """sha256 of what was asked and of the right answers: figures compare where it is the same."""
    asked = [(one["arguments"], one["target"]) for one in result.samples]
    return sha256(repr(asked).encode()).hexdigest()
