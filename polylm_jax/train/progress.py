"""What a run says of each step: a record for its log, a live line, a heartbeat."""

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from polylm_jax.chips import chip_of
from polylm_jax.console import format_duration
from polylm_jax.data.curriculum import consumed, integral, share
from polylm_jax.data.languages import is_mixed, non_english_share
from polylm_jax.data.schedule import Curriculum
from polylm_jax.parallel.hosts import Notes
from polylm_jax.train.heartbeat import Heartbeat
from polylm_jax.train.metrics import Clock, Metrics

RECENT = 20  # steps whose median pace is the speed, and whose mean loss the heartbeat tells

Record = dict[str, Any]
Report = Callable[[int, int, dict[str, jax.Array], jax.Array, bool], tuple[int, int]]


def make_report(
    steps: int,
    log_every: int,
    batch: int,
    flops: float,
    mesh: Mesh,
    curriculum: Curriculum,
    row: int,
    metrics: Metrics,
    heartbeat: Heartbeat,
    clock: Clock,
) -> Report:
    """Function (step, row, values, notes, whole) that logs a step.

    It returns the exit status with which a process asks to end, 0 for none, and how many steps
    were skipped in a row.

    It waits until the devices have done the step, so it is called when the next one is on its
    way. values: the step's metrics. notes: of all processes, float32 [devices, Notes], the
    newest there are. whole: whether the record is to be whole whatever the step, as before a
    checkpoint. row: the first that is not counted yet. flops: of a token.

    Each record has the numbers of its step, "non_english", the share of its batch, and
    "deviation", how many rows the source furthest from its schedule is off after it. Every
    log_every steps, and at the last one, a record is whole: also the rows of each source since
    the run began, as read and as scheduled; and of the steps since the whole record before, the
    mean loss of each source, over its learned tokens, and the seconds that were spent on each
    thing.
    """
    counts = consumed(curriculum, row).astype(float)
    names = curriculum.sources
    since = Since(len(names))
    paces = deque[float](maxlen=RECENT)
    losses = deque[float](maxlen=2 * RECENT)
    laps = 0
    chip = chip_of(mesh.devices.flat[0].device_kind)
    tokens_a_step = batch * curriculum.length

    def report(
        step: int, row: int, values: dict[str, jax.Array], notes: jax.Array, whole: bool
    ) -> tuple[int, int]:
        nonlocal counts, laps, since
        with clock.on("devices"):
            fetched, told = jax.device_get((values, notes))
        lap, laps = clock.lap(), laps + 1
        if laps > 1:  # the first one compiles
            paces.append(lap["step"])
        rate = 1 / statistics.median(paces) if paces else None
        read, due = fetched["row_count"], integral(curriculum, row)
        counts = counts + read
        since.add(lap, fetched["loss_sum"], fetched["token_count"])
        per_second = rate and rate * tokens_a_step
        mfu = None
        if per_second and chip:
            mfu = per_second * flops / chip.flops / mesh.size
        losses.append(float(fetched["loss"]))
        record = {
            "kind": "train",
            "step": step,
            "tokens": row * curriculum.length,
            **{n: _shortest(fetched[n]) for n in ("loss", "learning_rate", "gradient_norm")},
            **{n: int(fetched[n]) for n in RULED},
            "tokens_per_second": per_second and round(per_second, 1),
            "non_english": round(float(non_english_share(names, read)), 4),
            "deviation": round(float(np.abs(counts - due).max()), 6),
        }
        of_hosts = _of_hosts(told, mesh)
        last = step == steps
        regular = (log_every and step % log_every == 0) or last
        if whole or regular:
            metrics.write(
                record
                | {"rows": row, "mfu": mfu, **of_hosts}
                | {"seconds": {what: round(spent, 4) for what, spent in since.seconds.items()}}
                | {"row_counts": dict(zip(names, counts.astype(int).tolist(), strict=True))}
                | {"schedule_counts": dict(zip(names, due.round(3).tolist(), strict=True))}
                | {"loss_by_source": since.losses(names)}
            )
            since = Since(len(names))
        else:
            metrics.write(record)
        heartbeat.tell(
            **{n: record[n] for n in ("step", "tokens", *RULED, "tokens_per_second")},
            **of_hosts,
            steps_per_second=rate,
            **_recent(list(losses)),
        )
        if metrics.live or regular:
            planned = None
            if is_mixed(names):
                planned = float(non_english_share(names, share(curriculum, row)))
            metrics.line(_line(record, steps, planned, rate, mfu), last)
        return int(Notes(*told.max(axis=0)).stop), int(fetched["skipped_in_a_row"])

    return report


RULED = ("skipped", "levels")  # by the spike rule: steps skipped, levels followed


class Since:
    """What is summed up from one whole record to the next."""

    def __init__(self, sources: int) -> None:
        self.seconds: dict[str, float] = {}
        self._nats, self._tokens = np.zeros(sources), np.zeros(sources)

    def add(self, lap: dict[str, float], nats: np.ndarray, tokens: np.ndarray) -> None:
        """Adds a step: its seconds, and each source's summed loss and learned tokens [sources].

        A loss that is no number does not count: one such step would hide all the others.
        """
        self.seconds = {n: self.seconds.get(n, 0.0) + lap.get(n, 0.0) for n in self.seconds | lap}
        sound = np.isfinite(nats)
        self._nats += np.where(sound, nats, 0.0)
        self._tokens += np.where(sound, tokens, 0.0)

    def losses(self, names: Sequence[str]) -> dict[str, float]:
        """Mean nats per learned token of each source that had any."""
        return {
            name: float(f"{nats / tokens:.5g}")
            for name, nats, tokens in zip(names, self._nats, self._tokens, strict=True)
            if tokens
        }


def _shortest(number: np.ndarray) -> float:
    """A float32 in the fewest digits that tell it from all others."""
    return float(str(np.float32(number)))


def _recent(losses: list[float]) -> Record:
    """The mean of the newest losses and of those before, for the heartbeat; None is no number.

    One step that is no number is skipped and forgotten: the newest step says how the run is.
    """
    newest, before = (
        [loss for loss in part if math.isfinite(loss)]
        for part in (losses[-RECENT:], losses[:-RECENT])
    )
    sound = math.isfinite(losses[-1])
    return {
        "loss": statistics.fmean(newest) if sound else None,
        "loss_before": statistics.fmean(before) if before else None,
    }


HOSTS = ("slowest_host", "slowest_host_seconds", "memory_gib")


def _of_hosts(told: np.ndarray, mesh: Mesh) -> Record:
    """The process that waits least for its devices, its seconds, the fullest device's GiB."""
    busy, memory = (told[:, Notes._fields.index(name)] for name in ("busy", "memory"))
    slowest = int(busy.argmax())
    values = (
        mesh.devices.flat[slowest].process_index,
        float(busy[slowest]),
        float(memory.max()) or None,
    )
    return dict(zip(HOSTS, values, strict=True))


def _line(
    record: Record, steps: int, non_english: float | None, rate: float | None, mfu: float | None
) -> str:
    """The live line. non_english: share asked for, None where it says nothing. rate: steps a
    second, mfu: model flops utilisation; None while not known."""
    loss, speed, skipped, levels = (record[n] for n in ("loss", "tokens_per_second", *RULED))
    parts = [
        f"step {record['step']}/{steps}",
        f"loss {loss:.3f}" if math.isfinite(loss) else "the loss is not a number",
        f"non-English {non_english:.0%}" if non_english is not None else "",
        f"{speed:,.0f} tokens/s" if speed else "compiling",
        f"MFU {mfu:.1%}" if mfu else "",
        f"{skipped} skipped" if skipped else "",
        f"{levels} levels followed" if levels else "",
        f"ETA {format_duration((steps - record['step']) / rate)}" if rate else "",
    ]
    return " · ".join(filter(None, parts))
