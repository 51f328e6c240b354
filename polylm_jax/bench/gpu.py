"""All that a few minutes of one GPU can tell, in stages, the most valuable first.

A stage is a part of `polylm bench` in a process of its own, with a limit of time. What it found
is in the report at once, beside what was predicted from the compiled programs' text, and a stage
that fails, hangs or lacks a package costs no other one.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polylm_jax.bench.peer import peer_python
from polylm_jax.errors import UserError
from polylm_jax.files import put

# What the settings start from, for the 1.7B on one GPU; files and flags go over it.
START = """
train.batch = 16
compute.remat = "dots"
"""
STEPS = 8  # timed, of each program
PEER_ROWS = 4  # that torch begins with: each halving would cost it another compilation
PREDICTED_FOR = "one H100 and the 1.7B in bfloat16, 16 rows of 2,048 tokens"
# Flags of XLA's: its own rematerialisation, which our flags switch off; and no CUDA graphs.
AGAIN, NO_GRAPHS = "--xla_disable_hlo_passes=", "--xla_gpu_enable_command_buffer="
RESULTS, REPORT, LOG, SETTINGS = "results.json", "report.md", "log.txt", "settings.gin"

Figures = dict[str, float]
Settings = dict[str, int | str]


@dataclass(frozen=True)
class Stage:
    """part, flags: of `polylm bench`. compiler: flags added to XLA_FLAGS. limit: seconds.

    vs: it has the peer beside it, where there is one. predicted: of a figure, the least and most.
    """

    name: str
    part: str
    limit: float
    flags: tuple[str, ...] = ()
    compiler: str = ""
    vs: bool = False
    predicted: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of a stage. why: a sentence where it gave no figures, else empty."""

    stage: str
    why: str
    seconds: float
    figures: Figures
    result: Any = None


def stages(batch: int) -> list[Stage]:
    """The table of stages for a run with so many rows a step, in order of worth."""

    def step(
        name: str,
        limit: float,
        predicted: tuple[float, float],
        settings: Settings,
        compiler: str = "",
    ) -> Stage:
        flags = (f"--steps={STEPS}", *_gin(settings))
        return Stage(name, "train", limit, flags, compiler, predicted={STEP: predicted})

    looped: Settings = {"compute.unroll": 1, "compute.loss_block": 2048}
    old: Settings = {"compute.unroll": 1, "compute.loss_block": 1024}
    wide: Settings = {**looped, "compute.loss_block": 4096}
    full: Settings = {**looped, "train.batch": 2 * batch, "compute.remat": "full"}
    halves: Settings = {**looped, "train.batch": 2 * batch, "train.microbatches": 2}
    torch = (f"--steps={STEPS}", f"--peer_rows={PEER_ROWS}")
    traced = ("--steps=3", "--profile", *_gin(looped))
    return [
        Stage("ceilings", "ceilings", 90, predicted=CEILINGS),
        step("step, layers in a loop", 120, (690, 800), looped),
        Stage("torch", "torch", 150, torch, predicted={"MFU, %": (38, 45)}),
        Stage("decode", "decode", 180, vs=True, predicted=DECODING),
        step("step", 240, (660, 760), {}),
        step("step, the old choices", 120, (740, 850), old, AGAIN),
        Stage("step, traced", "train", 120, traced),
        step("twice the rows, all computed again", 120, (1600, 1900), full),
        step("twice the rows, in two parts", 120, (1400, 1650), halves),
        step("step, no graphs", 120, (690, 800), looped, NO_GRAPHS),
        step("step, largest loss blocks", 120, (690, 800), wide),
    ]


def _gin(settings: Settings) -> list[str]:
    return [f"--gin.{name}={value}" for name, value in settings.items()]


STEP = "ms a step"
CEILINGS = {
    "copy, TB/s": (2.8, 3.1),
    "qkv, TFLOP/s": (680, 740),
    "MLP in, TFLOP/s": (680, 740),
    "MLP in, weights' gradient, TFLOP/s": (600, 680),
    "attention, TFLOP/s": (400, 550),
}
DECODING = {
    "batch 1, polylm_jax, tokens/s added": (450, 700),
    "batch 1, polylm_jax int8, tokens/s added": (700, 1100),
}


def _of_ceilings(result: Any) -> Figures:
    return {f"{one['name']}, {one['unit']}": one["rate"] for one in result["ceilings"]}


def _of_step(result: Any) -> Figures:
    pace, mfu = result["pace"], result["mfu"]
    return {
        STEP: pace["median"] * 1e3,
        "tokens/s": pace["tokens_per_second"],
        **({} if mfu is None else {"MFU, %": 100 * mfu}),
        "memory planned, GiB": result["memory"]["planned"] / 2**30,
        "compiling, s": result["compile_seconds"],
        **{
            f"{one['name']} ({one['origin'].rpartition('/')[2]}), ms": one["seconds"] * 1e3
            for one in result["operations"] or []
        },
    }


def _of_peer(result: Any) -> Figures:
    pace, mfu = result["pace"], result["mfu"]
    return {
        STEP: pace["median"] * 1e3,
        "tokens/s": pace["tokens_per_second"],
        **({} if mfu is None else {"MFU, %": 100 * mfu}),
        "memory, GiB": result["peak_bytes"] / 2**30,
        "parts of a batch": result["about"]["microbatches"],
    }


def _of_decoding(result: Any) -> Figures:
    figures = {}
    for batch, found in result["batches"].items():
        for who, speed in found["speeds"].items():
            figures[f"batch {batch}, {who}, tokens/s read"] = speed["prefill"]
            figures[f"batch {batch}, {who}, tokens/s added"] = speed["decode"]
        figures[f"batch {batch}, of the bandwidth's bound, %"] = 100 * found["share of bound"]
    return figures


FIGURES: dict[str, Callable[[Any], Figures]] = {
    "ceilings": _of_ceilings,
    "train": _of_step,
    "torch": _of_peer,
    "decode": _of_decoding,
}


def chosen(table: list[Stage], names: str) -> list[Stage]:
    """The stages named, numbers of the table joined by commas; all of them for "".

    UserError for a number that is none.
    """
    numbers = {str(number): stage for number, stage in enumerate(table, 1)}
    wanted = names.split(",") if names else list(numbers)
    for name in wanted:
        if name not in numbers:
            listed = ", ".join(f"{number} {stage.name}" for number, stage in numbers.items())
            raise UserError(f"--stages={names}: {name!r} is none of them: {listed}.")
    return [numbers[name] for name in wanted]


def run(table: list[Stage], settings: str, seconds: float, folder: Path, python: str) -> Iterator:
    """Runs the stages in turn, for so many seconds; gives the outcome of each when it is kept.

    settings: gin of the run that is measured. folder: takes results, report, log and settings.
    python: interpreter of the peer; "" for this one.
    """
    started, outcomes = time.monotonic(), list[Outcome]()
    put(str(folder / SETTINGS), settings.encode())
    peer = [f"--peer_python={python}"] if python else []
    vs, lacking = ["--vs=torch", *peer], ""
    try:
        peer_python(python)
    except UserError as error:
        vs, lacking = [], f"Without transformers beside it: {error}"
    with tempfile.TemporaryDirectory() as scratch, _ended_by_sigterm():
        for stage in table:
            flags = [*stage.flags, *(vs if stage.vs else peer if stage.part == "torch" else [])]
            left = seconds - (time.monotonic() - started)
            outcomes.append(_outcome(stage, flags, left, folder, Path(scratch)))
            content = {
                "predicted for": PREDICTED_FOR,
                "lacking": lacking,
                "outcomes": [asdict(outcome) for outcome in outcomes],
            }
            put(str(folder / RESULTS), (json.dumps(content, indent=1) + "\n").encode())
            put(str(folder / REPORT), report(table, outcomes, lacking).encode())
            yield outcomes[-1]


def _outcome(stage: Stage, flags: list[str], left: float, folder: Path, scratch: Path) -> Outcome:
    if left <= 0:
        return Outcome(stage.name, "no time was left", 0.0, {})
    file, limit = scratch / "result.json", min(stage.limit, left)
    file.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "polylm_jax", "bench", stage.part, *flags),
        *(f"--gin_file={folder / SETTINGS}", f"--json={file}"),
        f"--gin.train.folder={scratch / 'run'}",
    ]
    # what one stage's products were found to run fastest with serves the next
    compiler = f"--xla_gpu_per_fusion_autotune_cache_dir={scratch} {stage.compiler}"
    given = os.environ.get("XLA_FLAGS", "")
    environment = {**os.environ, "XLA_FLAGS": f"{given} {compiler}".strip()}
    started = time.monotonic()
    why = _child(command, environment, limit, folder / LOG, stage.name)
    took = time.monotonic() - started
    if why:
        return Outcome(stage.name, why, took, {})
    result = json.loads(file.read_bytes())
    return Outcome(stage.name, "", took, FIGURES[stage.part](result), result)


def _child(
    command: list[str], environment: dict[str, str], limit: float, log: Path, name: str
) -> str:
    """Runs a command with its output at the log's end; returns why it came to nothing, or ""."""
    with open(log, "ab") as file:
        file.write(f"\n== {name}: {' '.join(command[1:])}\n".encode())
        file.flush()
        begin = file.tell()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            process_group=0,
        )
        try:
            status = child.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
        finally:
            # its peers, too, which would keep the GPU's memory
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if status == 0:
        return ""
    lines = log.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("polylm bench: ") if lines else "it said nothing"
    return f"ended with status {status}: {last}"


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that no child is left with the GPU."""

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


Found = Mapping[tuple[str, str], float]


def _most(found: Found, name: str) -> float | None:
    """The most that any of our own steps has of a figure."""
    ours = [value for (stage, figure), value in found.items() if figure == name]
    return max(ours, default=None)


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def aims(found: Found) -> list[tuple[str, float, float | None]]:
    """What is aimed at: its name, the least that is wanted, and what was reached.

    found: by stage and figure.
    """
    ours = {key: value for key, value in found.items() if key[0] != "torch"}
    added = "batch 64, {}, tokens/s added"
    return [
        ("the fastest step, MFU, %", 60, _most(ours, "MFU, %")),
        (
            "the fastest step beside torch, tokens/s",
            1.3,
            _ratio(_most(ours, "tokens/s"), found.get(("torch", "tokens/s"))),
        ),
        (
            "decoding at batch 1, of the bandwidth's bound, %",
            60,
            found.get(("decode", "batch 1, of the bandwidth's bound, %")),
        ),
        (
            "decoding at batch 64 beside transformers",
            2,
            _ratio(
                found.get(("decode", added.format("polylm_jax"))),
                found.get(("decode", added.format("transformers"))),
            ),
        ),
    ]


def report(table: list[Stage], outcomes: list[Outcome], lacking: str = "") -> str:
    """The stages so far in Markdown: predictions beside results, then the aims."""
    devices = {o.result["device"] for o in outcomes if o.result and "device" in o.result}
    lines = [
        f"# polylm bench gpu on {', '.join(sorted(devices)) or 'an unknown device'}",
        "",
        f"Predictions are for {PREDICTED_FOR}.",
        *([lacking] if lacking else []),
        "",
        "| stage | figure | predicted | measured |",
        "|---|---|---|---|",
    ]
    for stage, outcome in zip(table, outcomes, strict=False):
        lines.append(f"| {stage.name} | {outcome.why or f'{outcome.seconds:.0f} s'} | | |")
        for name in {**stage.predicted, **outcome.figures}:
            measured = outcome.figures.get(name)
            predicted = " to ".join(map(_number, stage.predicted.get(name, ())))
            lines.append(f"| | {name} | {predicted} | {_number(measured)} |")
    lines += [f"| {stage.name} | not begun | | |" for stage in table[len(outcomes) :]]
    found = {(o.stage, name): value for o in outcomes for name, value in o.figures.items()}
    lines += ["", "| aim | at least | reached |", "|---|---|---|"]
    lines += [f"| {name} | {least:g} | {_number(value)} |" for name, least, value in aims(found)]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    """Four digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
