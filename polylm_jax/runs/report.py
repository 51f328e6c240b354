"""What came of a run: bits per byte per language, fidelity to the curriculum, figures, samples."""

from functools import partial
from math import isfinite
from pathlib import Path
from statistics import fmean

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polylm_jax.console import visible
from polylm_jax.data.languages import (
    is_bilingual,
    is_language,
    is_mixed,
    name_of,
    non_english_share,
)
from polylm_jax.errors import UserError
from polylm_jax.runs.figures import run_figures
from polylm_jax.runs.log import (
    Bits,
    Metrics,
    deviation,
    history,
    of_kind,
    read_metrics,
    rows_read,
    steps_of,
    untrained_and_trained,
)


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
    metrics, say = read_metrics(folder), partial(_say, console)
    figures, train = run_figures(folder, metrics), of_kind(metrics, "train")
    if pair := untrained_and_trained(metrics):
        console.print(bits_table(*pair))
    else:
        say("No validation of the trained model yet.")
    for line in (
        *(mean_lines(*pair) if pair else ()),
        *curriculum_lines(train),
        *(f"The run {one['said']}." for one in history(metrics)),
        *lost_lines(train),
    ):
        say(line)
    say(f"\nCheckpoints: {folder / 'checkpoints'}")
    for figure in figures:
        say(f"Figure: {figure}")
    samples = folder / "samples.txt"
    if samples.is_file():
        say(f"Samples: {samples}\n\n{samples.read_text('utf-8', errors='replace').rstrip()}")


def bits_table(before: Bits, after: Bits) -> Table:
    """Bits per byte, untrained and trained, of every source that is not bilingual."""
    table = Table("language", title="Bits per byte of validation text", title_justify="left")
    for heading in ("untrained", "trained", "fall"):
        table.add_column(heading, justify="right")
    for source in before:
        if not is_bilingual(source):
            bits = before[source], after[source]
            table.add_row(Text(visible(name_of(source))), *map(number, bits), fall(*bits))
    return table


def mean_lines(before: Bits, after: Bits) -> list[str]:
    """One line for the languages and one for the bilingual sources, where there are any."""
    languages = [source for source in before if is_language(source)]
    pairs = [source for source in before if is_bilingual(source)]
    lines = []
    for names, kind in ((languages, "languages"), (pairs, "bilingual sources")):
        if names:
            first, last = (fmean(table[name] for name in names) for table in (before, after))
            change = (
                f"{number(first)} → {number(last)} bits per byte, a fall of {fall(first, last)}"
            )
            lines.append(f"Mean of {len(names)} {kind}: {change}.")
    return lines


def curriculum_lines(train: Metrics) -> list[str]:
    """The non-English share in the first and last tenth of a run, if it has English and others,
    and how true it kept to its schedule; nothing where no rows were counted."""
    rows = rows_read(train)
    if not rows.sources:
        return []
    worst = max((off for one in train if (off := deviation(one)) is not None), default=np.nan)
    steps, _ = steps_of(train)
    checked = "steps" if steps == train[-1]["step"] else f"{steps:,} logged steps"
    kept = f"deviation from the schedule over all sources and {checked}: {number(worst)} rows."
    if not is_mixed(rows.sources):
        return [f"Largest {kept}"]
    last = rows.tokens[-1]
    # rows are not counted after each step: these are the next counts after and before
    first_end = np.searchsorted(rows.tokens, last / 10)
    last_start = np.searchsorted(rows.tokens, last - last / 10, "right") - 1
    ends = np.array([[0, first_end], [last_start, -1]])
    read, due = (
        non_english_share(rows.sources, np.diff(counts[ends], axis=1)[:, 0])
        for counts in (rows.measured, rows.scheduled)
    )
    first, rest = rows.tokens[first_end] / last, 1 - rows.tokens[last_start] / last
    return [
        f"Non-English share: {read[0]:.1%} in the first {part(first)} → {read[1]:.1%} in the last "
        f"{part(rest)} of the run (schedule: {due[0]:.1%} → {due[1]:.1%}); largest {kept}"
    ]


def lost_lines(train: Metrics) -> list[str]:
    """A line if there were steps whose loss was no number."""
    steps, unsound = steps_of(train)
    return [f"The loss was not a number in {unsound:,} of {steps:,} steps."] if unsound else []


def part(share: float) -> str:
    """A part of a run in words."""
    return "tenth" if f"{share:.0%}" == "10%" else f"{share:.0%}"


def number(value: float) -> str:
    """A number as reports show it."""
    return f"{value:.3f}" if isfinite(value) else "not a number"


def fall(first: float, last: float) -> str:
    """By how much the second number is lower, in per cent of the first; a rise is negative."""
    return f"{1 - last / first:.1%}" if first and isfinite(first) and isfinite(last) else "–"


def _say(console: Console, text: str) -> None:
    """Prints text as it is: no markup, and no line broken, so that a path can be copied.

    On a terminal control characters of samples and names can be read and do nothing.
    """
    console.print(visible(text), markup=False, highlight=False, soft_wrap=True)
