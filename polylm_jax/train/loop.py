"""The training run, in the order of time: mesh, data, state, steps, checkpoints."""

import contextlib
from dataclasses import dataclass
from typing import Annotated

import jax
from jax.sharding import Mesh

from polylm_jax.data.curriculum import Curriculum, Schedule, make_curriculum
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
from polylm_jax.ranges import Range, Seed, check
from polylm_jax.sizes import Count, Size
from polylm_jax.train import checkpoint
from polylm_jax.train.heartbeat import Heartbeat
from polylm_jax.train.metrics import Clock, Metrics
from polylm_jax.train.optimizer import OptimizerSettings
from polylm_jax.train.progress import make_report
from polylm_jax.train.remarks import differences, remarks
from polylm_jax.train.step import State, abstract_state, make_evaluate, make_state, make_update
from polylm_jax.train.validation import held_out, told, validation


@dataclass(frozen=True)
class Training:
    """A run. folder: where checkpoints, metrics and figures go; the same folder goes on.

    batch: rows of a step, over all devices. microbatches: parts a step is computed in.
    validate_every: steps from one validation to the next; one also comes before the first step
        and after the last. 0: none at all. validate_rows: rows of each source.
    checkpoint_every: steps from one to the next; one also comes at the end. 0: only that one.
    keep: checkpoints that stay. log_every: steps from one line to the next; 0: only the last.
    data_timeout: seconds that a step waits for its rows before the run ends with an error; 0: it
        waits for ever.
    """

    folder: str = "runs/polylm"
    steps: Count = 610_000
    batch: Count = 512
    microbatches: Count = 1
    seed: Seed = 1234
    log_every: Annotated[int, Range(1, also=(0, "only the last step"))] = 10
    validate_every: Annotated[int, Range(1, also=(0, "no validation"))] = 1000
    validate_rows: Count = 8
    checkpoint_every: Annotated[int, Range(1, also=(0, "only at the end"))] = 500
    keep: Annotated[int, Range(1, note="a large number keeps all")] = 3
    data_timeout: Annotated[float, Range(0.001, 1e8, also=(0, "no limit"))] = 300.0

    def __post_init__(self) -> None:
        check(self, "train")
        if self.batch % self.microbatches:
            raise UserError(
                f"train.microbatches = {self.microbatches} does not divide train.batch = "
                f"{self.batch}; choose a number that does."
            )

    def saves(self, step: int) -> bool:
        """Whether a checkpoint comes after this step."""
        return step == self.steps or _due(step, self.checkpoint_every)

    def validates(self, step: int) -> bool:
        """Whether a validation comes after this step; 0 is before the first."""
        return _due(step, self.validate_every) or (step == self.steps and self.validate_every > 0)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


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
    """Trains until training.steps, or SIGINT or SIGTERM in any process; returns the last step.

    rows: path of the row store. gin: the resolved configuration, saved with each checkpoint.
    Raises UserError for data, a mesh or a checkpoint that does not fit the configuration.
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
        changed = [] if newest is None or meta.get("imported") else differences(meta["gin"], gin)
        tokens = training.steps * training.batch * store.length
        for line in [*changed, *remarks(training.steps, optimizer, schedule, tokens)]:
            metrics.say(line)
        if writer:
            put(f"{training.folder}/{MODEL}", tokenizer.model)
        if step < training.steps or metrics.reaches_beyond(step):
            metrics.start(step)
        if step >= training.steps:
            metrics.say(f"Step {step} of {training.steps} is done; raise train.steps to go on.")
            return step
        heartbeat.tell(step=step, steps=training.steps, processes=jax.process_count())

        update = make_update(
            size, compute, optimizer, mesh, training.microbatches, len(curriculum.sources)
        )
        evaluate = make_evaluate(size, compute, mesh)
        exchange, clock = hosts.make_exchange(mesh), Clock()

        counts = held_out(store, training.validate_rows)
        if not counts:
            metrics.say(f"There is nothing to validate on: {store.path} has no held-out rows.")

        def validate() -> None:
            if not counts:
                return
            part = training.batch // training.microbatches
            with clock.on("validation"):
                record = validation(evaluate, state["params"], mesh, store, tokenizer, counts, part)
            metrics.write(record | {"step": step, "tokens": row * store.length})
            metrics.say(f"Step {step}: {told(record)}.")

        def save() -> None:
            meta = checkpoint.meta_of(size, row, gin, fingerprints)
            with clock.on("checkpoint"):
                checkpoint.save(manager, step, state, meta)
                metrics.publish()

        report = make_report(
            training.steps,
            training.log_every,
            training.batch,
            size,
            mesh,
            curriculum,
            row,
            metrics,
            heartbeat,
            clock,
        )
        if step == 0 and training.validates(0):
            validate()
        # metrics are fetched one step late, so that the devices never wait
        pending: tuple[int, int, dict[str, jax.Array]] | None = None
        stop = stuck = False

        def tell(notes: jax.Array, whole: bool = False) -> None:
            """Logs the step that is pending, and looks whether the run must stop."""
            nonlocal pending, stop, stuck
            assert pending
            asked, skipped = report(*pending, notes, whole)
            # a run that is started again may skip as many once more
            stuck = skipped > 0 and skipped % optimizer.spike_patience == 0
            pending, stop = None, asked or stuck

        feed = batches(
            store, curriculum, batch_sharding(mesh), training.batch, row, training.data_timeout
        )
        with contextlib.closing(feed):
            while step < training.steps and not stop:
                with clock.on("data"):
                    batch = next(feed)
                notes = exchange(hosts.notes_of(stopped, clock.last))
                state, values = update(state, batch)
                step, row = step + 1, row + training.batch
                if pending is not None:
                    tell(notes)
                pending = (step, row, values)
                saves, validates = training.saves(step), training.validates(step)
                if saves or validates:
                    # before the save, so that no step lies behind a checkpoint without a record
                    tell(notes, whole=saves)
                if saves:
                    save()
                if validates:
                    validate()
        if pending is not None:
            tell(notes, whole=True)
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
        heartbeat.tell(state="finished" if step == training.steps else "stopped")
        if step < training.steps:
            metrics.say(f"Stopped at step {step}, all saved; the same command goes on from there.")
        return step


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
