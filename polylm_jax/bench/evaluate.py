"""Scoring choices beside lm-eval with transformers: requests per second of processor time.

Three forms of benchmark, of made-up ids with the lengths that real ones have with a tokenizer for
18 languages: XCOPA (two short endings), XNLI (three sentences that differ in a word), and four
answers behind a passage. Both have random weights of one shape.
"""

import json
import math
import statistics
import tempfile
import time
from dataclasses import asdict
from itertools import chain
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


def run(
    size: Size, init: Init, compute: Compute, settings: Evaluation, vs_torch: bool, python: str
) -> dict[str, Any]:
    """Requests per second of processor time in each form, ours and the peer's (if asked), the
    median of rounds in which both took turns, and the share of padding in our rows."""
    forms = {name: made_up(name, size.vocabulary) for name in BATCH}
    mesh = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    decoder = Decoder(size, compute, attend=attender(compute, mesh))
    start = jax.jit(Decoder(size, compute, init).init)
    params = start(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    speeds: dict[str, dict[str, list[float]]] = {name: {} for name in forms}
    with tempfile.NamedTemporaryFile("w+", suffix=".json") as file:
        json.dump({name: [*chain(*items)] for name, items in forms.items()}, file)
        file.flush()
        told = asdict(size) | {"dtype": compute.dtype, "requests": file.name, "batch": BATCH}
        told |= {"device": torch_device(jax.default_backend())}
        peer = PeerProcess(peer_python(python), "evaluate_peer.py", told) if vs_torch else None
        try:
            for number in range(ROUNDS):
                for place, (name, items) in enumerate(forms.items()):
                    taken = {"polylm_jax": ours(decoder, params, items, settings)}
                    if peer:
                        taken["lm-eval, transformers"] = peer.ask(place)["seconds"]
                    for who, seconds in taken.items() if number else ():
                        speeds[name].setdefault(who, []).append(sum(map(len, items)) / seconds)
        finally:
            if peer:
                peer.close()
    medians = {
        name: {who: statistics.median(some) for who, some in of.items()}
        for name, of in speeds.items()
    }
    ratios = [of["polylm_jax"] / of["lm-eval, transformers"] for of in medians.values() if peer]
    return {
        "device": jax.devices()[0].device_kind,
        "dtype": compute.dtype,
        "requests per second of processor time": medians,
        "geometric mean of ratios": math.prod(ratios) ** (1 / len(ratios)) if ratios else None,
        "padding": {name: padding(items, settings) for name, items in forms.items()},
    }


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


def ours(decoder: Decoder, params: Any, items: list[list[Pair]], settings: Evaluation) -> float:
    """Seconds of processor time from ids to sums."""
    started = time.process_time()
    trees = [tree(pairs) for pairs in items]
    planned = plan([one.size for one in trees], settings.row_length, settings.rows, 1)
    score_trees(decoder, {"params": params}, trees, planned, lambda *_: None)
    return time.process_time() - started


def padding(items: list[list[Pair]], settings: Evaluation) -> float:
    """Share of the computed positions that are no item's."""
    trees = [tree(pairs) for pairs in items]
    planned = plan([one.size for one in trees], settings.row_length, settings.rows, 1)
    return 1 - sum(len(one.tokens) for one in trees) / sum(one.positions for one in planned)


def show(result: dict[str, Any], console: Console) -> None:
    """Prints the figures as a table, then as one line of JSON."""
    table = Table(
        *("form", "who", "requests/s", "polylm_jax / it", "padding"),
        title=f"Scoring choices, {result['device']}, {result['dtype']}, processor time",
    )
    for name, speeds in result["requests per second of processor time"].items():
        for who, speed in speeds.items():
            ratio = "" if who == "polylm_jax" else f"{speeds['polylm_jax'] / speed:.2f}"
            share = f"{result['padding'][name]:.0%}" if who == "polylm_jax" else ""
            table.add_row(name, who, f"{speed:,.1f}", ratio, share)
    if result["geometric mean of ratios"]:
        table.add_row("geometric mean", "", "", f"{result['geometric mean of ratios']:.2f}", "")
    console.print(table)
    print(json.dumps(result))
