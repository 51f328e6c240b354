"""Clean text: mend it, tell its language, measure it, find copies, and keep what is good."""

import argparse
from dataclasses import replace

from polylm_jax import config
from polylm_jax.console import visible
from polylm_jax.data.clean import pipeline
from polylm_jax.errors import UserError

PASSES = ("measure", "thresholds", "duplicates", "write")


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=(*PASSES, "explain", "status"),
        default="write",
        help="the last pass to run; all by default",
    )
    parser.add_argument("id", nargs="?", default="", help="of a document, to explain")
    parser.add_argument("--runner", default="", help="of Apache Beam, in place of beam.runner")
    parser.add_argument(
        "--dry_run", action="store_true", help="say what it would take, and do nothing"
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    beam = config.get("beam")
    beam = replace(beam, runner=given.runner) if given.runner else beam
    job = pipeline.planned(config.get("clean"), config.get("language"), beam)
    size = sum(piece.shard.bytes for piece in job.pieces)
    print(f"Cleaning {len(job.pieces):,} shards of {size / 1e6:,.1f} MB into {job.clean.output}.")
    for kind, (number, size) in job.passed.items():
        print(visible(f"passed over, {number:,} files of {size:,} bytes: {kind}"))
    with pipeline.alone(job.clean.output):
        _passes(given, job)


def _passes(given: argparse.Namespace, job: pipeline.Job) -> None:
    last = PASSES.index(given.action)
    notes = pipeline.measure(job)
    read, broken = (sum(note[name] for note in notes) for name in ("documents", "broken"))
    print(f"{read:,} documents are measured; {broken:,} records are broken.")
    for note in notes:
        for place in note["first_broken"]:
            print(visible(f"  {place}"))
    if not read:
        raise UserError("no document could be read; mend the inputs, or name others.")
    if last == 0:
        return
    gin = pipeline.derive(job, config.get("thresholds"), notes)
    print(f"The thresholds are in {gin}: edit them, and run `polylm clean` again.")
    config.parse([*given.gin_file, gin], given.overrides)
    if last == 1:
        return
    pipeline.duplicates(job, notes)
    if last == 2:
        return
    manifest = pipeline.write(job, notes, config.get("thresholds").limits)
    kept = sum(
        source[split]["documents"]
        for source in manifest["sources"].values()
        for split in ("train", "valid")
    )
    print(f"{kept:,} documents of {read:,} are kept, in {job.clean.output}.")
