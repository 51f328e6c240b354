"""The training run, in the order of time: mesh, data, state, steps, checkpoints."""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from polylm_jax.data.curriculum import Curriculum, Schedule, make_curriculum, rows_until_out
from polylm_jax.data.feed import batches
from polylm_jax.data.rows import Store, open_store
from polylm_jax.data.tokenizer import MODEL, Tokenizer
from polylm_jax.errors import UserError
from polylm_jax.files import put
from polylm_jax.model.decoder import Compute
from polylm_jax.model.parameters import Init, count
from polylm_jax.parallel import hosts
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import batch_sharding
from polylm_jax.sizes import Size
from polylm_jax.train import checkpoint
from polylm_jax.train.ends import ENDS, RunEnded, end_of
from polylm_jax.train.heartbeat import Heartbeat
from polylm_jax.train.metrics import Clock, Metrics
from polylm_jax.train.optimizer import OptimizerSettings
from polylm_jax.train.progress import make_report
from polylm_jax.train.step import State, abstract_state, make_evaluate, make_state, make_update
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


@dataclass(frozen=True)
class Run:
    """What the steps of a run need, opened and compiled once."""

    training: Training
    patience: int
    size: Size
    mesh: Mesh
    store: Store
    tokenizer: Tokenizer
    curriculum: Curriculum
    gin: str
    fingerprints: dict[str, str]
    manager: Any
    metrics: Metrics
    heartbeat: Heartbeat
    stopped: threading.Event
    update: Callable[..., tuple[State, dict[str, jax.Array]]]
    evaluate: Callable[..., jax.Array]


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
) -> None:
    """Trains until training.steps are done.

    rows: path of the row store. gin: the resolved configuration, saved with each checkpoint.
    Raises RunEnded for each end before that, and UserError for data, a mesh or a checkpoint that
    does not fit the configuration.
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
        Heartbeat(training.folder, writer) as heartbeat,
        contextlib.closing(checkpoint.open_manager(training.folder, training.keep)) as manager,
        Metrics(training.folder, writer) as metrics,
        hosts.stop_signals() as stopped,
    ):
        fresh = jax.jit(make_state(size, init, optimizer), out_shardings=shardings)

        def load(step: int, meta: checkpoint.Meta) -> State:
            checkpoint.check_model(meta, size, training.folder)
            checkpoint.check_fingerprints(meta, fingerprints, training.folder)
            if not meta.get("imported"):
                return checkpoint.restore(manager, step, abstract)
            params = checkpoint.restore_params(manager, step, size, mesh)
            return fresh(jax.random.key(training.seed)) | {"params": params}

        newest = checkpoint.restore_newest(manager, load, metrics.say)
        if newest is None:
            state, step, row = fresh(jax.random.key(training.seed)), 0, 0
        else:
            step, meta, state = newest
            row = meta["rows"]
            metrics.say(f"Going on from step {step} of {training.folder}.")
            for record in meta.get("unlogged", []):
                metrics.write(record)
        if writer:
            put(f"{training.folder}/{MODEL}", tokenizer.model)
        if step >= training.steps:
            metrics.say(f"Step {step} of {training.steps} is done; raise train.steps to go on.")
            return
        heartbeat.tell(step=step, steps=training.steps, processes=jax.process_count())

        update = make_update(
            size, compute, optimizer, mesh, training.microbatches, len(curriculum.sources)
        )
        evaluate = make_evaluate(size, compute, mesh)
        run = Run(
            training,
            optimizer.spike_patience,
            size,
            mesh,
            store,
            tokenizer,
            curriculum,
            gin,
            fingerprints,
            manager,
            metrics,
            heartbeat,
            stopped,
            update,
            evaluate,
        )
        end = go_on(run, step, row, state)
        if end is not None:
            raise end
        heartbeat.tell(state="finished")


def go_on(run: Run, step: int, row: int, state: State) -> RunEnded | None:
    """Makes steps until the last one is done, or one of the other ends is there, and saves.

    step, row: steps done and rows read when the state was as it is. Returns the end on which all
    processes agree, None where all steps are done; raises what one of them cannot share.
    """
    training, manager, metrics = run.training, run.manager, run.metrics
    rows, out_of_rows = rows_until_out(
        run.curriculum, row + (training.steps - step) * training.batch
    )
    last = step + (rows - row) // training.batch
    if last < training.steps:
        metrics.say(f"Only {last} of {training.steps} steps can be done: then {out_of_rows}")
    exchange, clock = hosts.make_exchange(run.mesh), Clock()
    report = make_report(
        training.steps,
        training.log_every,
        training.batch,
        run.size,
        run.mesh,
        run.curriculum,
        row,
        metrics,
        run.heartbeat,
        clock,
    )
    skipped = int(state["skipped_in_a_row"])
    # a run that is started again may skip as many once more
    limit = (skipped // run.patience + 1) * run.patience
    # metrics are fetched one step late, so that the devices never wait
    pending: tuple[int, int, dict[str, jax.Array]] | None = None
    end: RunEnded | None = None
    notes: Any = None

    def tell() -> None:
        """Logs the step that is pending, and finds out whether the run must end."""
        nonlocal pending, skipped, end
        if pending is not None:
            one, pending = pending, None
            asked, skipped = report(*one, notes)
            if end is None and skipped >= limit:
                end = _stuck(run, one[0], step)
            elif end is None and asked:
                end = _asked(run, asked, step)

    def validate() -> None:
        part = training.batch // training.microbatches
        with clock.on("validation"):
            record = validation(
                run.evaluate,
                state["params"],
                run.mesh,
                run.store,
                run.tokenizer,
                training.validate_rows,
                part,
            )
        metrics.write(record | {"step": step, "tokens": row * run.store.length})
        mean = np.mean(list(record["bits_per_byte"].values()))
        metrics.say(f"Step {step}: validation {mean:.3f} bits per byte (mean of sources).")

    def save() -> None:
        meta = checkpoint.meta_of(run.size, row, run.gin, run.fingerprints)
        if metrics.unwritten:
            meta["unlogged"] = metrics.unwritten
        with clock.on("checkpoint"):
            checkpoint.save(manager, step, state, meta)
            metrics.publish()

    def save_last() -> None:
        tell()
        if manager.latest_step() != step:
            save()
        checkpoint.finish(manager)

    try:
        if step == 0:
            validate()
        feed = batches(
            run.store,
            run.curriculum,
            batch_sharding(run.mesh),
            training.batch,
            row,
            training.data_timeout,
        )
        with contextlib.closing(feed):
            while step < last and end is None:
                with clock.on("data"):
                    batch = next(feed)
                notes = exchange(hosts.notes_of(_wish(run), clock.last))
                state, values = run.update(state, batch)
                step, row = step + 1, row + training.batch
                tell()
                pending = (step, row, values)
                last_step = step == training.steps
                saves = step % training.checkpoint_every == 0 or last_step
                validates = step % training.validate_every == 0 or last_step
                if saves or validates:
                    # before the save, so that no step lies behind a checkpoint without a record
                    tell()
                if saves:
                    save()
                if validates:
                    validate()
        save_last()
    except RunEnded:
        raise  # the save itself has failed
    except Exception as error:
        raise _saved_before(error, run, step, state, save_last) from error
    if end is None and last < training.steps:
        end = RunEnded("out of data", f"{out_of_rows} Step {step} of {training.steps} is saved.")
    return end


def _wish(run: Run) -> int:
    """Exit status with which this process wants the run to end, 0 for none."""
    if run.metrics.error is not None:
        return end_of(run.metrics.error).status
    return ENDS["stopped"].status if run.stopped.is_set() else 0


def _stuck(run: Run, skipped_to: int, step: int) -> RunEnded:
    return RunEnded(
        "stuck",
        f"{run.patience} steps in a row were skipped up to step {skipped_to}, as spikes or not "
        f"finite; step {step} is saved: lower optimizer.peak_learning_rate, or delete the newest "
        f"of {run.training.folder}/checkpoints to go back, or run the same command again to skip "
        "these rows and go on.",
    )


def _asked(run: Run, status: int, step: int) -> RunEnded | None:
    """The end that a process has asked for, None where it comes too late to matter."""
    folder, steps = run.training.folder, run.training.steps
    if status == ENDS["stopped"].status:
        if step == steps:
            return None
        reason = f"it was asked to stop and did at step {step} of {steps}, all saved"
        return RunEnded("stopped", f"{reason}; the same command goes on from there.")
    word = next(end.word for end in ENDS.values() if end.status == status)
    error = run.metrics.error
    why = end_of(error).reason if error else "process 0 says why."
    return RunEnded(
        word,
        f"the log of {folder} cannot be written: {why} Step {step} of {steps} is saved; mend that "
        "and run the same command again.",
    )


def _saved_before(
    error: Exception, run: Run, step: int, state: State, save: Callable[[], None]
) -> RunEnded:
    """The end that an error is, once the state is saved, if it can be."""
    end, steps = end_of(error), run.training.steps
    gone = any(leaf.is_deleted() for leaf in jax.tree.leaves(state))  # given to a step that failed
    if not gone and step and hosts.all_come(f"end/{step}"):
        try:
            save()
            return RunEnded(end.word, f"{end.reason} Step {step} of {steps} is saved.")
        except Exception as second:
            end = RunEnded(end.word, f"{end.reason} And then: {end_of(second).reason}")
    newest = run.manager.latest_step()
    return RunEnded(
        end.word,
        f"{end.reason} What came after step {newest} is not saved"
        + ("." if jax.process_count() == 1 else ", which all processes do together."),
    )


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
