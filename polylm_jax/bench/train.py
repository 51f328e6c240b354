"""The real training step on random tokens that lie on the devices: speed, memory, a peer.

On one GPU: polylm bench train --gin_file=gin_configs/runs/polylm_1b7.gin \\
    --gin.train.batch=16 --gin.compute.remat=dots --vs=torch --roofline --profile --json=train.json
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from polylm_jax.bench import roofline, tracing
from polylm_jax.bench.peer import PeerProcess, peer_python, torch_device
from polylm_jax.bench.step import (
    WARM_UP,
    Memory,
    Pace,
    Step,
    Work,
    compile_step,
    memory_of,
    pace_of,
    rounds_of,
)
from polylm_jax.chips import chip_of
from polylm_jax.data.feed import batches
from polylm_jax.data.rows import open_store
from polylm_jax.data.schedule import make_curriculum
from polylm_jax.errors import UserError
from polylm_jax.files import MANIFEST
from polylm_jax.model.parameters import count
from polylm_jax.parallel.mesh import make_mesh
from polylm_jax.parallel.sharding import batch_sharding
from polylm_jax.sizes import flops_per_token

TRACED = 3  # steps
SHOWN = 10  # operations
FORMULA = (
    "MFU = tokens/s x (6N + 12·layers·d_model·length) / peak, as PaLM counts: N is all parameters "
    "but the position table; causal attention is not halved."
)


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


def peer_arguments(work: Work, platform: str, rows: int) -> dict[str, Any]:
    """What torch_peer.py is told: the same size, batch and optimizer, on the same device.

    rows: of a batch that it takes at a time, to begin with.
    """
    settings = asdict(work.optimizer)
    return {
        **asdict(work.size),
        **{name: settings[name] for name in ("beta1", "beta2", "eps", "weight_decay", "clip")},
        "batch": work.batch,
        "rows": rows,
        "length": work.length,
        "dtype": work.compute.dtype,
        "device": torch_device(platform),
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
    peer_rows: int | None = None,
) -> Result:
    """Measures a run's step; see Result.

    python: interpreter of the peer. peer_rows: of a batch that the peer takes at a time, to begin
    with; all if None. trace: folder for a trace of some steps; empty for none.
    Raises UserError for a batch that the mesh cannot split, or a peer that is not there.
    """
    rounds = rounds_of(steps)
    tokens = work.batch * work.length
    peer, theirs, alone = None, [], False
    with contextlib.ExitStack() as stack:
        if vs_torch:
            python, platform = peer_python(python), platform_here()
            told = peer_arguments(work, platform, peer_rows or work.batch)
            peer = PeerProcess(python, "torch_peer.py", told)
            stack.callback(peer.close)
            if alone := platform == "gpu":
                # two frameworks do not fit one GPU: the peer is done before JAX takes its memory
                theirs = [peer.ask(n) for n in rounds]
                peer.close()
        mesh = make_mesh(work.mesh)
        stack.enter_context(jax.set_mesh(mesh))
        feed, sources, no_feed = open_feed(work, mesh)
        if feed:
            stack.enter_context(contextlib.closing(feed))
        compiled, compile_seconds = compile_step(work, mesh, sources)
        step = Step(work, mesh)
        step.compiled = compiled
        step.times(WARM_UP)
        ours, seen = [], []
        for n in rounds:
            if peer and not alone:
                theirs.append(peer.ask(n))
            ours.append(step.times(n))
            seen.append(roofline.limits_of(mesh, work.compute.dtype))
        pace = pace_of([second for seconds in ours for second in seconds], tokens)
        limits = roofline.best(seen)
        each = flops_per_token(work.size, work.length)
        rate = pace.tokens_per_second * each / mesh.size
        fed = _fed(step, feed, steps) if feed else None
        memory = memory_of(compiled)
        costs = parts = None
        with contextlib.ExitStack() as folder:
            if trace or (with_roofline and mesh.size > 1):
                where = trace or folder.enter_context(tempfile.TemporaryDirectory())
                tracing.trace(step.once, TRACED, where)
                program = compiled.as_text()
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
        compile_seconds=compile_seconds,
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


def peer_alone(work: Work, steps: int, python: str, rows: int | None) -> dict[str, Any]:
    """What the peer says of itself, its pace, peak of memory and MFU, with nobody beside it.

    mfu: None where no data sheet knows the device. The arguments and errors are those of `run`.
    """
    python, platform = peer_python(python), platform_here()
    peer = PeerProcess(python, "torch_peer.py", peer_arguments(work, platform, rows or work.batch))
    with contextlib.closing(peer):
        said = peer.ask(steps)
    pace = pace_of(said["seconds"], work.batch * work.length)
    chip = chip_of(peer.about["device"])
    rate = pace.tokens_per_second * flops_per_token(work.size, work.length)
    return {
        "device": peer.about["device"],
        "about": peer.about,
        "pace": asdict(pace),
        "peak_bytes": said["peak_bytes"],
        "mfu": rate / chip.flops if chip else None,
    }


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
    theirs: list[dict[str, Any]],
    tokens: int,
) -> Peer:
    ratios = [
        statistics.median(their["seconds"]) / statistics.median(our)
        for our, their in zip(ours, theirs, strict=True)
    ]
    pace = pace_of([second for their in theirs for second in their["seconds"]], tokens)
    peak = max(their["peak_bytes"] for their in theirs)
    return Peer(about, pace, peak, statistics.median(ratios), ratios)
