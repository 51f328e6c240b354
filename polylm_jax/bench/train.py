"""The real training step on random tokens that lie on the devices: speed, memory, a peer.

On one GPU: polylm bench train --gin_file=gin_configs/runs/polylm_1b7.gin \\
    --gin.train.batch=16 --vs=torch --roofline --profile --json=train.json
"""

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Column, Table

from polylm_jax.bench import roofline, tracing
from polylm_jax.data.curriculum import Schedule, make_curriculum
from polylm_jax.data.feed import batches
from polylm_jax.data.rows import open_store
from polylm_jax.errors import UserError
from polylm_jax.files import MANIFEST
from polylm_jax.model.decoder import Compute
from polylm_jax.model.parameters import Init, count
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import batch_sharding
from polylm_jax.sizes import Size, flops_per_token
from polylm_jax.train.optimizer import OptimizerSettings
from polylm_jax.train.step import abstract_state, make_state, make_update

WARM_UP = 2  # steps
ROUNDS = 4  # of ours and the peer in turn, so that noise meets both
TRACED = 3  # steps
SHOWN = 10  # operations
FORMULA = (
    "MFU = tokens/s x (6N + 12·layers·d_model·length) / peak, as PaLM counts: N is all parameters "
    "but the position table; causal attention is not halved."
)


@dataclass(frozen=True)
class Work:
    """What is measured: a run's step. batch: rows of a step. rows: path of a row store."""

    size: Size
    init: Init
    compute: Compute
    mesh: MeshShape
    optimizer: OptimizerSettings
    batch: int
    microbatches: int
    length: int
    schedule: Schedule
    rows: str

    def __post_init__(self) -> None:
        if self.length > self.size.context:
            raise UserError(
                f"rows.length = {self.length} is more than model.context = {self.size.context}; "
                "lower it."
            )


@dataclass(frozen=True)
class Pace:
    """Seconds of the steps of one program, and the tokens per second of their median."""

    steps: int
    median: float
    p10: float
    p90: float
    tokens_per_second: float


@dataclass(frozen=True)
class Memory:
    """Bytes on one device: what the compiler plans, and the peak where the device counts it."""

    arguments: int
    temporary: int
    planned: int
    peak: int | None


@dataclass(frozen=True)
class Feed:
    """Steps fed from the row store. outside: share of wall time that the bare steps do not fill."""

    steps: int
    seconds: float
    outside: float


@dataclass(frozen=True)
class Peer:
    """The same size and batch elsewhere. about: as it says itself. ratio: ours to its, median."""

    about: dict[str, Any]
    pace: Pace
    peak_bytes: int
    ratio: float
    ratios: list[float]


@dataclass(frozen=True)
class Result:
    """All that was measured; None is what was not asked for, or cannot be known here.

    mfu: against the data sheet's peak; of_measured: against this machine's own product.
    no_feed: why there is no feed.
    """

    device: str
    devices: int
    mesh: dict[str, int]
    parameters: int
    batch: int
    length: int
    dtype: str
    remat: str
    compile_seconds: float
    pace: Pace
    flops_per_token: float
    flops_per_device: float
    limits: roofline.Limits
    mfu: float | None
    of_measured: float | None
    memory: Memory
    feed: Feed | None
    no_feed: str
    peer: Peer | None
    operations: list[tracing.Operation] | None
    roofline: list[roofline.Part] | None


def pace_of(seconds: list[float], tokens: int) -> Pace:
    """The pace of steps of so many tokens."""
    low, median, high = np.percentile(seconds, [10, 50, 90]).tolist()
    return Pace(len(seconds), median, low, high, tokens / median)


class Step:
    """The compiled step with its state and a batch of random tokens, on the devices."""

    def __init__(self, work: Work, mesh: Mesh, sources: int) -> None:
        self.mesh = mesh
        batch = random_batch(work, mesh)
        abstract = abstract_state(work.size, work.init, work.optimizer, mesh)
        update = make_update(
            work.size, work.compute, work.optimizer, mesh, work.microbatches, sources
        )
        started = time.perf_counter()
        self.compiled = update.lower(abstract, batch).compile()  # type: ignore[attr-defined]
        self.compile_seconds = time.perf_counter() - started
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        fresh = jax.jit(make_state(work.size, work.init, work.optimizer), out_shardings=shardings)
        self.state = fresh(jax.random.key(0))
        self.batch = batch
        self.times(WARM_UP)

    def once(self) -> None:
        """One step, from devices at rest to devices at rest."""
        self.state, values = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, values))

    def times(self, steps: int) -> list[float]:
        """Seconds of each of so many steps."""
        taken = []
        for _ in range(steps):
            started = time.perf_counter()
            self.once()
            taken.append(time.perf_counter() - started)
        return taken

    def memory(self) -> Memory:
        """What the step needs on a device; donated outputs lie where their arguments lay."""
        plan = self.compiled.memory_analysis()
        counted = jax.local_devices()[0].memory_stats() or {}
        outputs = plan.output_size_in_bytes - plan.alias_size_in_bytes
        return Memory(
            plan.argument_size_in_bytes,
            plan.temp_size_in_bytes,
            plan.argument_size_in_bytes + plan.temp_size_in_bytes + outputs,
            counted.get("peak_bytes_in_use"),
        )

    def free(self) -> None:
        """Gives the state's memory back; no step can follow."""
        self.state = None

    def fed(self, feed: Iterator[Any], steps: int) -> float:
        """Seconds of so many steps as the training loop takes them, its metrics one step late."""
        self.state, pending = self.compiled(self.state, next(feed))
        jax.block_until_ready(self.state)
        started = time.perf_counter()
        for _ in range(steps):
            self.state, values = self.compiled(self.state, next(feed))
            jax.device_get(pending)
            pending = values
        jax.block_until_ready((self.state, pending))
        return time.perf_counter() - started


def random_batch(work: Work, mesh: Mesh) -> dict[str, jax.Array]:
    """tokens int32 [batch, length + 1] and source int32 [batch], split as the run splits them."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"] * work.microbatches
    if work.batch % ways:
        raise UserError(
            f"train.batch = {work.batch} is not a multiple of mesh data x fsdp x "
            f"train.microbatches = {ways}; give one with --gin.train.batch."
        )
    shape = (work.batch, work.length + 1)
    tokens = np.random.default_rng(0).integers(0, work.size.vocabulary, shape, np.int32)
    batch = {"tokens": tokens, "source": np.zeros(work.batch, np.int32)}
    return jax.device_put(batch, batch_sharding(mesh))


class TorchPeer:
    """The peer in a process of its own, which waits while others work."""

    def __init__(self, python: str, arguments: dict[str, Any]) -> None:
        script = Path(__file__).with_name("torch_peer.py")
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, str(script), json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},  # modules beside the script are not its own
        )
        self.about = self._answer()

    def times(self, steps: int) -> tuple[list[float], int]:
        """Seconds of each of so many steps, and the most bytes it has held."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["seconds"], answer["peak_bytes"]

    def close(self) -> None:
        """Ends the process and frees its memory."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            self._said.seek(0)
            last = (self._said.read().strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"the torch peer ended early ({last}); mend that or leave out --vs.")
        return json.loads(line)


def peer_python(named: str) -> str:
    """The interpreter for the peer: the one named, or this one if it has torch."""
    if named:
        return named
    if all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return sys.executable
    raise UserError(
        "--vs=torch needs torch and transformers; install polylm_jax[peer], or name an "
        "interpreter that has them with --peer_python=PATH."
    )


def peer_arguments(work: Work, platform: str) -> dict[str, Any]:
    """What torch_peer.py is told: the same size, batch and optimizer, on the same device."""
    settings = asdict(work.optimizer)
    return {
        **asdict(work.size),
        **{name: settings[name] for name in ("beta1", "beta2", "eps", "weight_decay", "clip")},
        "batch": work.batch,
        "length": work.length,
        "device": {"gpu": "cuda"}.get(platform, platform),
    }


def platform_here() -> str:
    """The platform that JAX will use, asked of another process: to ask here takes a GPU's memory.

    UserError where the peer could not run on the same single device.
    """
    ask = "import jax; print(jax.default_backend(), jax.device_count())"
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, check=True, env=environment
    )
    platform, devices = done.stdout.split()[-2:]
    if platform not in ("cpu", "gpu") or (platform == "gpu" and devices != "1"):
        raise UserError(
            f"--vs=torch compares on one GPU or a CPU, not on {devices} {platform} devices; "
            "show JAX one of them (CUDA_VISIBLE_DEVICES=0), or leave out --vs."
        )
    return platform


def run(
    work: Work,
    steps: int,
    vs_torch: bool = False,
    python: str = "",
    trace: str = "",
    with_roofline: bool = False,
) -> Result:
    """Measures a run's step; see Result.

    python: interpreter of the peer. trace: folder for a trace of some steps; empty for none.
    Raises UserError for a batch that the mesh cannot split, or a peer that is not there.
    """
    if steps < 1:
        raise UserError(f"--steps={steps} measures nothing; give 20 or more.")
    tokens = work.batch * work.length
    rounds = [n for i in range(ROUNDS) if (n := (steps + i) // ROUNDS)]
    peer, theirs, alone = None, [], False
    with contextlib.ExitStack() as stack:
        if vs_torch:
            python, platform = peer_python(python), platform_here()
            peer = TorchPeer(python, peer_arguments(work, platform))
            stack.callback(peer.close)
            if alone := platform == "gpu":
                # two frameworks do not fit one GPU: the peer is done before JAX takes its memory
                theirs = [peer.times(n) for n in rounds]
                peer.close()
        mesh = make_mesh(work.mesh)
        stack.enter_context(jax.set_mesh(mesh))
        feed, sources, no_feed = open_feed(work, mesh)
        if feed:
            stack.enter_context(contextlib.closing(feed))
        step = Step(work, mesh, sources)
        ours = []
        for n in rounds:
            if peer and not alone:
                theirs.append(peer.times(n))
            ours.append(step.times(n))
        pace = pace_of([second for seconds in ours for second in seconds], tokens)
        limits = roofline.limits_of(mesh, work.compute.dtype)
        each = flops_per_token(work.size, work.length)
        rate = pace.tokens_per_second * each / mesh.size
        fed = _fed(step, feed, steps) if feed else None
        memory = step.memory()
        costs = parts = None
        with contextlib.ExitStack() as folder:
            if trace or (with_roofline and mesh.size > 1):
                where = trace or folder.enter_context(tempfile.TemporaryDirectory())
                tracing.trace(step.once, TRACED, where)
                program = step.compiled.as_text()
                costs = tracing.operations(where, program, TRACED, len(jax.local_devices()))
        if with_roofline:
            share = tracing.collectives(costs or [])
            step.free()
            parts = roofline.parts(
                work.size,
                work.compute,
                work.optimizer,
                mesh,
                work.batch,
                work.length,
                work.microbatches,
                limits,
                pace.median,
                share,
            )
    return Result(
        device=mesh.devices.flat[0].device_kind,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        parameters=count(work.size),
        batch=work.batch,
        length=work.length,
        dtype=work.compute.dtype,
        remat=work.compute.remat,
        compile_seconds=step.compile_seconds,
        pace=pace,
        flops_per_token=each,
        flops_per_device=rate,
        limits=limits,
        mfu=None if limits.measured else rate / limits.flops,
        of_measured=rate / limits.flops if limits.measured else None,
        memory=memory,
        feed=fed,
        no_feed=no_feed,
        peer=_peer(peer.about, ours, theirs, tokens) if peer else None,
        operations=costs[:SHOWN] if costs and trace else None,
        roofline=parts,
    )


def open_feed(work: Work, mesh: Mesh) -> tuple[Generator | None, int, str]:
    """The run's feed and its number of sources; or None, 1 and why there is none."""
    if "://" not in work.rows and not Path(work.rows, MANIFEST).is_file():
        return None, 1, f"no rows at {work.rows}"
    store = open_store(work.rows)
    if store.length != work.length:
        return None, 1, f"the rows at {work.rows} have {store.length} tokens, not {work.length}"
    rows = {source: store.rows(source, "train") for source in store.sources}
    curriculum = make_curriculum(work.schedule, rows, store.length)
    feed = batches(store, curriculum, batch_sharding(mesh), work.batch, 0)
    return feed, len(curriculum.sources), ""


def _fed(step: Step, feed: Iterator[Any], steps: int) -> Feed:
    """The bare steps are timed again at once, for a machine's pace changes with time."""
    seconds = step.fed(feed, steps)
    bare = sum(step.times(steps))
    return Feed(steps, seconds, max(0.0, 1 - bare / seconds))


def _peer(
    about: dict[str, Any],
    ours: list[list[float]],
    theirs: list[tuple[list[float], int]],
    tokens: int,
) -> Peer:
    ratios = [
        statistics.median(their) / statistics.median(our)
        for our, (their, _) in zip(ours, theirs, strict=True)
    ]
    pace = pace_of([second for seconds, _ in theirs for second in seconds], tokens)
    peak = max(peak for _, peak in theirs)
    return Peer(about, pace, peak, statistics.median(ratios), ratios)


def show(result: Result, console: Console) -> None:
    """Prints the result as tables, and as JSON on the last line."""
    pace, peer, memory = result.pace, result.peer, result.memory
    table = Table("what", Column("measured", justify="right"), title="The training step")
    axes = " x ".join(f"{name} {ways}" for name, ways in result.mesh.items())
    rate = f"{result.flops_per_device / 1e12:.4g} TFLOP/s"
    limit = f"{result.limits.flops / 1e12:.4g} TFLOP/s"
    rows = [
        ("model", f"{result.parameters:,} parameters, {result.dtype}, remat {result.remat}"),
        ("device", f"{result.devices} x {result.device} ({axes})"),
        ("batch", f"{result.batch} rows of {result.length} tokens"),
        ("compiling", f"{result.compile_seconds:.1f} s"),
        (f"step, median of {pace.steps}", _spread(pace)),
        ("tokens/s", f"{pace.tokens_per_second:,.0f}"),
        ("model FLOP/s of a device", rate),
        ("MFU", f"n/a, no peak known; {result.of_measured:.1%} of a measured product's {limit}")
        if result.mfu is None
        else ("MFU", f"{result.mfu:.1%} of {limit} (data sheet, bfloat16)"),
        ("memory planned for a device", _bytes(memory.planned)),
        ("memory, peak", "not counted here" if memory.peak is None else _bytes(memory.peak)),
        ("wall time outside steps", result.no_feed)
        if result.feed is None
        else ("wall time outside steps", f"{result.feed.outside:.1%} of {result.feed.steps} fed"),
    ]
    if peer:
        how = "torch.compile" if peer.about["compiled"] else "eager: no C++ compiler here"
        rows += [
            ("beside it", f"{peer.about['who']}, {peer.about['dtype']}, {how}"),
            ("its microbatches", str(peer.about["microbatches"])),
            (f"its step, median of {peer.pace.steps}", _spread(peer.pace)),
            ("its tokens/s", f"{peer.pace.tokens_per_second:,.0f}"),
            ("its memory, peak", _bytes(peer.peak_bytes)),
            (f"ratio, median of {len(peer.ratios)} rounds in turn", f"{peer.ratio:.2f}"),
        ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(FORMULA)
    if result.operations:
        console.print(_operations_table(result.operations))
    if result.roofline:
        console.print(_roofline_table(result))
    print(json.dumps(asdict(result)))


def _operations_table(operations: list[tracing.Operation]) -> Table:
    right = [Column(name, justify="right") for name in ("ms a step", "share")]
    table = Table("operation", "from", *right, title="The costliest operations")
    for cost in operations:
        origin = "/".join(cost.origin.split("/")[-3:])
        table.add_row(cost.name, origin, f"{cost.seconds * 1e3:.2f}", f"{cost.share:.1%}")
    return table


def _roofline_table(result: Result) -> Table:
    names = ("GFLOP", "GB", "bound", "measured", "of bound", "share")
    table = Table("part", *(Column(name, justify="right") for name in names), title="Roofline")
    for part in result.roofline or []:
        reached = part.bound_seconds / part.measured_seconds if part.measured_seconds > 0 else 0
        table.add_row(
            part.name,
            f"{part.work.flops / 1e9:,.1f}",
            f"{(part.work.bytes + part.work.moved) / 1e9:,.3f}",
            f"{part.bound_seconds * 1e3:,.2f} ms {part.bound}",
            f"{part.measured_seconds * 1e3:,.2f} ms",
            f"{reached:.0%}" if part.bound else "",
            f"{part.share:.1%}",
        )
    known = "measured here" if result.limits.measured else "data sheet"
    table.caption = (
        f"Of one device; limits: {known}. Work and bound: the least, nothing computed twice. "
        "Measured: each part compiled alone, forward and backward, but collectives, which are "
        "in the parts too and are taken from a trace of the step; rest: what is left of it."
    )
    return table


def _spread(pace: Pace) -> str:
    low, median, high = (f"{s * 1e3:,.0f}" for s in (pace.p10, pace.median, pace.p90))
    return f"{median} ms ({low} to {high}, p10 to p90)"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
