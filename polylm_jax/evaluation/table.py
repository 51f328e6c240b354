"""What a person reads of a benchmark: tables beside the paper, a report, results as lm-eval has
them, what differs from another model."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from polylm_jax import jsonl
from polylm_jax.errors import UserError
from polylm_jax.evaluation import paper, pictures
from polylm_jax.evaluation.evaluate import Average, Report, above_chance, fingerprint
from polylm_jax.evaluation.settings import Evaluation
from polylm_jax.evaluation.tasks import Asked
from polylm_jax.evaluation.work import Result
from polylm_jax.files import put

RESULTS, REPORT, SAMPLES = "results.json", "report.md", "samples_{}.jsonl"
CHANCE = "not different from chance"
# what results.json has by task, or by task and language
BY_TASK = ("results", "averages", "configs", "versions", "n-shot", "n-samples", "task_hashes",
           "missing")  # fmt: skip


def _scaled(name: str, value: float) -> float:
    """As the paper prints it: shares as per cent, the rest as it is."""
    return 100 * value if name.startswith(pictures.SHARES) else value


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def cells(result: Result) -> dict[str, str]:
    """A language's row, heading -> text."""
    task, first = result.asked.task, result.measures[0]
    digits = 2 if task.kind == "text" else 1
    found = {"language": result.asked.language, "n": f"{len(result.samples):,}"}
    found[first.name] = _number(_scaled(first.name, first.value), digits)
    found["±"] = _number(_scaled(first.name, first.error), digits)
    found |= {
        one.name: _number(_scaled(one.name, one.value), digits) for one in result.measures[1:]
    }
    if task.chance is not None:
        choice, often = result.favourite or (0, math.nan)
        found |= {
            "chance": _number(100 * task.chance),
            "top": f"{choice + 1}: {_number(100 * often, 0)}%",
        }
    found["cut"] = f"{result.truncated + result.left_out:,}"
    beside = paper.figures(task.name).get(result.asked.language, {})
    if paper.figures(task.name):
        found |= {model: _number(beside.get(model)) for model in paper.BASE + paper.TUNED}
    return found


def mean_cells(report: Report, one: Average) -> dict[str, str]:
    """An average's row; the paper's models have theirs where it has the languages."""
    task, first = report.results[0].asked.task, report.results[0].measures[0]
    digits = 2 if task.kind == "text" else 1
    counts = {result.asked.language: len(result.samples) for result in report.results}
    found = {
        "language": f"mean {one.name}",
        "n": f"{sum(counts[code] for code in one.languages):,}",
        first.name: _number(_scaled(first.name, one.value), digits),
        "±": _number(_scaled(first.name, one.error), digits),
    }
    figures = paper.figures(task.name)
    if set(one.languages) <= set(figures):
        found |= {
            model: _number(float(np.mean([figures[code][model] for code in one.languages])))
            for model in paper.BASE + paper.TUNED
        }
    return found


def of_task(name: str, report: Report) -> Table:
    """A task's table for the terminal; a score that does not differ from chance is grey and has
    a star. Each of the paper's columns is a base model's figure, then its tuned one's."""
    chance = report.results[0].asked.task.chance
    title = f"{name}" + (f", chance {100 * chance:.1f}" if chance else "")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    headline = report.results[0].measures[0].name
    shown = ["language", "n", headline, "±", *(["top"] if chance else []), "cut"]
    for number, head in enumerate(shown):
        table.add_column(head, justify="right" if number else "left")
    pairs = list(zip(paper.BASE, paper.TUNED, strict=True)) if paper.figures(name) else []
    for base, _ in pairs:
        table.add_column(base.split("-")[0], justify="right")

    def add(found: dict[str, str], style: str, grey: bool = False) -> None:
        texts = [Text(found.get(head, "")) for head in shown]
        texts += [Text("/".join(found.get(model, "-") for model in pair)) for pair in pairs]
        if grey:
            texts[2].append("*")
            for text in texts[2:4]:
                text.stylize("bright_black")
        table.add_row(*texts, style=style)

    for result in report.results:
        add(cells(result), "", above_chance(result) is False)
    for one in report.averages:
        add(mean_cells(report, one), "bold")
    return table


def lines(reports: dict[str, Report]) -> Iterator[str]:
    """What stands below the tables: chance, and what is odd."""
    for name, report in reports.items():
        codes = [one.asked.language for one in report.results if above_chance(one) is False]
        if codes:
            yield f"* {name}: {CHANCE} (95%) in {' '.join(codes)}."
    for name, report in reports.items():
        said: dict[str, list[str]] = {}
        for result in report.results:
            notes = (*result.asked.notes, *(one.note for one in result.measures if one.note))
            for note in notes:
                said.setdefault(note, []).append(result.asked.language)
        for note, codes in said.items():
            yield f"note: {name} {' '.join(codes)}: {note}."
        if cut := sum(result.truncated for result in report.results):
            yield f"note: {name}: {cut:,} items are longer than the model's context and cut."
        if left := sum(result.left_out for result in report.results):
            why = "too long for the model, or a choice is empty"
            yield f"note: {name}: {left:,} items are left out: {why}."


def write(
    folder: Path,
    reports: dict[str, Report],
    settings: Evaluation,
    identity: dict[str, Any],
    run: str,
) -> list[Path]:
    """results.json and samples in lm-eval's form, report.md, a figure for each task.

    What the folder says of the same model on tasks that were not asked now stays.
    """
    written = [folder / RESULTS]
    found = [(one, one.asked.task.lm_eval_name(one.asked.language))
             for report in reports.values() for one in report.results]  # fmt: skip
    former = _former(folder, identity)
    sections = _sections(folder, reports) if former else []
    put(
        str(folder / RESULTS),
        _json(_beside(former, results(reports, settings, identity, run), reports)),
    )
    for one, name in found:
        text = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in one.samples)
        put(str(folder / SAMPLES.format(name)), text.encode())
    written.append(folder / SAMPLES.format("*"))
    drawn = {
        name: pictures.of_task(name, report, folder / f"{name}.png")
        for name, report in reports.items()
        if report.results
    }
    sections += [
        "\n".join(section(name, report, settings, identity, drawn[name].name)) + "\n"
        for name, report in reports.items()
        if report.results
    ]
    text = "\n".join(["\n".join(head(reports, identity, run)) + "\n", *sections])
    put(str(folder / REPORT), text.encode())
    return [*written, folder / REPORT, *drawn.values()]


def _former(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The results in a folder, if they are of the same model; else nothing."""
    try:
        found = json.loads((folder / RESULTS).read_bytes())
        same = {name: found["config"]["model_args"].get(name) for name in identity} == identity
        return found if same and all(isinstance(found[part], dict) for part in BY_TASK) else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _beside(
    former: dict[str, Any], found: dict[str, Any], reports: dict[str, Report]
) -> dict[str, Any]:
    """The results with those of former tasks that are not among the reports."""
    asked = [one for report in reports.values() for one in report.missing]
    asked += [one.asked for report in reports.values() for one in report.results]
    again = {one.task.lm_eval_name(code) for one in asked for code in one.task.languages}
    return found | {
        part: {
            name: value
            for name, value in former.get(part, {}).items()
            if name not in again and name not in reports
        }
        | found[part]
        for part in BY_TASK
    }


def _sections(folder: Path, reports: dict[str, Report]) -> list[str]:
    """Those of the report in a folder that are of other tasks."""
    try:
        parts = (folder / REPORT).read_text("utf-8").split("\n## ")[1:]
    except (OSError, ValueError):
        return []
    return [f"## {part.rstrip()}\n" for part in parts if part.partition("\n")[0] not in reports]


def _json(value: Any) -> bytes:
    return (
        json.dumps(json.loads(jsonl.dumps(value)), indent=1, ensure_ascii=False) + "\n"
    ).encode()


def results(
    reports: dict[str, Report], settings: Evaluation, identity: dict[str, Any], run: str
) -> dict[str, Any]:
    """What lm-eval's results_*.json says, under its keys."""
    found = {
        one.asked.task.lm_eval_name(one.asked.language): one
        for report in reports.values()
        for one in report.results
    }
    return {
        "results": {
            name: {"alias": name}
            | {f"{of.name},none": of.value for of in one.measures}
            | {f"{of.name}_stderr,none": of.error for of in one.measures}
            for name, one in found.items()
        },
        "averages": {
            name: [asdict(one) for one in report.averages] for name, report in reports.items()
        },
        "configs": {
            name: {
                "task": name,
                "language": one.asked.language,
                "protocol": settings.protocol,
                "notes": one.asked.notes,
                "chance": one.asked.task.chance,
                "different_from_chance": above_chance(one),
                "favourite": one.favourite,
                "truncated": one.truncated,
                "left_out": one.left_out,
                "signatures": {of.name: of.note for of in one.measures if of.note},
            }
            for name, one in found.items()
        },
        "versions": dict.fromkeys(found, settings.protocol),
        "n-shot": {
            name: one.asked.task.shots.get(settings.protocol, 0) for name, one in found.items()
        },
        "n-samples": {
            name: {"original": len(one.asked.items), "effective": len(one.samples)}
            for name, one in found.items()
        },
        "task_hashes": {name: fingerprint(one) for name, one in found.items()},
        "missing": {
            one.task.lm_eval_name(one.language): one.missing
            for report in reports.values()
            for one in report.missing
        },
        "config": {"model": "polylm_jax", "model_args": {"run": run} | identity}
        | {"settings": asdict(settings)},
    }


def head(reports: dict[str, Report], identity: dict[str, Any], run: str) -> Iterator[str]:
    """The report's first lines: how it is read, and what is not in it."""
    yield f"# Step {identity['step']} of {run}\n"
    yield (
        "Columns of models are the paper's figures, of three base models and three tuned ones. "
        "top is the choice that was taken most often. "
        f"A score with * is {CHANCE} (95%). ± is the standard error.\n"
    )
    for name, report in reports.items():
        if report.missing:
            codes = " ".join(one.language for one in report.missing)
            yield f"- missing: {name} {codes}: {report.missing[0].missing}"


def section(
    name: str, report: Report, settings: Evaluation, identity: dict[str, Any], picture: str
) -> Iterator[str]:
    """A task's lines of the report. picture: its figure's file name."""
    yield f"## {name}\n"
    first = f", the first {settings.limit} items" if settings.limit else ""
    yield f"Protocol `{settings.protocol}`, {identity['dtype']}{first}.\n"
    rows = [cells(result) for result in report.results]
    for result, found in zip(report.results, rows, strict=True):
        if above_chance(result) is False:
            found[result.measures[0].name] += "*"
    heads = list(dict.fromkeys(name for found in rows for name in found))
    rows += [mean_cells(report, one) for one in report.averages]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for found in rows:
        yield f"| {' | '.join(found.get(name, '') for name in heads)} |"
    yield f"\n![{name}]({picture})\n"
    for line in lines({name: report}):
        yield f"- {line.replace('*', chr(92) + '*')}"


def differences(folder: Path, other: Path) -> Iterator[str]:
    """What differs between the results in a folder and another's, item by item."""
    ours, theirs = _read(folder), _read(_results_in(other))
    compared = [name for name in ours[1]["results"] if name in theirs[1]["results"]]
    if not compared:
        raise UserError(f"{other} has no task that was evaluated here; evaluate it on the same.")
    yield f"Differences from {other}, paired by item (± standard error; * beyond chance, 95%):"
    for name in compared:
        if ours[1]["task_hashes"][name] != theirs[1]["task_hashes"][name]:
            yield f"  {name}: other items, or another protocol; not compared."
            continue
        head = next(key for key in ours[1]["results"][name] if key.endswith(",none"))
        measure = head.removesuffix(",none")
        pair = [_values(at / SAMPLES.format(name), measure) for at in (ours[0], theirs[0])]
        if pair[0] is None or pair[1] is None or len(pair[0]) != len(pair[1]):
            yield f"  {name}: no value for each item of both; not compared."
            continue
        by_item = pair[0] - pair[1]
        error = by_item.std(ddof=1) / math.sqrt(len(by_item)) if len(by_item) > 1 else math.nan
        mark = "*" if abs(by_item.mean()) > 1.96 * error else ""
        scaled = [_scaled(measure, float(x)) for x in (by_item.mean(), error)]
        yield f"  {name} {measure}: {scaled[0]:+.2f} ± {scaled[1]:.2f}{mark}"


def _results_in(folder: Path) -> Path:
    """The folder of results that is meant: itself, or the newest step's of a run."""
    if (folder / RESULTS).is_file():
        return folder
    steps = [at.parent for at in (folder / "evaluation").glob(f"*/{RESULTS}")]
    numbered = [at for at in steps if at.name.isdecimal()]
    if not numbered:
        raise UserError(
            f"--against={folder} holds no results; run `polylm evaluate --run={folder}` first."
        )
    return max(numbered, key=lambda at: int(at.name))


def _read(folder: Path) -> tuple[Path, dict[str, Any]]:
    form = {"results": {str: {}}, "task_hashes": {str: str}}
    wanted = "results of `polylm evaluate`; evaluate that run again"
    return folder, jsonl.read_json(folder / RESULTS, form, wanted)


def headline(folder: Path, asked: Asked) -> np.ndarray | None:
    """The first measure of each item of a task in the results in a folder, None without them."""
    name = asked.task.lm_eval_name(asked.language)
    if not (folder / RESULTS).is_file():
        return None
    found = _read(folder)[1]["results"].get(name, {})
    key = next((key for key in found if key.endswith(",none")), "")
    return _values(folder / SAMPLES.format(name), key.removesuffix(",none")) if key else None


def _values(file: Path, measure: str) -> np.ndarray | None:
    """A measure of each item, from samples."""
    if not file.is_file():
        return None
    with open(file, encoding="utf-8") as samples:
        values = [json.loads(line).get(measure) for line in samples]
    return None if None in values else np.array(values, float)
