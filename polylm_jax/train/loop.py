"""The training run, in the order of time: mesh, data, state, steps, checkpoints."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from polylm_jax.chips import chip_of
from polylm_jax.console import format_duration
from polylm_jax.data.curriculum import (
    Curriculum,
    Schedule,
    consumed,
    integral,
    make_curriculum,
    share,
)
from polylm_jax.data.feed import batches
from polylm_jax.data.languages import is_bilingual
from polylm_jax.data.rows import Store, open_store
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Compute
from polylm_jax.model.parameters import Init, count
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import batch_sharding
from polylm_jax.sizes import Size, flops_per_token
from polylm_jax.train import checkpoint
from polylm_jax.train.metrics import Metrics, Speed
from polylm_jax.train.optimizer import OptimizerSettings
from polylm_jax.train.step import abstract_state, make_evaluate, make_state, make_update
from polylm_jax.train.validation import validation


@dataclass(frozen=True)
class Training:
    """A run. folder: where checkpoints, metrics and figures go; the same folder goes on.

    batch: rows of a step, over all devices. microbatches: parts a step is computed in.
    validate_every, checkpoint_every, log_every: in steps; validation and a checkpoint also
        come at the end. validate_rows: rows of each source. keep: checkpoints that stay.
    data_timeout: seconds that a step waits for its rows before the run ends with an error.
    """

    folder: str = "runs/polylm"
    steps: int = 610_000
    batch: int = 512
    microbatches: int = 1
    seed: int = 1234
    log_every: int = 10
    validate_every: int = 1000
    validate_rows: int = 8
    checkpoint_every: int = 500
    keep: int = 3
    data_timeout: float = 300.0


def train(
    training: Training,
    size: Size,
    init: Init,
    compute: Compute,
    mesh_shape: MeshShape,
    optimizer: OptimizerSettings,
    schedule: Schedule,
    rows: str,
    tokenizer: Tokenizer,
    gin: str,
) -> int:
    """Trains until training.steps, or until SIGINT or SIGTERM; returns the last step.

    rows: path of the row store. gin: the resolved configuration, saved with each checkpoint.
    Raises UserError for data, a mesh or a checkpoint that does not fit the configuration, and
    after optimizer.spike_patience skipped steps in a row, when all is saved.
    """
    mesh = make_mesh(mesh_shape)
    store = open_store(rows)
    _check(training, size, mesh, store, tokenizer)
    curriculum = make_curriculum(
        schedule, {source: store.rows(source, "train") for source in store.sources}, store.length
    )
    fingerprints = {
        "tokenizer": tokenizer.fingerprint,
        "row store": store.fingerprint,
        "curriculum": curriculum.fingerprint(),
    }
    _announce(training, size, mesh, store, curriculum)

    abstract = abstract_state(size, init, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    writer = jax.process_index() == 0
    with (
        jax.set_mesh(mesh),
        contextlib.closing(checkpoint.open_manager(training.folder, training.keep)) as manager,
        Metrics(training.folder, writer) as metrics,
        _stop_signals() as stopped,
    ):

        def check(meta: checkpoint.Meta) -> None:
            checkpoint.check_model(meta, size, training.folder)
            checkpoint.check_fingerprints(meta, fingerprints, training.folder)

        newest = checkpoint.restore_newest(manager, abstract, check, metrics.say)
        if newest is None:
            fresh = jax.jit(make_state(size, init, optimizer), out_shardings=shardings)
            state, step, row = fresh(jax.random.key(training.seed)), 0, 0
        else:
            step, meta, state = newest
            row = meta["rows"]
            metrics.say(f"Going on from step {step} of {training.folder}.")
        if writer:
            Path(training.folder, "tokenizer.model").write_bytes(tokenizer.model)
        if step >= training.steps:
            metrics.say(f"Step {step} of {training.steps} is done; raise train.steps to go on.")
            return step

        update = make_update(
            size, compute, optimizer, mesh, training.microbatches, len(curriculum.sources)
        )
        evaluate = make_evaluate(size, compute, mesh)

        def validate() -> None:
            part = training.batch // training.microbatches
            record = validation(
                evaluate, state["params"], mesh, store, tokenizer, training.validate_rows, part
            )
            metrics.write(record | {"step": step, "tokens": row * store.length})
            mean = np.mean(list(record["bits_per_byte"].values()))
            metrics.say(f"Step {step}: validation {mean:.3f} bits per byte (mean of sources).")

        def save() -> None:
            meta = checkpoint.meta_of(size, row, gin, fingerprints)
            checkpoint.save(manager, step, state, meta)

        report = _reporter(training, size, mesh, curriculum, metrics, row)
        if step == 0:
            validate()

        def tell(pending: tuple[int, int, dict[str, jax.Array]]) -> bool:
            """Logs a step; whether so many were skipped that the run must stop."""
            in_a_row = report(*pending)
            # a run that is started again may skip as many once more
            return in_a_row > 0 and in_a_row % optimizer.spike_patience == 0

        stuck = False
        pending = None  # metrics are fetched one step late, so that the devices never wait
        feed = batches(
            store, curriculum, batch_sharding(mesh), training.batch, row, training.data_timeout
        )
        with contextlib.closing(feed):
            while step < training.steps and not stopped.is_set() and not stuck:
                state, values = update(state, next(feed))
                step, row = step + 1, row + training.batch
                if pending is not None:
                    stuck = tell(pending)
                pending = (step, row, values)
                last_step = step == training.steps
                saves = step % training.checkpoint_every == 0 or last_step
                validates = step % training.validate_every == 0 or last_step
                if saves or validates:
                    # before the save, so that no step lies behind a checkpoint without a record
                    stuck |= tell(pending)
                    pending = None
                if saves:
                    save()
                if validates:
                    validate()
        if pending is not None:
            report(*pending)
        if manager.latest_step() != step:
            save()
        checkpoint.finish(manager)
        if stuck:
            raise UserError(
                f"{optimizer.spike_patience} steps in a row were skipped up to step {step}, as "
                "spikes or not finite; all is saved: lower optimizer.peak_learning_rate, or delete "
                f"the newest of {training.folder}/checkpoints to go back, or run the same command "
                "again to skip these rows and go on."
            )
        if step < training.steps:
            metrics.say(f"Stopped at step {step}, all saved; the same command goes on from there.")
        return step


def _reporter(
    training: Training, size: Size, mesh: Mesh, curriculum: Curriculum, metrics: Metrics, row: int
) -> Any:
    """Function (step, row, values) that logs a step and returns how many were skipped in a row.

    It keeps the realised counts and the speed.
    """
    counts = consumed(curriculum, row).astype(float)
    names, speed = curriculum.sources, Speed()
    english = np.array([name == "en" for name in names])
    monolingual = np.array(
        [not is_bilingual(name) and name not in curriculum.schedule.extras for name in names]
    )
    chip = chip_of(mesh.devices.flat[0].device_kind)
    tokens_a_step = training.batch * curriculum.length

    def non_english(x: np.ndarray) -> float:
        return float(x[monolingual & ~english].sum() / max(x[monolingual].sum(), 1e-9))

    def report(step: int, row: int, values: dict[str, jax.Array]) -> int:
        nonlocal counts
        fetched = jax.device_get(values)
        speed.tick()
        read = fetched["row_count"]
        counts = counts + read
        due = integral(curriculum, row)
        rate = speed.steps_per_second()
        per_second = rate and rate * tokens_a_step
        mfu = None
        if per_second and chip:
            mfu = per_second * flops_per_token(size, curriculum.length) / chip.flops / mesh.size
        record = {
            "kind": "train",
            "step": step,
            "rows": row,
            "tokens": row * curriculum.length,
            **{n: float(fetched[n]) for n in ("loss", "learning_rate", "gradient_norm")},
            "skipped": int(fetched["skipped"]),
            "tokens_per_second": per_second,
            "mfu": mfu,
            "non_english": non_english(read),
            "row_counts": dict(zip(names, counts.astype(int).tolist(), strict=True)),
            "schedule_counts": dict(zip(names, due.tolist(), strict=True)),
            "loss_by_source": {
                name: float(total / n / curriculum.length)
                for name, total, n in zip(names, fetched["loss_sum"], read, strict=True)
                if n
            },
        }
        metrics.write(record)
        if metrics.live or step % training.log_every == 0 or step == training.steps:
            parts = [
                f"step {step}/{training.steps}",
                f"loss {record['loss']:.3f}",
                f"non-English {non_english(share(curriculum, row)):.0%}",
                f"{per_second:,.0f} tokens/s" if per_second else "compiling",
            ]
            parts += [f"MFU {mfu:.1%}"] if mfu else []
            parts += [f"{record['skipped']} skipped"] if record["skipped"] else []
            if rate:
                parts.append(f"ETA {format_duration((training.steps - step) / rate)}")
            metrics.line(" · ".join(parts), last=step == training.steps)
        return int(fetched["skipped_in_a_row"])

    return report


def _check(training: Training, size: Size, mesh: Mesh, store: Store, tokenizer: Tokenizer) -> None:
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if training.batch % (ways * training.microbatches):
        raise UserError(
            f"train.batch = {training.batch} cannot be split over mesh data x fsdp = {ways} and "
            f"train.microbatches = {training.microbatches}; make it a multiple of "
            f"{ways * training.microbatches}."
        )
    if tokenizer.size > size.vocabulary:
        raise UserError(
            f"the tokenizer has {tokenizer.size} pieces but model.vocabulary is "
            f"{size.vocabulary}; set model.vocabulary to at least that."
        )
    if store.tokenizer_fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"the rows in {store.path} were made with another tokenizer; run `polylm rows` again "
            "or give the tokenizer they were made with."
        )
    if store.length > size.context:
        raise UserError(
            f"rows of {store.length} tokens do not fit model.context = {size.context}; set "
            "rows.length to at most that and run `polylm rows` again."
        )


def _announce(
    training: Training, size: Size, mesh: Mesh, store: Store, curriculum: Curriculum
) -> None:
    if jax.process_index() != 0:
        return
    axes = " x ".join(f"{axis} {ways}" for axis, ways in mesh.shape.items())
    tokens = training.steps * training.batch * store.length
    print(
        f"Training {count(size):,} parameters on {mesh.size} {mesh.devices.flat[0].device_kind} "
        f"devices ({axes}).\n"
        f"Reading {tokens:,} tokens from {len(curriculum.sources)} sources in {store.path}, "
        f"{training.batch} rows of {store.length} a step, {training.steps} steps.\n"
        f"Writing checkpoints, metrics and figures to {training.folder}.",
        flush=True,
    )


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one ends the process as usual."""
    event = threading.Event()
    former: dict[signal.Signals, Any] = {}

    def stop(number: int, frame: Any) -> None:
        event.set()
        for each, handler in former.items():
            signal.signal(each, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        if threading.current_thread() is threading.main_thread():
            former[number] = signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
