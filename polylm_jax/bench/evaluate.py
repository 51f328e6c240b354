"""Scoring choices beside lm-eval with transformers: requests per second, by two clocks.

The wall's clock is what a person waits for, where nobody else runs; processor time is what it
costs, whoever runs beside it. Both sides have the cores that this process has.

Three forms of benchmark, of made-up ids with the lengths that real ones have with a tokenizer for
18 languages: XCOPA (two short endings), XNLI (three sentences that differ in a word), and four
answers behind a passage. Both have random weights of one shape.
"""

import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict
from itertools import chain, product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from polylm_jax.bench.peer import PeerProcess, peer_python, torch_device
from polylm_jax.data.tokenizer import EOS
from polylm_jax.evaluation.packing import Pair, plan, tree
from polylm_jax.evaluation.score import score_trees
from polylm_jax.evaluation.settings import Evaluation
from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.model.parameters import Init
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import attender
from polylm_jax.sizes import Size

ROUNDS = 3  # of ours and the peer in turn; the first, in which ours compiles, is not counted
BATCH = {"XCOPA": 16, "XNLI": 16, "four answers": 8}  # of the peer: the fastest on a CPU
OURS, PEER = "polylm_jax", "lm-eval, transformers"
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Speeds = dict[str, dict[str, dict[str, float]]]  # by clock, form and side, requests per second


def run(
    size: Size, init: Init, compute: Compute, settings: Evaluation, vs_torch: bool, python: str
) -> dict[str, Any]:
    """Requests per second in each form by both clocks, ours and the peer's (if asked), the median
    of rounds in which both took turns, and the share of padding in our rows."""
    forms = {name: made_up(name, size.vocabulary) for name in BATCH}
    mesh = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    decoder = Decoder(size, compute, attend=attender(compute, mesh))
    start = jax.jit(Decoder(size, compute, init).init)
    params = start(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    sides = [OURS, PEER] if vs_torch else [OURS]
    seconds: dict[tuple[str, str, str], list[float]] = {}
    cores = len(os.sched_getaffinity(0))
    with tempfile.NamedTemporaryFile("w+", suffix=".json") as file:
        json.dump({name: [*chain(*items)] for name, items in forms.items()}, file)
        file.flush()
        told = asdict(size) | {"dtype": compute.dtype, "requests": file.name, "batch": BATCH}
        told |= {"device": torch_device(jax.default_backend()), "threads": cores}
        peer = PeerProcess(peer_python(python), "evaluate_peer.py", told) if vs_torch else None
        try:
            for number in range(ROUNDS):
                for place, (name, items) in enumerate(forms.items()):
                    taken = {OURS: ours(decoder, params, items, settings)}
                    if peer:
                        taken[PEER] = peer.ask(place)
                    for side, clock in product(taken, CLOCKS) if number else ():
                        seconds.setdefault((clock, name, side), []).append(taken[side][clock])
        finally:
            if peer:
                peer.close()

    def speed(clock: str, name: str, side: str) -> float:
        return sum(map(len, forms[name])) / statistics.median(seconds[clock, name, side])

    speeds = {
        clock: {name: {side: speed(clock, name, side) for side in sides} for name in forms}
        for clock in CLOCKS
    }
    return {
        "device": jax.devices()[0].device_kind,
        "cores": cores,
        "dtype": compute.dtype,
        "requests per second": speeds,
        "geometric mean of ratios": {
            clock: statistics.geometric_mean(ratio(of) for of in by_form.values())
            for clock, by_form in speeds.items()
            if vs_torch
        },
        "padding": {name: padding(items, settings) for name, items in forms.items()},
    }


def ratio(speeds: dict[str, float]) -> float:
    """How many times as fast ours is."""
    return speeds[OURS] / speeds[PEER]


def made_up(form: str, vocabulary: int) -> list[list[Pair]]:
    """Items of a form, as (context ids, continuation ids) of their choices."""
    draw = np.random.default_rng(0)

    def ids(least: int, most: int) -> list[int]:
        return draw.integers(3, vocabulary, draw.integers(least, most + 1)).tolist()

    if form == "XCOPA":
        contexts = [ids(16, 34) for _ in range(200)]
        return [[(context, ids(5, 15)) for _ in range(2)] for context in contexts]
    if form == "XNLI":
        pairs = [(ids(20, 60), ids(15, 50)) for _ in range(120)]
        words = [ids(2, 2), ids(3, 3), ids(3, 3)]
        return [[([EOS], [*one, *word, *other]) for word in words] for one, other in pairs]
    contexts = [ids(220, 370) for _ in range(18)]
    return [[(context, ids(5, 20)) for _ in range(4)] for context in contexts]


def ours(
    decoder: Decoder, params: Any, items: list[list[Pair]], settings: Evaluation
) -> dict[str, float]:
    """Seconds from ids to sums, by each clock."""
    started = {name: clock() for name, clock in CLOCKS.items()}
    trees = [tree(pairs) for pairs in items]
    planned = plan([one.size for one in trees], settings.row_length, settings.rows, 1)
    score_trees(decoder, {"params": params}, trees, planned, lambda *_: None)
    return {name: clock() - started[name] for name, clock in CLOCKS.items()}


def padding(items: list[list[Pair]], settings: Evaluation) -> float:
    """Share of the computed positions that are no item's."""
    trees = [tree(pairs) for pairs in items]
    planned = plan([one.size for one in trees], settings.row_length, settings.rows, 1)
    return 1 - sum(len(one.tokens) for one in trees) / sum(one.positions for one in planned)


def show(result: dict[str, Any], console: Console) -> None:
    """Prints the figures as a table, then as one line of JSON."""
    heads = [head for clock in CLOCKS for head in (f"{clock}, 1/s", "ratio")]
    table = Table(
        *("form", "who", *heads, "padding"),
        title=f"Requests, {result['device']}, {result['cores']} cores, {result['dtype']}",
    )
    for name, share in result["padding"].items():
        found = [speeds[name] for speeds in result["requests per second"].values()]
        for side in found[0]:
            cells = [
                cell
                for of in found
                for cell in (f"{of[side]:,.1f}", f"{ratio(of):.2f}" if side == PEER else "")
            ]
            table.add_row(
                name, side.partition(",")[0], *cells, f"{share:.0%}" if side == OURS else ""
            )
    means = result["geometric mean of ratios"].values()
    if means:
        table.add_row("geometric mean", "", *(cell for one in means for cell in ("", f"{one:.2f}")))
    console.print(table)
    print(json.dumps(result))
