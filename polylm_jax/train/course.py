"""What a run reads and began with, and how its checkpoints note that.

A run may go on with another schedule or other rows where that is accepted by name, at a checkpoint.
Each checkpoint notes all stages of the run so far, so that its order of rows can be made again from
it alone; and from the change on it is as exact as from the start, on any number of processes.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polylm_jax.data.continued import continued
from polylm_jax.data.rows import Store
from polylm_jax.data.schedule import Curriculum, Schedule, make_curriculum
from polylm_jax.errors import UserError
from polylm_jax.ranges import fit, hints_of
from polylm_jax.train import checkpoint
from polylm_jax.train.heartbeat import read_heartbeat
from polylm_jax.train.retention import Meta

Stage = dict[str, Any]


@dataclass(frozen=True)
class Course:
    """stages: of the run so far, as its checkpoints note them. origin: what it began with where
    that was another run, else {}."""

    curriculum: Curriculum
    stages: list[Stage]
    origin: dict[str, Any]

    @property
    def noted(self) -> Meta:
        """What a checkpoint keeps of it."""
        return {"stages": self.stages} | ({"origin": self.origin} if self.origin else {})

    @property
    def records(self) -> list[dict[str, Any]]:
        """What a log says of it: the origin, and each change of stage."""
        found = []
        if self.origin:
            run, step, moments = (self.origin[name] for name in ("run", "step", "moments"))
            of = "parameters and moments" if moments else "parameters"
            said = f"began with the {of} of {run} at step {step:,}"
            found.append({"kind": "origin", "step": 0, "tokens": 0, "said": said})
        for stage in self.stages[1:]:
            what = " and another ".join(stage["changed"])
            said = f"has another {what} from step {stage['step']:,} on"
            tokens = stage["row"] * self.curriculum.length
            found.append({"kind": "change", "step": stage["step"], "tokens": tokens, "said": said})
        return found


def begun(schedule: Schedule, store: Store, origin: dict[str, Any]) -> Course:
    """The course of a run from its first row on."""
    return _course([_stage(schedule, store, 0, 0)], store.length, origin)


def going_on(
    meta: Meta, step: int, accepted: int, schedule: Schedule, store: Store, folder: str
) -> tuple[Course, list[str]]:
    """The course of a run that goes on from a checkpoint, and what is to be said of it.

    accepted: the step of the checkpoint from which on a change holds, 0 for none. UserError where
    something has changed that is not accepted, or cannot be.
    """
    prints, stages = meta["fingerprints"], meta.get("stages", [])
    origin = meta.get("origin", {})
    if "curriculum" not in prints:  # an imported run has read nothing yet
        return begun(schedule, store, origin), []
    changed = [] if store.fingerprint == prints["row store"] else ["row store"]
    if not stages:
        course = begun(schedule, store, origin)
    elif not changed and _schedule(stages[-1]) == dataclasses.replace(
        schedule, on_end=stages[-1]["schedule"]["on_end"]
    ):
        # what happens at the end of a source changes no row before it
        now = stages[-1] | {"schedule": dataclasses.asdict(schedule)}
        course = _course([*stages[:-1], now], store.length, origin)
    else:
        course = None
    if course is None or prints["curriculum"] not in {
        course.curriculum.with_end(end).fingerprint() for end in ("repeat", "refuse")
    }:
        changed.append("curriculum")
    if not changed and course:
        return course, []
    if accepted != step:
        raise UserError(
            f"the checkpoint in {folder} was trained with another "
            f"{' and another '.join(changed)}; put the former one back, choose another "
            f"train.folder, or go on with what is new with train.accept_changes = {step}."
        )
    if not stages:
        raise UserError(
            f"the checkpoint of step {step} in {folder} is of a former version and does not note "
            "its curriculum; go on with the former settings to the next checkpoint and change them "
            "there."
        )
    if stages[-1]["length"] != store.length:
        raise UserError(
            f"the checkpoint in {folder} has read rows of {stages[-1]['length']} tokens and those "
            f"in {store.path} have {store.length}; give rows of the same length."
        )
    return _changed(stages, _stage(schedule, store, step, meta["rows"]), changed, store, origin)


def planned(folder: str, accepted: int, schedule: Schedule, store: Store) -> Curriculum:
    """What the run in a folder reads, after its changes so far and the one that is accepted; that
    of a run from the start where none of either is known. UserError as of going_on."""
    beat = read_heartbeat(folder) or {}
    if not (accepted or beat.get("history")):
        return begun(schedule, store, {}).curriculum
    manager = checkpoint.open_existing(folder)
    step, _ = checkpoint.newest_sound(manager)
    try:
        meta = checkpoint.read_meta(manager, step)
    except checkpoint.DAMAGE as error:
        raise checkpoint.damaged(manager, step, error) from error
    manager.close()
    return going_on(meta, step, accepted, schedule, store, folder)[0].curriculum


def course_of(meta: Meta) -> Curriculum | None:
    """The order of a run's rows as a checkpoint notes it; None where it notes none."""
    stages = meta.get("stages")
    return _course(stages, stages[0]["length"], {}).curriculum if stages else None


def _changed(
    stages: list[Stage], stage: Stage, changed: list[str], store: Store, origin: dict[str, Any]
) -> tuple[Course, list[str]]:
    """The course with one stage more, and what it does with the rows of the one before."""
    before = stages[-1]
    same = [s for s in before["streams"] if _begins_with(store, s, before)]
    now = stage | {"changed": changed, "same": same}
    course = _course([*stages, now], store.length, origin)
    grown = [s for s in same if stage["rows"][s] > before["rows"][s]]
    anew = [s for s in stage["rows"] if s in before["streams"] and s not in same]
    said = [f"The run {course.records[-1]['said']}."]
    if grown:
        said.append(f"More rows of {', '.join(grown)}: those that are read are not read again.")
    if anew:
        said.append(f"Other rows of {', '.join(anew)}: they are read from the beginning.")
    return course, said


def _stage(schedule: Schedule, store: Store, step: int, row: int) -> Stage:
    """A stage that begins with these rows. streams: what tells each source's rows."""
    trained = {source: store.manifest["sources"][source]["train"] for source in store.sources}
    return {
        "step": step,
        "row": row,
        "length": store.length,
        "schedule": dataclasses.asdict(schedule),
        "rows": {source: entry["rows"] for source, entry in trained.items()},
        "streams": {source: entry.get("sha256", "") for source, entry in trained.items()},
    }


def _begins_with(store: Store, source: str, before: Stage) -> bool:
    """Whether the first rows of a source are those that it had before."""
    if source not in store.sources:
        return False
    had = {"rows": before["rows"][source], "sha256": before["streams"][source]}
    entry = store.manifest["sources"][source]["train"]
    return any(
        had == {name: one.get(name) for name in had} for one in [entry, *entry.get("extends", [])]
    )


def _course(stages: Sequence[Stage], length: int, origin: dict[str, Any]) -> Course:
    first, *later = stages
    curriculum = make_curriculum(_schedule(first), first["rows"], length)
    for stage in later:
        curriculum = continued(
            curriculum, _schedule(stage), stage["rows"], stage["row"], stage["same"]
        )
    return Course(curriculum, list(stages), origin)


def _schedule(stage: Stage) -> Schedule:
    """The schedule of a stage, of which JSON has made lists. What is no setting now is left out."""
    hints = hints_of(Schedule)
    return Schedule(
        **{
            name: fit(value, hints[name], f"curriculum.{name}")
            for name, value in stage["schedule"].items()
            if name in hints
        }
    )
