"""What a run says of each step: a record for its log, a live line, a heartbeat."""

import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from polylm_jax.chips import chip_of
from polylm_jax.console import format_duration
from polylm_jax.data.curriculum import Curriculum, consumed, integral, share
from polylm_jax.data.languages import is_bilingual
from polylm_jax.parallel.hosts import Notes
from polylm_jax.sizes import Size, flops_per_token
from polylm_jax.train.heartbeat import Heartbeat
from polylm_jax.train.metrics import Clock, Metrics

RECENT = 20  # steps whose median pace is the speed, and whose mean loss the heartbeat tells

Record = dict[str, Any]
Report = Callable[[int, int, dict[str, jax.Array], jax.Array], tuple[int, int]]


def make_report(
    steps: int,
    log_every: int,
    batch: int,
    size: Size,
    mesh: Mesh,
    curriculum: Curriculum,
    row: int,
    metrics: Metrics,
    heartbeat: Heartbeat,
    clock: Clock,
) -> Report:
    """Function (step, row, values, notes) that logs a step.

    It returns the exit status with which a process asks to end, 0 for none, and how many steps
    were skipped in a row.

    It waits until the devices have done the step, so it is called when the next one is on its
    way. values: the step's metrics. notes: of all processes, float32 [devices, Notes], the
    newest there are. row: the first that is not counted yet.
    """
    counts = consumed(curriculum, row).astype(float)
    names = curriculum.sources
    paces = deque[float](maxlen=RECENT)
    losses = deque[float](maxlen=2 * RECENT)
    laps = 0
    chip = chip_of(mesh.devices.flat[0].device_kind)
    tokens_a_step = batch * curriculum.length
    non_english = _non_english(curriculum)

    def report(
        step: int, row: int, values: dict[str, jax.Array], notes: jax.Array
    ) -> tuple[int, int]:
        nonlocal counts, laps
        with clock.on("devices"):
            fetched, told = jax.device_get((values, notes))
        lap, laps = clock.lap(), laps + 1
        if laps > 1:  # the first one compiles
            paces.append(lap["step"])
        rate = 1 / statistics.median(paces) if paces else None
        read = fetched["row_count"]
        counts = counts + read
        per_second = rate and rate * tokens_a_step
        mfu = None
        if per_second and chip:
            mfu = per_second * flops_per_token(size, curriculum.length) / chip.flops / mesh.size
        losses.append(float(fetched["loss"]))
        record = {
            "kind": "train",
            "step": step,
            "rows": row,
            "tokens": row * curriculum.length,
            **{n: float(fetched[n]) for n in ("loss", "learning_rate", "gradient_norm")},
            **{n: int(fetched[n]) for n in RULED},
            "tokens_per_second": per_second,
            "mfu": mfu,
            "seconds": lap,
            **_of_hosts(told, mesh),
            "non_english": non_english(read),
            "row_counts": dict(zip(names, counts.astype(int).tolist(), strict=True)),
            "schedule_counts": dict(zip(names, integral(curriculum, row).tolist(), strict=True)),
            "loss_by_source": {
                name: float(total / n / curriculum.length)
                for name, total, n in zip(names, fetched["loss_sum"], read, strict=True)
                if n
            },
        }
        metrics.write(record)
        recent, before = list(losses)[-RECENT:], list(losses)[:-RECENT]
        heartbeat.tell(
            **{n: record[n] for n in ("step", "tokens", *RULED, "tokens_per_second", *HOSTS)},
            steps_per_second=rate,
            loss=statistics.fmean(recent),
            loss_before=statistics.fmean(before) if before else None,
        )
        if metrics.live or step % log_every == 0 or step == steps:
            planned = non_english(share(curriculum, row))
            metrics.line(_line(record, steps, planned, rate), last=step == steps)
        return int(Notes(*told.max(axis=0)).stop), int(fetched["skipped_in_a_row"])

    return report


RULED = ("skipped", "levels")  # by the spike rule: steps skipped, levels followed
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


def _non_english(curriculum: Curriculum) -> Callable[[np.ndarray], float]:
    """Function from rows of each source [sources] to the non-English share of the monolingual."""
    names, extras = curriculum.sources, curriculum.schedule.extras
    english = np.array([name == "en" for name in names])
    monolingual = np.array([not is_bilingual(name) and name not in extras for name in names])
    return lambda x: float(x[monolingual & ~english].sum() / max(x[monolingual].sum(), 1e-9))


def _line(record: Record, steps: int, non_english: float, rate: float | None) -> str:
    """The live line. rate: steps a second, None while it is not known."""
    speed, mfu, skipped, levels = (record[n] for n in ("tokens_per_second", "mfu", *RULED))
    parts = [
        f"step {record['step']}/{steps}",
        f"loss {record['loss']:.3f}",
        f"non-English {non_english:.0%}",
        f"{speed:,.0f} tokens/s" if speed else "compiling",
        f"MFU {mfu:.1%}" if mfu else "",
        f"{skipped} skipped" if skipped else "",
        f"{levels} levels followed" if levels else "",
        f"ETA {format_duration((steps - record['step']) / rate)}" if rate else "",
    ]
    return " · ".join(filter(None, parts))
