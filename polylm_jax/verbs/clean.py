"""Clean text: mend it, tell its language, measure it, find copies, and keep what is good."""

import argparse
import math
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from polylm_jax import config
from polylm_jax.console import visible
from polylm_jax.data import corpus, shards
from polylm_jax.data.clean import estimate, jobs, pipeline, products, report
from polylm_jax.data.clean.settings import Clean
from polylm_jax.data.clean.thresholds import Limits
from polylm_jax.errors import UserError
from polylm_jax.files import MANIFEST

LARGE = 2 * 10**9  # bytes of a file whose scores may take a gigabyte
PASSES = ("measure", "thresholds", "duplicates", "write")


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=(*PASSES, "explain", "status", "verify"),
        default="write",
        help="the last pass to run, which is write by default",
    )
    parser.add_argument("id", nargs="?", default="", help="of a document, to explain")
    parser.add_argument("--runner", default="", help="of Apache Beam, in place of beam.runner")
    parser.add_argument(
        "--dry_run", action="store_true", help="say what it would take, and do nothing"
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    clean = config.get("clean")
    manifest = f"{clean.output}/{MANIFEST}"
    if given.action in ("explain", "verify") and not products.exists(manifest):
        raise UserError(f"{clean.output} has no corpus, or none that is whole; run polylm clean.")
    if given.action == "explain":
        print(visible("\n".join(report.explain(clean.output, given.id))))
        return
    if given.action == "verify":
        count = shards.verify(clean.output, corpus.manifest(clean.output))
        print(visible(f"All {count:,} files of {clean.output} are as they were written."))
        return
    job = planned(clean, given.runner)
    if given.action == "status":
        limits = _limits(f"{clean.output}/{pipeline.GIN}")
        for name, done, count in pipeline.status(job, config.get("thresholds"), limits):
            print(f"{name:12}{done:,} of {count:,} shards")
        return
    if given.dry_run:
        print("\n".join(estimate.told(job)))
        return
    size = sum(piece.shard.bytes for piece in job.pieces)
    print(f"Cleaning {len(job.pieces):,} shards of {size / 1e6:,.1f} MB into {clean.output}.")
    for kind, (number, size) in job.passed.items():
        print(visible(f"passed over, {number:,} files of {size:,} bytes: {kind}"))
    for piece in job.pieces:
        if piece.shard.bytes > LARGE:
            print(visible(f"look: {piece.shard.name} is large, and its scores are held in memory"))
    passes(job, given.action)


def planned(clean: Clean, runner: str = "") -> jobs.Job:
    """The job that settings ask for, by the others in force."""
    beam = config.get("beam")
    beam = replace(beam, runner=runner) if runner else beam
    return jobs.planned(clean, config.get("language"), config.get("tokenizer").path, beam)


def passes(job: jobs.Job, until: str = PASSES[-1]) -> None:
    """Runs the passes, the last of them `until`, and tells what came of them."""
    with jobs.alone(job.clean.output):
        _passes(job, PASSES.index(until))


def _passes(job: jobs.Job, last: int) -> None:
    notes = pipeline.measure(job)
    read, broken = (sum(note[name] for note in notes) for name in ("documents", "broken"))
    print(f"{read:,} documents are measured; {broken:,} records are broken.")
    for place in [place for note in notes for place in note["first_broken"]][:10]:
        print(visible(f"  {place}"))
    unsought, items = pipeline.unsought(job)
    if unsought:
        print(f"look: {unsought:,} of {items:,} items of benchmarks are too short to look for.")
    if not read:
        raise UserError("no document could be read; mend the inputs, or name others.")
    if last >= PASSES.index("thresholds"):
        gin = pipeline.derive(job, config.get("thresholds"), notes)
        limits = _limits(gin)  # what was given is in it
        print(f"The thresholds are in {gin}: edit them, and run this again.")
    if last >= PASSES.index("duplicates"):
        pipeline.duplicates(job, notes)
    if last >= PASSES.index("write"):
        told = pipeline.write(job, notes, limits)
        place = report.write(job.clean.output, told, limits, pipeline.histograms(job, notes))
        _show(report.counted(told), limits, place)
        print(f"The corpus is in {job.clean.output}; why each document is or is not: {place}.")


def _limits(gin: str) -> Limits:
    """The limits in a thresholds' file; none where there is no file."""
    if not products.exists(gin):
        return {}
    return config.only("thresholds.limits", products.read(gin), gin)


def _show(counts: report.Counts, limits: dict, place: str) -> None:
    heads = ("documents", "kept", *report.KINDS[1:])
    shown = Table("language", title="Cleaned", title_justify="left")
    for head in heads:
        shown.add_column(head, justify="right")
    for language, some in counts.items():
        kinds, total = report.by_kind(some), max(some["read"][0], 1)
        shares = [f"{100 * kinds[kind] / total:.1f}%" for kind in report.KINDS[1:]]
        shown.add_row(language, f"{total:,}", f"{kinds['kept']:,}", *shares)
    Console().print(shown)
    for name, value in report.beside_paper(counts).items():
        if not math.isnan(value):
            print(f"{name:22}{value:6.1f}% dropped; PolyLM's {report.PAPER[name]}%")
    marks = list(report.marked(counts, limits))
    for line in marks[:6]:
        print(visible(f"look: {line}"))
    if len(marks) > 6:
        print(f"look: {len(marks) - 6} more in {place}")
