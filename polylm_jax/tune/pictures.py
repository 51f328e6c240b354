"""Figures of self-instruct: what is kept of one language, and all languages beside the paper."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from polylm_jax.data.languages import name_of
from polylm_jax.runs import figures
from polylm_jax.runs.figures import BLUE, GRID, INK, MUTED, PALE, RED
from polylm_jax.tune.report import PAPER, Kept
from polylm_jax.tune.self_instruct import Story

RING = 12  # first words that have a part of the ring; the others share one
PARTS = ("instruction", "input", "output")


def of_language(story: Story, kept: Kept, similarity: float, path: Path) -> Path:
    """Four panels: likeness, lengths, kept by round and with input, first words.

    similarity: F from which an instruction is rejected.
    """
    panels = [
        partial(_nearest, kept=kept, similarity=similarity),
        partial(_lengths, kept=kept),
        partial(_by_round, story=story),
        partial(_rings, kept=kept),
    ]
    return figures.picture(path, (9.4, 7.6), panels, nrows=2, ncols=2)


def of_all(kept: dict[str, tuple[int, int]], path: Path) -> Path:
    """Tasks kept by language, with an input and without, and the paper's.

    kept: language -> tasks, and how many of them have an input.
    """
    panel = partial(_languages, kept=kept)
    return figures.picture(path, (8.3, 1.4 + 0.36 * len(kept)), [panel])


def _nearest(ax: Axes, kept: Kept, similarity: float) -> None:
    ax.hist(kept.nearest, bins=list(np.linspace(0, 1, 41)), color=BLUE)
    ax.axvline(similarity, color=RED, lw=1)
    ax.annotate(f"rejected\nfrom {similarity:g}", (similarity, 0.98), (5, 0), color=RED, va="top",
                xycoords=("data", "axes fraction"), textcoords="offset points",
                fontsize=8.5)  # fmt: skip
    ax.set(
        title="Likeness to the nearest instruction", xlabel="ROUGE-L", ylabel="tasks", xlim=(0, 1)
    )


def _lengths(ax: Axes, kept: Kept) -> None:
    longest = max(2, int(kept.words.max(initial=2)))
    edges = np.unique(np.geomspace(1, longest + 1, 30).round())
    for column, (part, colour) in enumerate(zip(PARTS, (BLUE, RED, MUTED), strict=True)):
        words = kept.words[kept.words[:, column] > 0, column]
        ax.hist(words, bins=list(edges), histtype="step", lw=1.6, color=colour)
        ax.annotate(part, (1, 1), (-6, -8 - 15 * column), xycoords="axes fraction", ha="right",
                    va="top", textcoords="offset points", color=colour)  # fmt: skip
    ax.set(title="Lengths", xlabel="words", ylabel="tasks", xscale="log")
    ax.xaxis.set_major_formatter(lambda words, _: f"{words:g}")


def _by_round(ax: Axes, story: Story) -> None:
    whole, given = Counter[int](), Counter[int]()
    for number, _, verdict in story.verdicts():
        if verdict.task:
            whole[number] += 1
            given[number] += verdict.task.input is not None
    rounds = range(1, len(story.rounds) + 1)
    ax.bar(rounds, [whole[number] for number in rounds], color=PALE, width=0.72)
    ax.bar(rounds, [given[number] for number in rounds], color=BLUE, width=0.72)
    share = given.total() / max(1, whole.total())
    ax.set(title=f"Kept by round, {share:.0%} with an input", xlabel="round", ylabel="tasks")
    ax.margins(y=0.22)
    for line, (word, colour) in enumerate((("without input", MUTED), ("with input", BLUE))):
        ax.annotate(word, (0, 1), (8, -8 - 15 * line), xycoords="axes fraction", va="top",
                    textcoords="offset points", color=colour)  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _rings(ax: Axes, kept: Kept) -> None:
    """First words inside, what follows them outside; a word that the font lacks is numbered."""
    firsts = Counter[str]()
    for (word, _), number in kept.beginnings:
        firsts[word] += number
    common = firsts.most_common(RING)
    rest = firsts.total() - sum(number for _, number in common)
    inner, outer, colours, outer_colours, labels = [], [], [], [], []
    shades = (BLUE, PALE)
    for place, (word, number) in enumerate(common):
        follow = [n for (first, _), n in kept.beginnings if first == word]
        inner.append(number)
        colours.append(shades[place % 2])
        named = word if _drawable(word) else str(place + 1)
        labels.append(named if number > 0.025 * firsts.total() else "")
        outer += follow
        outer_colours += [
            (shades[(place + 1) % 2], 0.35 + 0.45 * (i % 2)) for i in range(len(follow))
        ]
    if rest:
        inner, outer = [*inner, rest], [*outer, rest]
        colours, outer_colours = [*colours, GRID], [*outer_colours, (GRID, 0.6)]
        labels.append("others")
    edge = {"edgecolor": "white", "linewidth": 0.6}
    ax.pie(inner, radius=0.72, colors=colours, wedgeprops={"width": 0.3, **edge}, startangle=90,
           counterclock=False, labels=labels, labeldistance=1.5,
           textprops={"fontsize": 8.5, "color": INK})  # fmt: skip
    ax.pie(outer, radius=1.0, colors=outer_colours, wedgeprops={"width": 0.26, **edge},
           startangle=90, counterclock=False)  # fmt: skip
    ax.set_title(f"First two words; the first has {kept.entropy:.2f} bits")


def _languages(ax: Axes, kept: dict[str, tuple[int, int]]) -> None:
    codes = sorted(kept, key=lambda code: kept[code][0])
    names = [name_of(code) for code in codes]
    ax.barh(names, [kept[code][0] for code in codes], color=PALE, height=0.66)
    ax.barh(names, [kept[code][1] for code in codes], color=BLUE, height=0.66)
    theirs = [(place, PAPER[code]) for place, code in enumerate(codes) if code in PAPER]
    ax.plot([n for _, n in theirs], [place for place, _ in theirs], "|", color=RED, ms=15, mew=2)
    keys = (("with input", BLUE), ("without", MUTED), ("the paper", RED))
    for place, (word, colour) in enumerate(keys):
        ax.annotate(word, (1, 1), (-8 - 75 * (2 - place), 10), xycoords="axes fraction", ha="right",
                    textcoords="offset points", color=colour)  # fmt: skip
    ax.set(title="Tasks kept")
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)


def _drawable(word: str) -> bool:
    """Whether the font has its letters and needs no shaping: Latin, Greek and Cyrillic ones."""
    return all(ord(letter) < 0x530 or 0x1E00 <= ord(letter) < 0x1F00 for letter in word)
