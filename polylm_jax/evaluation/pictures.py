"""A figure for each task: a bar a language with its error, and the paper's marks beside it."""

from functools import partial
from pathlib import Path

from matplotlib.axes import Axes

from polylm_jax.evaluation import paper
from polylm_jax.evaluation.evaluate import Report, above_chance
from polylm_jax.evaluation.work import Result
from polylm_jax.runs import figures
from polylm_jax.runs.figures import BLUE, INK, MUTED, PALE, PURPLE, RED

SHARES = ("acc", "f1", "exact", "rouge")  # measures from 0 to 1, which the paper prints as per cent
MARKS = dict(zip(paper.BASE, ((RED, "o"), (MUTED, "^"), (PURPLE, "s")), strict=True))


def of_task(name: str, report: Report, path: Path) -> Path:
    """Draws a task's scores in all languages; a bar that does not differ from chance is pale."""
    panel = partial(_bars, name=name, results=report.results)
    return figures.picture(path, (max(4.5, 1.8 + 0.55 * len(report.results)), 3.6), [panel])


def _bars(ax: Axes, name: str, results: list[Result]) -> None:
    codes = [one.asked.language for one in results]
    task, first = results[0].asked.task, [one.measures[0] for one in results]
    scale = 100 if first[0].name.startswith(SHARES) else 1
    colours = [PALE if above_chance(one) is False else BLUE for one in results]
    ax.bar(codes, [scale * one.value for one in first], color=colours, width=0.66)
    errors = [1.96 * scale * one.error for one in first]
    ax.errorbar(codes, [scale * one.value for one in first], errors, fmt="none", ecolor=INK, lw=1)
    words = [("ours, 95%", BLUE)]
    for model, (colour, mark) in MARKS.items():
        beside = {c: of[model] for c, of in paper.figures(task.name).items() if c in codes}
        if beside:
            ax.plot(list(beside), list(beside.values()), mark, color=colour, ms=5, ls="none")
            words.append((f"{model} (paper)", colour))
    if task.chance is not None:
        ax.axhline(100 * task.chance, color=INK, lw=1, ls=":")
        words.append(("dotted: chance; pale: not different from it", MUTED))
    ax.set(title=f"{name}, {first[0].name}")
    for line, (word, colour) in enumerate(words):
        ax.annotate(word, (1.01, 1 - 0.07 * line), xycoords="axes fraction", va="top",
                    color=colour, fontsize=8.5)  # fmt: skip
