"""Where a run stands and whether it is healthy, from its folder alone, local or gs://."""

import json
import math
import time
from typing import NamedTuple

from fsspec.implementations.local import LocalFileSystem

from polylm_jax.console import format_duration
from polylm_jax.files import opened
from polylm_jax.train.ends import ENDS, UNENDED
from polylm_jax.train.heartbeat import EVERY, Beat, read_heartbeat
from polylm_jax.train.retention import skipped_of, sound

GONE = 6 * EVERY  # seconds without a heartbeat after which a run's process is taken for dead
STEPS = 20  # times its usual pace that a run may take for a step, a validation or a save
STARTING = 1800.0  # seconds that a run may take until its first step, compiling
NEEDED = {"time", "moved", "state", "step", "steps", "pid", "host", "processes"}
AGAIN = "start it again with the same command and it goes on from the last checkpoint"


STATUSES = {end.word: end.status for end in ENDS.values()} | UNENDED


class Status(NamedTuple):
    """state: a word of ENDS or UNENDED. healthy: whether nobody need do anything. lines: five of
    them for people."""

    state: str
    healthy: bool
    lines: tuple[str, ...]


def status_of(folder: str, now: float | None = None) -> Status:
    """The status of the run in a folder. now: seconds since the epoch, the present by default."""
    beat, saved = read_heartbeat(folder), checkpoints(folder)
    if beat is None or NEEDED - beat.keys():
        return Status("never started", False, _never_started(folder, saved))
    now = time.time() if now is None else now
    state, why = _state(beat, now)
    healthy = state in ("running", "finished")
    if healthy and _loss_is_lost(beat):
        healthy, why = False, f"{why}, but the loss is not a number; see its log"
    lines = (
        f"{folder}: {state} at step {beat['step']:,} of {beat['steps']:,} "
        f"({beat['step'] / max(beat['steps'], 1):.0%}), {_ago(now - beat['time'])} by process "
        f"{beat['pid']} on {beat['host']}, of {beat['processes']}.",
        " ".join(filter(None, (_loss(beat), beat.get("evaluated")))),
        _speed(beat),
        " ".join(
            [_saved(folder, saved), *(f"The run {said}." for said in beat.get("history", []))]
        ),
        f"{'Healthy' if healthy else 'Needs you'}: {why}; {_hosts(beat)}.",
    )
    return Status(state, healthy, lines)


def checkpoints(folder: str) -> list[int]:
    """Steps of the whole checkpoints in a run's folder, oldest first."""
    files, place = opened(folder)
    try:
        names = [
            path.rstrip("/").rpartition("/")[2] for path in files.ls(f"{place}/checkpoints", False)
        ]
    except FileNotFoundError:
        return []
    # Orbax renames a whole checkpoint into its place on a disk, and marks it in an object store
    local = isinstance(files, LocalFileSystem)
    return sorted(
        int(name)
        for name in names
        if name.isdigit()
        and (local or files.exists(f"{place}/checkpoints/{name}/commit_success.txt"))
    )


def _sound(folder: str, steps: list[int]) -> list[int]:
    """Those of the checkpoints that are sound; one that cannot be read counts as such."""
    files, place = opened(folder)
    saved = {}
    for step in steps:
        try:
            meta = json.loads(files.cat_file(f"{place}/checkpoints/{step}/meta/metadata"))
            saved[step] = skipped_of(meta)
        except (OSError, ValueError, TypeError, AttributeError):
            saved[step] = skipped_of({})
    return sound(saved)


def _state(beat: Beat, now: float) -> tuple[str, str]:
    """The state and what is to be said of it."""
    silence, still = now - beat["time"], now - beat["moved"]
    rate = beat.get("steps_per_second")
    patience = max(120.0, STEPS / rate) if rate else STARTING
    if beat["state"] in ENDS:
        end = ENDS[beat["state"]]
        reason = f": {beat['reason'].rstrip('.')}" if "reason" in beat else ""
        return end.word, f"{end.meaning}{reason}"
    if silence > GONE:
        return "silent", f"no sign of life for {format_duration(silence)}; {AGAIN}"
    if still > patience:
        return "still", f"it lives but has made no step for {format_duration(still)}; see its log"
    return "running", "steps go by" if rate else "starting or compiling"


def _never_started(folder: str, saved: list[int]) -> tuple[str, ...]:
    mend = f"start it with `polylm train --gin.train.folder={folder}`"
    if saved:
        mend = f"its model is ready to use, or {mend} to train it"
    return (
        f"{folder}: never started, as far as can be seen; there is no heartbeat file.",
        "Loss: none yet.",
        "Speed: none yet.",
        _saved(folder, saved),
        f"Needs you: {mend}.",
    )


def _ago(seconds: float) -> str:
    return f"seen {format_duration(max(seconds, 0))} ago"


def _loss_is_lost(beat: Beat) -> bool:
    """Whether the newest step's loss was no number: nothing is learned from such a step."""
    return "loss" in beat and (beat["loss"] is None or not math.isfinite(beat["loss"]))


def _loss(beat: Beat) -> str:
    if "loss" not in beat:
        return "Loss: none yet."
    if _loss_is_lost(beat):
        return "Loss: not a number."
    before = beat.get("loss_before")
    if not before or not math.isfinite(before):
        return f"Loss: {beat['loss']:.3f}, too early for a trend."
    change = beat["loss"] / before - 1
    trend = "steady" if abs(change) < 5e-4 else "falling" if change < 0 else "rising"
    return f"Loss: {beat['loss']:.3f}, {trend} ({change:+.1%} against the steps before)."


def _speed(beat: Beat) -> str:
    rate, tokens = beat.get("steps_per_second"), beat.get("tokens_per_second")
    if not rate or not tokens:
        return "Speed: none yet."
    left = format_duration((beat["steps"] - beat["step"]) / rate)
    return f"Speed: {rate:.3g} steps/s, {tokens:,.0f} tokens/s; ETA {left}."


def _saved(folder: str, saved: list[int]) -> str:
    if not saved:
        return "Checkpoints: none yet."
    last = f"Last checkpoint: step {saved[-1]:,}, of {', '.join(f'{step:,}' for step in saved)}"
    good = _sound(folder, saved)
    if saved[-1] in good:
        return f"{last}."
    newest = f"step {good[-1]:,} is the last sound one" if good else "none is sound"
    return f"{last}; it was saved while steps were skipped, and {newest}."


def _hosts(beat: Beat) -> str:
    if not beat.keys() >= {"skipped", "slowest_host"} or beat.get("slowest_host_seconds") is None:
        return "no step logged yet"
    memory = beat.get("memory_gib")
    return (
        f"{beat['skipped']} steps skipped, slowest process {beat['slowest_host']} "
        f"({beat['slowest_host_seconds']:.2g} s of its own a step)"
        + (f", {memory:.1f} GiB in use on the fullest device" if memory else "")
    )
