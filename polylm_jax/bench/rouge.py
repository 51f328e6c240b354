"""ROUGE-L beside rouge_score on the same pairs, and what an instruction costs against a pool.

The texts are made up: 4 to 24 words each, which come as often as words do (Zipf). All times are of
the process itself, so that others on the machine count less.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from polylm_jax.errors import UserError
from polylm_jax.tune.rouge import Texts

FEW, MANY = 120, 10_000  # texts of which all pairs are made: with the peer, and of a language
POOLS = (1_000, 10_000, 100_000)
REPLY = 17  # tasks that are compared at once
ROUNDS = 3


def run(peer_python: str | None) -> dict:
    """Pairs per second of both (the peer's is None where it is not installed), the largest
    difference of their F, and milliseconds an instruction takes against each pool.

    peer_python: an interpreter that has rouge_score; None for this one.
    """
    texts = made_up(POOLS[-1])
    some = texts[:FEW]
    ours, theirs, difference = [], [], 0.0
    python = peer_python or (sys.executable if importlib.util.find_spec("rouge_score") else "")
    for _ in range(ROUNDS):
        seconds, f = all_pairs(some * 10)
        ours.append(len(f) ** 2 / seconds)
        if python:
            answer = _peer(python, some)
            theirs.append(len(some) ** 2 / answer["seconds"])
            difference = max(difference, float(np.abs(f[:FEW, :FEW] - answer["f"]).max()))
    return {
        "pairs per second": {
            "polylm_jax": statistics.median(ours),
            "rouge_score": statistics.median(theirs) if theirs else None,
        },
        "largest difference": difference if theirs else None,
        f"seconds for all pairs of {MANY}": _nearest(texts[:MANY]),
        "milliseconds against a pool": {str(pool): _against(texts[:pool]) for pool in POOLS},
    }


def made_up(count: int) -> list[str]:
    """So many texts, the same each time."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(4, 25, count)
    words = draw.zipf(1.3, lengths.sum()) % 50_000
    parts = np.split(words, np.cumsum(lengths)[:-1])
    return [" ".join(map(str, part)) for part in parts]


def all_pairs(texts: list[str]) -> tuple[float, np.ndarray]:
    """Seconds that F of all pairs takes, and it."""
    pool = Texts(str.split)
    started = time.process_time()
    pool.add(texts)
    f = pool.f(texts)
    return time.process_time() - started, f


def show(result: dict, console: Console) -> None:
    """Prints the figures as a table, then as one line of JSON."""
    table = Table("what", "who", "measured", "polylm_jax / it", title="ROUGE-L, side by side")
    speeds = result["pairs per second"]
    for who, speed in speeds.items():
        if speed is None:
            hint = "not installed; pip install rouge-score, or name --peer_python=PATH"
            table.add_row("pairs of texts", who, hint, "")
        else:
            ratio = f"{speeds['polylm_jax'] / speed:,.0f}"
            table.add_row("pairs of texts", who, f"{speed:,.0f} a second", ratio)
    if result["largest difference"] is not None:
        table.add_row("largest difference of F", "both", f"{result['largest difference']:.1e}", "")
    seconds = result[f"seconds for all pairs of {MANY}"]
    table.add_row(f"all pairs of {MANY:,} texts", "polylm_jax", f"{seconds:.2f} s", "")
    for pool, milliseconds in result["milliseconds against a pool"].items():
        what = f"a text against {int(pool):,}, {REPLY} at once"
        table.add_row(what, "polylm_jax", f"{milliseconds:.2f} ms", "")
    console.print(table)
    print(json.dumps(result))


def _nearest(texts: list[str]) -> float:
    pool = Texts(str.split)
    pool.add(texts)
    started = time.process_time()
    pool.nearest()
    return time.process_time() - started


def _against(texts: list[str]) -> float:
    pool = Texts(str.split)
    pool.add(texts)
    taken = []
    for _ in range(ROUNDS):
        started = time.process_time()
        pool.f(texts[:REPLY])
        taken.append((time.process_time() - started) / REPLY * 1000)
    return statistics.median(taken)


def _peer(python: str, texts: list[str]) -> dict:
    script = str(Path(__file__).with_name("rouge_peer.py"))
    try:
        done = subprocess.run(
            [python, "-P", script], input=json.dumps(texts), capture_output=True, text=True
        )
    except OSError as error:
        raise UserError(f"--peer_python={python} does not start: {error.strerror}.") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(
            f"--peer_python={python} cannot run rouge_score ({last}); install it there."
        )
    return json.loads(done.stdout)
