"""The training run, in the order of time: mesh, data, state, steps, checkpoints."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Annotated, Any

import jax
from jax.sharding import Mesh

from polylm_jax.console import LiveLine
from polylm_jax.data.curriculum import rows_until_out
from polylm_jax.data.feed import batches
from polylm_jax.data.rows import Store, open_store
from polylm_jax.data.schedule import Curriculum, Schedule
from polylm_jax.data.tokenizer import MODEL, Tokenizer
from polylm_jax.errors import UserError
from polylm_jax.files import MaybePlace, Place, put
from polylm_jax.model.decoder import Compute
from polylm_jax.model.lora import Lora, adapter_count, trained_flops
from polylm_jax.model.parameters import Init, count
from polylm_jax.parallel import hosts, together
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import batch_sharding, for_device
from polylm_jax.ranges import OneOf, Range, Seed, check
from polylm_jax.sizes import Count, Size
from polylm_jax.train import checkpoint, door, ending, exam
from polylm_jax.train.agreement import (
    check_checkpoints,
    check_data,
    check_folder,
    check_settings,
)
from polylm_jax.train.base import check_base, open_base, open_start, read_moments
from polylm_jax.train.claim import claimed
from polylm_jax.train.course import Course, begun, going_on
from polylm_jax.train.ends import RunEnded
from polylm_jax.train.heartbeat import Heartbeat, read_heartbeat
from polylm_jax.train.metrics import TRACKERS, Clock, Metrics
from polylm_jax.train.optimizer import OptimizerSettings, ahead_of, in_steps
from polylm_jax.train.progress import make_report
from polylm_jax.train.remarks import differences, remarks
from polylm_jax.train.restore import restore_state
from polylm_jax.train.retention import Retention, Skipped
from polylm_jax.train.start import Start, newest_of, newest_sound
from polylm_jax.train.step import (
    WHOLE,
    State,
    abstract_state,
    make_evaluate,
    make_state,
    make_update,
    sharded_decoder,
    variables_of,
)
from polylm_jax.train.validation import held_out, told, validation


@dataclass(frozen=True)
class Training:
    """A run. folder: where checkpoints, metrics and figures go; the same folder goes on.

    batch: rows of a step, over all devices. microbatches: parts a step is computed in.
    validate_every: steps from one validation to the next; one also comes before the first step
        and after the last. 0: none at all. validate_rows: rows of each source.
    evaluate_every: steps from one evaluation with the suite `small` to the next; one also comes
        before the first step and after the last. 0: none at all.
    checkpoint_every: steps from one to the next; one also comes at the end. 0: only that one.
    keep: checkpoints that stay. log_every: steps from one line to the next; 0: only the last.
    start: folder of a run whose newest parameters this one begins with, or with adapters keeps
        frozen beside them. Optimizer, steps and rows begin anew, but for start_moments: with it the
        optimizer's moments are taken, too.
    accept_changes: step of the checkpoint from which on another curriculum or other rows hold.
    data_timeout: seconds that a step waits for its rows before the run ends with an error; 0: it
        waits for ever.
    trackers: what shows the run beside its log, metrics.jsonl: of "tensorboard" and "wandb".
    """

    folder: Place = "runs/polylm"
    steps: Count = 610_000
    batch: Count = 512
    microbatches: Count = 1
    seed: Seed = 1234
    log_every: Annotated[int, Range(1, also=(0, "only the last step"))] = 10
    validate_every: Annotated[int, Range(1, also=(0, "no validation"))] = 1000
    validate_rows: Count = 8
    evaluate_every: Annotated[int, Range(1, also=(0, "no evaluation"))] = 0
    checkpoint_every: Annotated[int, Range(1, also=(0, "only at the end"))] = 500
    keep: Annotated[int, Range(1, note="a large number keeps all")] = 3
    start: MaybePlace = ""
    start_moments: bool = False
    accept_changes: Annotated[int, Range(1, also=(0, "no changes"))] = 0
    data_timeout: Annotated[float, Range(0.001, 1e8, also=(0, "no limit"))] = 300.0
    trackers: tuple[Annotated[str, OneOf(*TRACKERS)], ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        check(self, "train")
        if self.batch % self.microbatches:
            raise UserError(
                f"train.microbatches = {self.microbatches} does not divide train.batch = "
                f"{self.batch}; choose a number that does."
            )
        if self.start_moments and not self.start:
            raise UserError(
                "train.start_moments takes those of another run; name that run in train.start."
            )

    def saves(self, step: int) -> bool:
        """Whether a checkpoint comes after this step."""
        return step == self.steps or _due(step, self.checkpoint_every)

    def validates(self, step: int) -> bool:
        """Whether a validation comes after this step; 0 is before the first."""
        return _due(step, self.validate_every) or (step == self.steps and self.validate_every > 0)

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation comes after this step; 0 is before the first."""
        return _due(step, self.evaluate_every) or (step == self.steps and self.evaluate_every > 0)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@dataclass(frozen=True)
class Run:
    """What the steps of a run need, opened and compiled once."""

    training: Training
    patience: int
    size: Size
    lora: Lora
    mesh: Mesh
    store: Store
    tokenizer: Tokenizer
    gin: str
    fingerprints: dict[str, str]
    manager: Any
    retention: Retention
    metrics: Metrics
    heartbeat: Heartbeat
    stopped: threading.Event
    update: Callable[..., tuple[State, dict[str, jax.Array]]]
    evaluate: Callable[..., jax.Array]
    held_out: dict[str, int]
    exam: Callable[[Any], tuple[exam.Record, list[str]]]


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
    lora: Lora = WHOLE,
    make_ask: exam.MakeAsk | None = None,
) -> None:
    """Trains until training.steps are done.

    rows: path of the row store. gin: the resolved configuration, saved with each checkpoint.
    lora: adapters to train beside frozen parameters, instead of these.
    make_ask: makes what is asked at each evaluation; None where there is none.
    Raises RunEnded for each end before that, and UserError for data, a mesh or a checkpoint that
    does not fit the configuration.
    """
    first = together.process() == 0
    say = LiveLine().say if first else lambda _: None
    with claimed(training.folder, say), Heartbeat(training.folder, first) as heartbeat:
        former = read_heartbeat(training.folder) or {}
        heartbeat.tell(
            step=former.get("step", 0),
            steps=training.steps,
            processes=together.processes(),
            history=former.get("history", []),
            evaluated=former.get("evaluated", ""),
        )
        check_settings(gin)
        check_folder(training.folder)
        store = open_store(rows)
        settings, optimizer = optimizer, in_steps(optimizer, training.batch * store.length)
        fingerprints = {"tokenizer": tokenizer.fingerprint, "row store": store.fingerprint}
        check_data(fingerprints)
        mesh = make_mesh(mesh_shape)
        _check(training, size, mesh, store, tokenizer, lora)

        abstract = abstract_state(size, init, optimizer, mesh, lora)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        make = make_state(size, init, optimizer, lora)
        retention = Retention(training.keep)

        def begin(parts: Sequence[str]) -> State:
            """These parts of a fresh state."""
            chosen = lambda tree: {part: tree[part] for part in parts}  # noqa: E731
            fresh = jax.jit(lambda key: chosen(make(key)), out_shardings=chosen(shardings))
            return fresh(jax.random.key(training.seed))

        def load(step: int, meta: checkpoint.Meta) -> tuple[State, Course, list[str]]:
            checkpoint.check_model(meta, size, training.folder)
            checkpoint.check_tokenizer(meta, tokenizer.fingerprint, training.folder)
            check_base(meta, fingerprints.get("base", ""), lora, training.folder)
            course, said = going_on(
                meta, step, training.accept_changes, schedule, store, training.folder
            )
            if not meta.get("imported"):
                state, changed = restore_state(manager, step, meta, abstract, begin)
                return state, course, [*changed, *differences(meta["gin"], gin), *said]
            params = checkpoint.restore_params(manager, step, size, mesh)
            rest = begin([part for part in abstract if part != "params"])
            return rest | {"params": params}, course, []

        def fresh() -> Start:
            """Step 0, of nothing or with what another run has learned."""
            if not training.start or lora.rank:
                course = begun(schedule, store, {})
                return Start(0, 0, begin(list(abstract)), course)
            former = open_start(training.start, size, tokenizer.fingerprint)
            origin = {"run": training.start, "step": former.step}
            origin |= {"moments": training.start_moments}
            origin |= {"params_checksum": checkpoint.params_checksum(former.meta)}
            course = begun(schedule, store, origin)
            if training.start_moments:
                taken = read_moments(former, abstract)
            else:
                taken = {"params": door.read_params(former, mesh)}
            rest = begin([part for part in abstract if part not in taken])
            return Start(0, 0, rest | taken, course)

        with (
            jax.set_mesh(mesh),
            contextlib.closing(checkpoint.open_manager(training.folder, retention)) as manager,
            Metrics(training.folder, first, training.trackers, gin) as metrics,
            hosts.stop_signals() as stopped,
        ):
            check_checkpoints(manager)
            base: tuple[Any, ...] = ()  # what stays frozen, if anything
            if lora.rank:
                beside = open_base(training.start, size, tokenizer.fingerprint, manager)
                base = (door.read_params(beside, mesh, compute.dtype),)
                fingerprints["base"] = door.identity_of(beside.meta)
            retention.saved = checkpoint.saved(manager)
            where = (manager, load, metrics)
            start = newest_of(manager.all_steps(), *where) or fresh()
            curriculum = start.course.curriculum
            _announce(training, size, lora, mesh, store, curriculum)

            @cache
            def update_of(ahead: float) -> Callable[..., Any]:
                points = in_steps(settings, training.batch * store.length, ahead)
                update = make_update(
                    *(size, compute, points, mesh, training.microbatches),
                    *(len(curriculum.sources), lora, ahead),
                )
                return lambda state, batch: update(state, batch, *base)

            def ready(start: Start) -> Callable[..., Any]:
                """The step that goes on from there."""
                return update_of(ahead_of(settings, start.step, start.row, training.batch))

            evaluate = make_evaluate(size, compute, mesh, lora)
            if training.evaluate_every and make_ask:
                kind = mesh.devices.flat[0].device_kind
                how = replace(for_device(compute, size.layers, kind), attention="auto")
                decoder = sharded_decoder(size, how, mesh, lora)
                ways = mesh.shape["data"] * mesh.shape["fsdp"]
                ask = make_ask(decoder, tokenizer, ways, metrics.say)
                examine = exam.Exam(ask, training.evaluate_every)
            run = Run(
                training,
                optimizer.spike_patience,
                size,
                lora,
                mesh,
                store,
                tokenizer,
                gin,
                fingerprints,
                manager,
                retention,
                metrics,
                heartbeat,
                stopped,
                ready(start),
                lambda params, batch: evaluate(params, batch, *base),
                held_out(store, training.validate_rows),
                lambda params: examine(variables_of(params, lora, *base)),
            )
            if not run.held_out:
                metrics.say(f"There is nothing to validate on: {store.path} has no held-out rows.")
            tokens = training.steps * training.batch * store.length
            for line in remarks(training.steps, settings, schedule, tokens):
                metrics.say(line)
            if first:
                put(f"{training.folder}/{MODEL}", tokenizer.model)
            unsound = int(start.state["skipped_in_a_row"]) > 0
            end = go_on(run, start)
            del start
            if end is not None and end.word == "stuck" and unsound:
                back = newest_sound(*where)
                end = end if back is None else go_on(replace(run, update=ready(back)), back)
            if end is not None:
                raise end
            heartbeat.tell(state="finished")


def go_on(run: Run, start: Start) -> RunEnded | None:
    """Makes steps until the last one is done, or one of the other ends is there, and saves.

    Returns the end on which all processes agree, None where all steps are done; raises what one
    of them cannot share. The start's state is used up.
    """
    training, manager, metrics = run.training, run.manager, run.metrics
    step, row, state, course = start
    curriculum = course.curriculum
    skipped = int(state["skipped_in_a_row"])
    if step < training.steps or metrics.reaches_beyond(step):
        metrics.start(step)
        for record in course.records:
            if record["step"] == step:
                metrics.write(record)
    if step >= training.steps:
        metrics.say(f"Step {step} of {training.steps} is done; raise train.steps to go on.")
        stuck = skipped >= run.patience
        return ending.stuck(training.folder, run.patience, step, step) if stuck else None
    run.heartbeat.tell(step=step, history=[record["said"] for record in course.records])
    rows, out_of_rows = rows_until_out(curriculum, row + (training.steps - step) * training.batch)
    last = step + (rows - row) // training.batch
    if last < training.steps:
        metrics.say(f"Only {last} of {training.steps} steps can be done: then {out_of_rows}")
    exchange, clock = hosts.make_exchange(run.mesh), Clock()
    report = make_report(
        training.steps,
        training.log_every,
        training.batch,
        trained_flops(run.size, run.store.length, run.lora),
        run.mesh,
        curriculum,
        row,
        metrics,
        run.heartbeat,
        clock,
    )
    # a run that is started again may skip as many once more, but not to its end
    limit = (skipped // run.patience + 1) * run.patience
    # metrics are fetched one step late, so that the devices never wait
    pending: tuple[int, int, dict[str, jax.Array]] | None = None
    end: RunEnded | None = None
    notes: Any = None

    def tell(
        then: tuple[int, int, dict[str, jax.Array]] | None = None, whole: bool = False
    ) -> None:
        """Logs the step that is pending, if there is one, and finds out whether the run must end.

        then: the step that is pending from here on. whole: whether the record is a full one.
        """
        nonlocal pending, skipped, end
        one, pending = pending, then
        if one is not None:
            asked, skipped = report(*one, notes, whole)
            most = run.patience if one[0] == training.steps else limit
            if end is None and skipped >= most:
                end = ending.stuck(training.folder, run.patience, one[0], step)
            elif end is None and asked:
                end = ending.asked(asked, training.folder, step, training.steps, metrics.error)

    def validate() -> None:
        if not run.held_out:
            return
        part = training.batch // training.microbatches
        with clock.on("validation"):
            record = validation(
                partial(run.evaluate, state["params"]),
                run.mesh,
                run.store,
                run.tokenizer,
                run.held_out,
                part,
            )
        metrics.write(record | {"step": step, "tokens": row * run.store.length})
        metrics.say(f"Step {step}: {told(record)}.")

    def evaluate() -> None:
        with clock.on("evaluation"):
            record, (scores, *more) = run.exam(state["params"])
        metrics.write(record | {"step": step, "tokens": row * run.store.length})
        run.heartbeat.tell(evaluated=f"Step {step}: {scores}.")
        for line in (f"Step {step}: {scores}.", *more):
            metrics.say(line)

    def save() -> None:
        in_a_row = int(state["skipped_in_a_row"])
        run.retention.saved[step] = Skipped(in_a_row, in_a_row >= run.patience)
        prints = run.fingerprints | {"curriculum": curriculum.fingerprint()}
        meta = checkpoint.meta_of(run.size, row, run.gin, prints, run.retention.saved[step])
        meta |= course.noted
        if run.lora.rank:
            meta |= door.note_of(run.lora, training.start, training.folder)
        if metrics.unwritten:
            meta["unlogged"] = metrics.unwritten
        with clock.on("checkpoint"):
            checkpoint.save(manager, step, state, meta)
            metrics.publish()

    def save_last() -> None:
        tell(whole=True)
        if manager.latest_step() != step:
            save()
        checkpoint.finish(manager)

    try:
        if step == 0 and training.validates(0):
            validate()
        if step == 0 and training.evaluates(0):
            evaluate()
        feed = batches(
            run.store,
            curriculum,
            batch_sharding(run.mesh),
            training.batch,
            row,
            training.data_timeout,
        )
        with contextlib.closing(feed):
            while step < last and end is None:
                with clock.on("data"):
                    batch = next(feed)
                wish = ending.wish(run.stopped.is_set(), metrics.error)
                notes = exchange(hosts.notes_of(wish, clock.last))
                state, values = run.update(state, batch)
                step, row = step + 1, row + training.batch
                tell((step, row, values))
                saves, validates = training.saves(step), training.validates(step)
                evaluates = training.evaluates(step)
                if saves or validates or evaluates:
                    # before the save, so that no step lies behind a checkpoint without a record
                    tell(whole=saves)
                if saves:
                    save()
                if validates:
                    validate()
                if evaluates:
                    evaluate()
        save_last()
        # the last records come too late for the notes
        mine = str(ending.wish(False, metrics.error))
        status = int(together.verdict(f"log/{start.step}-{step}", mine, max))
        if end is None and status:
            end = ending.asked(status, training.folder, step, training.steps, metrics.error)
    except RunEnded:
        raise  # the save itself has failed
    except Exception as error:
        raise ending.saved_before(error, state, step, training.steps, save_last, manager) from error
    if end is None and last < training.steps:
        end = RunEnded("out of data", f"{out_of_rows} Step {step} of {training.steps} is saved.")
    return end


def _check(
    training: Training, size: Size, mesh: Mesh, store: Store, tokenizer: Tokenizer, lora: Lora
) -> None:
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if training.batch % (ways * training.microbatches):
        raise UserError(
            f"train.batch = {training.batch} cannot be split over mesh data x fsdp = {ways} and "
            f"train.microbatches = {training.microbatches}; make it a multiple of "
            f"{ways * training.microbatches}."
        )
    if lora.rank and not training.start:
        raise UserError(
            f"lora.rank = {lora.rank} trains adapters beside another run's parameters; name that "
            "run in train.start, or set lora.rank = 0."
        )
    if lora.rank and training.start_moments:
        raise UserError(
            f"lora.rank = {lora.rank} trains adapters, which have no moments in train.start; leave "
            "out train.start_moments."
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
    training: Training, size: Size, lora: Lora, mesh: Mesh, store: Store, curriculum: Curriculum
) -> None:
    if jax.process_index() != 0:
        return
    trained = f"{count(size):,} parameters"
    if lora.rank:
        trained = f"{adapter_count(size, lora):,} parameters of adapters to {trained}"
    axes = " x ".join(f"{axis} {ways}" for axis, ways in mesh.shape.items())
    tokens = training.steps * training.batch * store.length
    print(
        f"Training {trained} on {mesh.size} {mesh.devices.flat[0].device_kind} "
        f"devices ({axes}).\n"
        f"Reading {tokens:,} tokens from {len(curriculum.sources)} sources in {store.path}, "
        f"{training.batch} rows of {store.length} a step, {training.steps} steps.\n"
        f"Writing checkpoints, metrics and figures to {training.folder}.",
        flush=True,
    )
