"""Train every combination of some settings' values, one run after another, and compare them.

Finished runs are passed over and broken ones go on, so the same command finishes a sweep.
"""

import argparse
import shlex
import sys
from functools import partial
from typing import NamedTuple

from polylm_jax import config
from polylm_jax.errors import UserError
from polylm_jax.files import place
from polylm_jax.parallel.hosts import stop_signals
from polylm_jax.runs.compare import settings_of
from polylm_jax.runs.status import checkpoints, status_of
from polylm_jax.runs.sweep import Member, alone, gravest, members, read_over, see_through
from polylm_jax.train.ends import ENDS, End, RunEnded
from polylm_jax.train.remarks import differences, values_of
from polylm_jax.verbs import compare

# settings that say how a run goes about it, and not what comes of it
MANNER = {
    *("train.folder", "train.keep", "train.checkpoint_every", "train.log_every"),
    *("train.data_timeout", "train.accept_changes", "train.trackers", "compute.compile_cache"),
}
# what `polylm tune` sets by itself, from its rows
FOLLOWING = ("train.steps", "optimizer.decay_steps", "optimizer.warmup_steps", "curriculum.")


class Run(NamedTuple):
    """A run to be made. arguments: of `polylm`. settings: all in force, as gin text."""

    name: str
    folder: str
    arguments: list[str]
    settings: str


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--over",
        action="append",
        required=True,
        type=read_over,
        metavar="SETTING=VALUE,VALUE",
        help="values of a setting; may be given again: all combinations are run",
    )
    parser.add_argument(
        "--out",
        type=partial(place, name="--out"),
        help="folder of the runs' folders, local or a URL (default: train.folder with _sweep)",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the commands of the runs that are not finished, one a line, and do nothing",
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    out = given.out or f"{config.get('train').folder}_sweep"
    runs = [_made(given, out, member) for member in members(given.over)]
    todo = [one for one in runs if not _is_finished(one)]
    if given.dry_run:
        for one in todo:
            print(shlex.join(["polylm", *one.arguments]))
        return
    print(f"Sweeping {len(runs)} runs into {out}; {len(runs) - len(todo)} are finished.")
    with alone(out), stop_signals() as stopped:
        ends = dict[str, End]()
        for number, one in enumerate(todo, 1):
            print(f"\n[{number} of {len(todo)}] {one.name}", flush=True)
            command = [sys.executable, "-m", "polylm_jax", *one.arguments]
            ends[one.name] = see_through(command, stopped, partial(print, flush=True))
            if stopped.is_set():
                break
    if stopped.is_set() and len(ends) + len(runs) - len(todo) < len(runs):
        raise RunEnded(
            "stopped",
            f"it was asked to stop; {len(todo) - len(ends)} of {len(runs)} runs were not begun. "
            "The same command goes on.",
        )
    _compared([one for one in runs if ends.get(one.name, ENDS["finished"]).word == "finished"], out)
    if broken := {name: end for name, end in ends.items() if end.word != "finished"}:
        told = ", ".join(f"{name} ({end.word})" for name, end in broken.items())
        raise RunEnded(
            gravest(list(broken.values())).word,
            f"{len(broken)} of {len(runs)} runs did not finish: {told}. Mend what is said above; "
            "the same command goes on with them.",
        )


def _made(given: argparse.Namespace, out: str, member: Member) -> Run:
    """A member's run; UserError, before any work, where its settings are none."""
    folder = f"{out}/{member.name}"
    overrides = [*given.overrides, *member.values, f"train.folder={folder}"]
    config.parse(given.gin_file, overrides)
    verb = "tune" if config.get("tune").data else "train"
    arguments = [verb, *(f"--gin_file={file}" for file in given.gin_file)]
    arguments += [f"--gin.{override}" for override in overrides]
    return Run(member.name, folder, arguments, config.resolved())


def _is_finished(one: Run) -> bool:
    """Whether a run is finished; UserError where it is, but with other settings."""
    if status_of(one.folder).state != "finished" or not checkpoints(one.folder):
        return False
    saved, now = settings_of(one.folder), values_of(one.settings)
    former = "\n".join(f"{name} = {value}" for name, value in saved.items())
    changed = {line.partition(":")[0]: line for line in differences(former, one.settings)}
    unasked = FOLLOWING if one.arguments[0] == "tune" else ()
    changed = {
        name: line
        for name, line in changed.items()
        if name not in MANNER and not name.startswith(unasked)
    }
    if list(changed) == ["train.steps"] and int(now["train.steps"]) > int(saved["train.steps"]):
        return False  # it goes on
    if changed:
        raise UserError(
            f"{one.folder} is finished, but with other settings ({next(iter(changed.values()))}); "
            "give another --out, or delete it to have it made anew."
        )
    return True


def _compared(runs: list[Run], out: str) -> None:
    if len(runs) < 2:
        print("\nFewer than two runs are finished, so there is nothing to compare yet.")
        return
    print()
    try:
        compare.write([one.folder for one in runs], "runs/compared" if "://" in out else out)
    except UserError as error:
        print(f"Not compared: {error}")
