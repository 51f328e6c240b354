"""What came of a run: bits per byte per language, fidelity to the curriculum, figures, samples."""

from pathlib import Path
from statistics import fmean

import numpy as np
from rich.console import Console
from rich.table import Table

from polylm_jax.data.languages import LANGUAGES, is_bilingual
from polylm_jax.errors import UserError
from polylm_jax.figures import name_of, run_figures
from polylm_jax.runs import (
    Rows,
    deviation,
    non_english_share,
    read_metrics,
    rows_read,
    untrained_and_trained,
)

Bits = dict[str, float]


def report(run: str, console: Console) -> None:
    """Prints what a run learned and kept to, draws its figures and says where everything is.

    run: the folder of a run. Raises UserError if it does not exist, or if its metrics are
    missing, broken or hold no training step.
    """
    folder = Path(run)
    if "://" in run:
        raise UserError(f"{run} is not on this machine: copy it (tpu_scripts/fetch.sh) to draw it.")
    if not folder.is_dir():
        raise UserError(f"{run} is no folder: give --run the folder that `polylm train` wrote.")
    metrics, figures = read_metrics(folder), run_figures(folder)
    pair = untrained_and_trained(metrics)
    console.print(bits_table(*pair) if pair else "No validation of the trained model yet.")
    for line in (*(mean_lines(*pair) if pair else ()), curriculum_line(rows_read(metrics))):
        _say(console, line)
    _say(console, f"\nCheckpoints: {folder / 'checkpoints'}")
    for figure in figures:
        _say(console, f"Figure: {figure}")
    samples = folder / "samples.txt"
    if samples.exists():
        _say(console, f"Samples: {samples}\n\n{samples.read_text(encoding='utf-8').rstrip()}")


def bits_table(before: Bits, after: Bits) -> Table:
    """Bits per byte, untrained and trained, of every source that is not bilingual."""
    table = Table("language", title="Bits per byte of validation text", title_justify="left")
    for heading in ("untrained", "trained", "fall"):
        table.add_column(heading, justify="right")
    for source in before:
        if not is_bilingual(source):
            first, last = before[source], after[source]
            table.add_row(name_of(source), f"{first:.3f}", f"{last:.3f}", fall(first, last))
    return table


def mean_lines(before: Bits, after: Bits) -> list[str]:
    """One line for the languages and one for the bilingual sources, where there are any."""
    languages = [source for source in before if source in LANGUAGES]
    pairs = [source for source in before if is_bilingual(source)]
    lines = []
    for names, kind in ((languages, "languages"), (pairs, "sources paired with English")):
        if names:
            first, last = (fmean(table[name] for name in names) for table in (before, after))
            change = f"{first:.3f} → {last:.3f} bits per byte, a fall of {fall(first, last)}"
            lines.append(f"Mean of {len(names)} {kind}: {change}.")
    return lines


def curriculum_line(rows: Rows) -> str:
    """The non-English share in the first and last tenth of a run, and how true it kept."""
    tenth = max(1, (len(rows.tokens) - 1) // 10)
    ends = np.array([[0, tenth], [-1 - tenth, -1]])
    read, due = (
        non_english_share(rows.sources, np.diff(counts[ends], axis=1)[:, 0])
        for counts in (rows.measured, rows.scheduled)
    )
    return (
        f"Non-English share: {read[0]:.1%} in the first tenth → {read[1]:.1%} in the last tenth "
        f"of the run (schedule: {due[0]:.1%} → {due[1]:.1%}); largest deviation from the schedule "
        f"over all sources and steps: {deviation(rows).max():.3f} rows."
    )


def fall(first: float, last: float) -> str:
    """By how much the second number is lower, in per cent of the first; a rise is negative."""
    return f"{1 - last / first:.1%}"


def _say(console: Console, text: str) -> None:
    """Prints text as it is: no markup, and no line broken, so that a path can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
