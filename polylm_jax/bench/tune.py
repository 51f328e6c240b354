"""The tuning step on rows of a store, beside a padded and a packed loop of torch: real tokens/s.

polylm bench tune --gin_file=gin_configs/runs/bench_tune.gin --vs=torch (after polylm tune
--rows_only with the same file)
"""

import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from polylm_jax.bench.peer import PeerProcess, peer_python
from polylm_jax.bench.step import WARM_UP, Work, rounds_of
from polylm_jax.bench.train import peer_arguments, platform_here
from polylm_jax.data.rows import LEARNED, Store, open_store
from polylm_jax.errors import UserError
from polylm_jax.parallel.mesh import make_mesh
from polylm_jax.parallel.sharding import batch_sharding
from polylm_jax.train.step import abstract_state, make_state, make_update

WAYS = ("padded", "packed")  # of the peer
BATCHES = 8  # that are tuned on in turns


@dataclass(frozen=True)
class Program:
    """One program's steps. tokens_per_second: of tokens that are no padding, a step's median.

    ratio: how many times as fast ours was, the median of the rounds.
    """

    who: str
    tokens_per_second: float
    ratio: float


@dataclass(frozen=True)
class Result:
    """fill: share of our rows' places that hold tokens; learned: share of these."""

    batch: int
    length: int
    fill: float
    learned: float
    programs: list[Program]


def run(work: Work, steps: int, vs_torch: bool = False, python: str = "") -> Result:
    """Measures the step; a UserError where the store at work.rows is not of examples."""
    tokens, marks = rows_in(open_store(work.rows), work)
    rounds = rounds_of(steps)
    with contextlib.ExitStack() as stack:
        peers = _peers(work, tokens, marks, python, stack) if vs_torch else []
        mesh = make_mesh(work.mesh)
        stack.enter_context(jax.set_mesh(mesh))
        turns = _turns(work, mesh, tokens, marks)
        for _ in range(WARM_UP):
            next(turns)
        rates: list[list[float]] = [[] for _ in range(1 + len(peers))]
        for n in rounds:
            for rate, peer in zip(rates[1:], peers, strict=True):
                told = peer.ask(n)
                rate.append(_rate(zip(told["seconds"], told["tokens"], strict=True)))
            rates[0].append(_rate(itertools.islice(turns, n)))
    names = ["polylm_jax", *(peer.about["who"] for peer in peers)]
    programs = [
        Program(
            name,
            statistics.median(rate),
            statistics.median(o / t for o, t in zip(rates[0], rate, strict=True)),
        )
        for name, rate in zip(names, rates, strict=True)
    ]
    real = int((tokens != 0).sum())
    learned = int((marks & LEARNED > 0).sum())
    return Result(work.batch, work.length, real / tokens.size, learned / real, programs)


def rows_in(store: Store, work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and marks of the first BATCHES batches of a store's rows, or of those there are."""
    if not store.marked or store.length != work.length:
        raise UserError(
            f"{store.path} has no rows of examples of {work.length} tokens; make them with "
            "`polylm tune --rows_only` and the same gin file."
        )
    counts = [store.rows(source) for source in store.sources]
    most = min(BATCHES, sum(counts) // work.batch) * work.batch
    if not most:
        raise UserError(f"{store.path} has {sum(counts)} rows, fewer than a batch; lower it.")
    which = np.repeat(np.arange(len(counts)), counts)[:most]
    place = np.concatenate([*map(np.arange, counts)])[:most]
    return tuple(  # type: ignore[return-value]
        read(store.sources, which, place) for read in (store.read_mixed, store.marks_mixed)
    )


def _peers(
    work: Work, tokens: np.ndarray, marks: np.ndarray, python: str, stack: contextlib.ExitStack
) -> list[PeerProcess]:
    python, platform = peer_python(python), platform_here()
    if platform == "gpu":
        raise UserError("bench tune compares on a CPU; set JAX_PLATFORMS=cpu or leave out --vs.")
    data = Path(stack.enter_context(tempfile.TemporaryDirectory()), "rows.npz")
    np.savez(data, tokens=tokens, marks=marks)
    told = peer_arguments(work, platform, work.batch) | {"data": str(data)}
    peers = [PeerProcess(python, "tune_peer.py", told | {"way": way}) for way in WAYS]
    for peer in peers:
        stack.callback(peer.close)
    return peers


def _turns(
    work: Work, mesh: Mesh, tokens: np.ndarray, marks: np.ndarray
) -> Iterator[tuple[float, int]]:
    """Endless steps of ours: (seconds, tokens that are no padding)."""
    update = make_update(work.size, work.compute, work.optimizer, mesh, work.microbatches, 1)
    abstract = abstract_state(work.size, work.init, work.optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    fresh = jax.jit(make_state(work.size, work.init, work.optimizer), out_shardings=shardings)
    state = fresh(jax.random.key(0))
    source = np.zeros(work.batch, np.int32)
    parts = [slice(n, n + work.batch) for n in range(0, len(tokens), work.batch)]
    for part in itertools.cycle(parts):
        whole = {"tokens": tokens[part], "marks": marks[part], "source": source}
        batch: Any = jax.device_put(whole, batch_sharding(mesh))
        jax.block_until_ready((state, batch))
        started = time.perf_counter()
        state, values = update(state, batch)
        jax.block_until_ready((state, values))
        yield time.perf_counter() - started, int((tokens[part, :-1] != 0).sum())


def _rate(made: Any) -> float:
    """Real tokens a second of a round's steps together, which differ in their tokens."""
    steps = list(made)
    return sum(tokens for _, tokens in steps) / sum(seconds for seconds, _ in steps)


def show(result: Result, console: Console) -> dict:
    """Prints the table; returns the figures."""
    table = Table(
        title=f"Tuning, {result.batch} rows of {result.length}, {result.fill:.1%} full, "
        f"{result.learned:.0%} learned"
    )
    table.add_column("program")
    for head in ("real tokens/s", "ours is so many times as fast"):
        table.add_column(head, justify="right")
    for program in result.programs:
        table.add_row(program.who, f"{program.tokens_per_second:,.0f}", f"{program.ratio:.2f}")
    console.print(table)
    return asdict(result)
