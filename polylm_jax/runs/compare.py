"""Runs side by side: the settings in which they differ, and bits per byte at equal tokens.

Runs that differ in nothing but seeds are one group, of which mean and standard deviation are told.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from polylm_jax.data.languages import in_order, is_language, name_of
from polylm_jax.data.rows import open_store
from polylm_jax.errors import UserError
from polylm_jax.files import opened
from polylm_jax.runs.log import Metrics, of_kind, read_metrics
from polylm_jax.runs.status import checkpoints
from polylm_jax.train.remarks import values_of

PLACES = ("train.folder",)  # settings that say where a run lies and not what it is


@dataclass(frozen=True)
class Run:
    """One run. name: as short as tells it apart. settings: name -> value as gin writes it.

    rows: fingerprint of its row store. bits: tokens read -> {source: bits per byte}.
    """

    name: str
    folder: str
    settings: dict[str, str]
    rows: str
    metrics: Metrics
    bits: dict[int, dict[str, float]]


class Spread(NamedTuple):
    """Bits per byte of a group. deviation: None of a group of one."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.deviation is None else f" ± {self.deviation:.3f}")


@dataclass(frozen=True)
class Comparison:
    """groups: runs that differ in seeds alone, by name. differing: setting -> value of each group.

    tokens: at which all are compared. rows: what is compared (languages, then means) -> one
    Spread a group, in their order.
    """

    groups: dict[str, list[Run]]
    differing: dict[str, list[str]]
    tokens: int
    rows: dict[str, list[Spread]]


def read_run(folder: str, name: str) -> Run:
    """A run as it stands. UserError where it has no checkpoint or was never validated."""
    (settings, rows), metrics = _noted(folder), read_metrics(folder)
    bits = {
        record["tokens"]: {n: b for n, b in record["bits_per_byte"].items() if b is not None}
        for record in of_kind(metrics, "valid")
        if record["step"]
    }
    if not bits:
        raise UserError(f"{folder} was not validated yet; train on, or leave it out.")
    return Run(name, folder, settings, rows, metrics, bits)


def settings_of(folder: str) -> dict[str, str]:
    """The settings that a run's newest checkpoint notes: name -> value as gin writes it."""
    return _noted(folder)[0]


def _noted(folder: str) -> tuple[dict[str, str], str]:
    """Settings and fingerprint of the rows, as the newest checkpoint has them."""
    files, place = opened(folder)
    steps = checkpoints(folder)
    if not steps:
        raise UserError(f"{folder} has no checkpoint yet, which tells its settings; leave it out.")
    try:
        meta = json.loads(files.cat_file(f"{place}/checkpoints/{steps[-1]}/meta/metadata"))
        return values_of(meta["gin"]), meta["fingerprints"]["row store"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(
            f"the checkpoint of step {steps[-1]} in {folder} does not tell what was trained, as "
            "one does that was imported or is damaged; leave that run out."
        ) from None


def names_of(folders: Sequence[str]) -> list[str]:
    """The folders' names from where their paths part."""
    if len(folders) == 1:
        return [Path(folders[0]).name]
    common = os.path.commonpath([opened(folder)[1] for folder in folders])
    return [os.path.relpath(opened(folder)[1], common) for folder in folders]


def compare(folders: Sequence[str]) -> Comparison:
    """The runs in these folders side by side.

    UserError where they have no validation at equal tokens, or of other text.
    """
    names = names_of(folders)
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    for run in runs[1:]:
        _check_text(runs[0], run)
    settings = {name: [run.settings.get(name, "") for run in runs] for run in runs for name in
                run.settings}  # fmt: skip
    differing = [
        name for name, values in settings.items() if len(set(values)) > 1 and name not in PLACES
    ]
    apart = [name for name in differing if not name.endswith(".seed")]
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.settings.get(name, "") for name in apart), []).append(run)
    by_name = named(list(groups.values()))
    tokens = max(set.intersection(*(set(run.bits) for run in runs)), default=None)
    if tokens is None:
        ends = "; ".join(f"{run.name}: {', '.join(f'{t:,}' for t in run.bits)}" for run in runs)
        raise UserError(
            "there is no number of tokens at which all runs were validated; give them the same "
            f"train.validate_every times batch ({ends})."
        )
    shown = {
        name: [
            " / ".join(dict.fromkeys(run.settings.get(name, "") for run in group))
            for group in by_name.values()
        ]
        for name in differing
    }
    return Comparison(by_name, shown, tokens, _rows(list(by_name.values()), tokens))


def named(groups: list[list[Run]]) -> dict[str, list[Run]]:
    """Groups by what their runs' names share, such as all but a sweep's seed, or by their first."""
    parts = [[run.name.split(",") for run in group] for group in groups]
    shared = [",".join(p for p in group[0] if all(p in one for one in group)) for group in parts]
    found = dict[str, list[Run]]()
    for same, group in zip(shared, groups, strict=True):
        first, others = group[0].name, len(group) - 1
        unclear = others and (not same or shared.count(same) > 1)
        found[f"{first} + {others}" if unclear else same if others else first] = group
    return found


def _rows(groups: list[list[Run]], tokens: int) -> dict[str, list[Spread]]:
    tables = [[run.bits[tokens] for run in group] for group in groups]
    shared = set.intersection(*(set(table) for group in tables for table in group))
    if not shared:
        raise UserError("the runs were validated on no source that all have; there is nothing to "
                        "compare.")  # fmt: skip
    languages = [source for source in in_order(shared) if is_language(source)]
    others = [source for source in languages if source != "en"]
    sets = {name_of(source): [source] for source in languages or in_order(shared)}
    if len(others) > 1 and len(languages) > len(others):
        sets["mean without English"] = others
    if len(languages) > 1:
        sets["mean"] = languages
    return {
        row: [
            spread_of([fmean(table[source] for source in sources) for table in group])
            for group in tables
        ]
        for row, sources in sets.items()
    }


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation; none of one value."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


def best_of(spreads: Sequence[Spread]) -> int | None:
    """The place of the lowest, if it is lower than the next by more than both deviations."""
    order = sorted(range(len(spreads)), key=lambda at: spreads[at].mean)
    if len(order) < 2:
        return None
    first, second = spreads[order[0]], spreads[order[1]]
    noise = (first.deviation or 0.0) + (second.deviation or 0.0)
    return order[0] if second.mean - first.mean > noise else None


def markdown(found: Comparison, picture: str = "") -> str:
    """The comparison as a text that pastes into an issue. picture: a figure's file name."""
    heads = list(found.groups)
    lines = ["## Settings that differ", ""]
    if found.differing:
        rows = [[f"`{name}`", *(f"`{v}`" for v in vs)] for name, vs in found.differing.items()]
        lines += _table(["setting", *heads], rows)
    else:
        lines.append("None.")
    lines += ["", f"## Bits per byte after {found.tokens:,} tokens", ""]
    rows = []
    for name, spreads in found.rows.items():
        best = best_of(spreads)
        cells = [f"**{s}**" if at == best else str(s) for at, s in enumerate(spreads)]
        rows.append([name, *cells])
    lines += _table(["validation text", *heads], rows)
    lines += ["", "Bold is lower than all others, by more than two groups' deviations together."]
    several = [f"{name} is {len(runs)} runs: {', '.join(run.name for run in runs)}."
               for name, runs in found.groups.items() if len(runs) > 1]  # fmt: skip
    if several:
        lines += ["", f"Mean ± standard deviation over seeds: {' '.join(several)}"]
    if picture:
        lines += ["", f"![loss and bits per byte over tokens]({picture})"]
    return "\n".join(lines) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    line = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, line, *rows)]


def _check_text(one: Run, other: Run) -> None:
    """UserError where two runs were validated on other text."""
    if one.rows == other.rows:
        return
    held: list[dict[str, Any]] = []
    for run in (one, other):
        path = run.settings.get("rows.path", "''").strip("'\"")
        try:
            held.append(open_store(path).manifest)
        except (UserError, OSError):
            raise UserError(
                f"{one.name} and {other.name} were validated on rows of two stores, and the one "
                f"at {path} is not here to tell whether its text is the same; run this where it is."
            ) from None
    corpora = [manifest["made_from"].get("corpus") for manifest in held]
    texts = [
        {s: entry["valid"]["sha256"] for s, entry in manifest["sources"].items()}
        for manifest in held
    ]
    shared = texts[0].keys() & texts[1].keys()
    if corpora[0] != corpora[1] and any(texts[0][s] != texts[1][s] for s in shared):
        raise UserError(
            f"{one.name} and {other.name} were validated on other text, so their bits per byte "
            "do not compare; leave one out."
        )
