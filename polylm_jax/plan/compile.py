"""The run's real training step, compiled ahead of time for a described slice."""

import hashlib
import json
import re
import threading
import time
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from polylm_jax.console import LiveLine, format_duration
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Compute
from polylm_jax.model.lora import Lora
from polylm_jax.model.parameters import Init
from polylm_jax.parallel.mesh import AXES, MeshShape, make_mesh, resolve
from polylm_jax.parallel.platform import compiler_options
from polylm_jax.parallel.sharding import batch_sharding, for_device
from polylm_jax.plan.collectives import Collective, collectives
from polylm_jax.plan.slices import FAMILIES, Slice, devices_of, missing_compiler
from polylm_jax.plan.text import RATES, Part, kernels, parts
from polylm_jax.sizes import Size
from polylm_jax.train.loop import Training
from polylm_jax.train.optimizer import OptimizerSettings
from polylm_jax.train.step import WHOLE, abstract_base, abstract_state, make_update

SOURCES = 36  # of which the step keeps the losses apart: 18 languages, 17 pairs, code
PACKAGE = Path(__file__).parent.parent
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Run:
    """What of a run's settings makes its step.

    length: tokens of a row. marked: whether rows hold examples, with marks of what is learned.
    """

    training: Training
    size: Size
    init: Init
    compute: Compute
    mesh: MeshShape
    optimizer: OptimizerSettings
    length: int
    lora: Lora = WHOLE
    marked: bool = False


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step. Bytes are of one chip.

    fits: whether it found room for the step. needed, available: bytes it names where it did
    not. peak: most bytes in use at once, arguments among them. arguments: state, frozen
    parameters and batch. seconds: it took. parts: where the step's time goes, by its text.
    """

    fits: bool
    peak: float = 0
    arguments: float = 0
    needed: float = 0
    available: float = 0
    seconds: float = 0
    collectives: tuple[Collective, ...] = ()
    parts: tuple[Part, ...] = ()


def on(where: Slice, run: Run) -> Run:
    """The run with what its settings leave to the device chosen for a chip of the slice."""
    kind = FAMILIES[where.family][0]
    return replace(run, compute=for_device(run.compute, run.size.layers, kind))


def whole_mesh(run: Run, where: Slice) -> tuple[int, int, int]:
    """Ways of data, fsdp and tensor over all slices; UserError where the mesh does not suit."""
    if run.mesh.slices not in (0, where.slices):
        raise UserError(
            f"mesh.slices = {run.mesh.slices}, but {where.name} is {where.slices}; set it to 0."
        )
    try:
        return resolve(run.mesh, where.chips, where.slices)
    except UserError as error:
        raise UserError(str(error).replace("devices here", f"chips of {where.name}")) from None


def check(run: Run, where: Slice) -> None:
    """UserError if the run's mesh does not suit the slice or its batch does not suit the mesh."""
    data, fsdp, _ = whole_mesh(run, where)
    parts = data * fsdp * run.training.microbatches
    if run.training.batch % parts:
        raise UserError(
            f"train.batch = {run.training.batch} cannot be split over mesh data x fsdp = "
            f"{data * fsdp} and train.microbatches = {run.training.microbatches}; make it a "
            f"multiple of {parts}, or give fewer of either."
        )


def compile_step(run: Run, where: Slice, cache: Path | None = None) -> Compiled | None:
    """Compiles the step for the slice; None where no compiler for it is installed.

    cache: folder of former answers, for the same step, slice, code and versions.
    """
    if missing_compiler(where):
        return None
    kept = cache / f"{_key(run, where)}.json" if cache else None
    if kept and kept.is_file():
        return read(json.loads(kept.read_text()))
    with _live(f"Compiling for {where.name}"):
        compiled = _compile(run, where)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(compiled)))
    return compiled


def read(record: dict) -> Compiled:
    """The inverse of dataclasses.asdict."""
    sent = tuple(Collective(**one) for one in record["collectives"])
    found = tuple(Part(**one) for one in record["parts"])
    return Compiled(**record | {"collectives": sent, "parts": found})


def too_large(message: str) -> tuple[float, float] | None:
    """Bytes needed and available, from a compiler's error; None if it is about another thing."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(
        r"\(?([\d.]+)([KMGT])\)? (?:exceeds available HBM \(|of )([\d.]+)([KMGT])", message
    )
    if not found:
        return 0, 0
    return float(found[1]) * UNITS[found[2]], float(found[3]) * UNITS[found[4]]


def _compile(run: Run, where: Slice) -> Compiled:
    start = time.monotonic()
    mesh = make_mesh(run.mesh, devices_of(where))
    lowered = _lower(run, mesh)
    try:
        # as the run compiles it; see platform.set_flags
        compiled = lowered.compile(compiler_options("gpu" if where.gpu else "tpu"))
    except jax.errors.JaxRuntimeError as error:
        sizes = too_large(str(error))
        if sizes is None:
            raise
        return Compiled(False, 0, 0, *sizes, seconds=time.monotonic() - start)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    shape = dict(zip(AXES, mesh.devices.shape, strict=True))
    return Compiled(
        # a GPU's compiler does not refuse what is too large
        fits=memory.peak_memory_in_bytes <= where.room,
        peak=memory.peak_memory_in_bytes,
        arguments=memory.argument_size_in_bytes,
        needed=memory.peak_memory_in_bytes,
        available=where.room,
        seconds=time.monotonic() - start,
        collectives=tuple(collectives(text, shape, where.slices)),
        parts=tuple(parts(kernels(text), RATES[where.family])),
    )


def parts_here(run: Run) -> list[Part]:
    """Where the time of the run's step goes on one device of this machine's CPU."""
    mesh = make_mesh(MeshShape(1, 1, 1), jax.devices("cpu")[:1])
    return parts(kernels(_lower(run, mesh).compile().as_text()), RATES["cpu"])


def _lower(run: Run, mesh: jax.sharding.Mesh) -> Any:
    # outside the mesh's context: constants made here would go to devices that are not there
    state = abstract_state(run.size, run.init, run.optimizer, mesh, run.lora)
    base = abstract_base(run.size, run.compute, mesh, run.lora)
    update = make_update(
        run.size, run.compute, run.optimizer, mesh, run.training.microbatches, SOURCES, run.lora
    )
    rows, sharding = run.training.batch, batch_sharding(mesh)
    row = (rows, run.length + 1)
    batch = {
        "tokens": jax.ShapeDtypeStruct(row, jnp.int32, sharding=sharding),
        "source": jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=sharding),
    }
    if run.marked:
        batch["marks"] = jax.ShapeDtypeStruct(row, jnp.uint8, sharding=sharding)
    # the precision of a run, whatever this process has: Mosaic refuses a higher one in bfloat16
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        return update.trace(state, batch, *base).lower()  # type: ignore[attr-defined]


def _key(run: Run, where: Slice) -> str:
    """Hash of all that the answer follows from: settings, slice, versions and the step's code."""
    code = hashlib.sha256()
    readers = (f"plan/{name}" for name in ("collectives", "costs", "hlo", "slices", "text"))
    for part in ("model/*", "parallel/*", "train/*", *readers):
        for path in sorted(PACKAGE.glob(f"{part}.py")):
            code.update(path.read_bytes())
    training = {name: getattr(run.training, name) for name in ("batch", "microbatches")}
    versions = [metadata.version(name) for name in ("jax", "flax", "optax")]
    versions.append(metadata.version("jax-cuda13-plugin" if where.gpu else "libtpu"))
    facts = [asdict(run) | {"training": training}, asdict(where), versions, code.hexdigest()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


class _live:
    """While its block runs, a line on stderr says what is going on and for how long."""

    def __init__(self, what: str) -> None:
        self._what, self._done = what, threading.Event()
        self._line = LiveLine(seconds=30)
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._line.close()

    def _tick(self) -> None:
        start = time.monotonic()
        while not self._done.wait(1):
            self._line.show(f"{self._what}: {format_duration(time.monotonic() - start)}")
