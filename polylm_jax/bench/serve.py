"""The serving engine beside static batching: the same prompts by `generate`, a batch at a time.

To try: polylm bench serve --gin_file=gin_configs/runs/bench_cpu.gin
Beside llama.cpp: polylm export --run=RUN --to=F16.gguf --format=gguf --dtype=f16, then
polylm bench serve --gguf=F16.gguf with the settings of that run.
"""

import json
import math
import random
import statistics
import threading
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from polylm_jax.bench.decode import check_size, llama_peer
from polylm_jax.bench.peer import PeerProcess
from polylm_jax.decode.sampling import Sampling
from polylm_jax.decode.search import generate
from polylm_jax.decode.weights import for_decoding
from polylm_jax.model.decoder import END_OF_DOCUMENT, Compute, Decoder
from polylm_jax.model.parameters import Init
from polylm_jax.serve.calls import Call, Counts, News
from polylm_jax.serve.engine import DeviceEngine
from polylm_jax.serve.settings import Serving
from polylm_jax.sizes import Size

AT_ONCE = {1: 12, 8: 64, 32: 160}  # calls that go on at once: how many are made
MEAN = 40  # tokens of an answer, geometrically distributed
PROMPT = (16, 112)  # tokens, evenly distributed
LONG = 2000  # tokens of the prompt that others wait for, or what the context has room for
ROUNDS = 3  # of both in turn; the first is not counted


@dataclass(frozen=True)
class Load:
    """What is asked, and how many tokens are wanted of each answer."""

    prompts: list[list[int]]
    limits: list[int]


def run(
    size: Size,
    init: Init,
    compute: Compute,
    serving: Serving,
    at_once: dict[int, int] = AT_ONCE,
    rounds: int = ROUNDS,
    gguf: str = "",
    python: str = "",
) -> dict:
    """Measures one device with random weights; figures are medians of rounds, taken in turn.

    gguf, python: see `bench.decode.run`; llama.cpp answers calls of the same lengths.
    Returns, by calls at once, tokens per second of each, how full the engine's slots were until
    the last call came, and waits in seconds: for a first token, and between tokens while others'
    prompts are read.
    """
    start = jax.jit(Decoder(size, compute, init).init)
    params = start(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    # nothing ends by itself: how long an answer is decides the load
    params = params | {"embedding": params["embedding"].at[END_OF_DOCUMENT].set(0)}
    cpu = jax.default_backend() == "cpu"
    weights = for_decoding(params, size, compute.dtype, cpu=cpu)
    decoder, levels = Decoder(size, compute), {}
    for slots, calls in at_once.items():
        load = made_up(size, calls)
        engine = DeviceEngine(decoder, weights, replace(serving, slots=slots, queue=calls))
        peer = beside(gguf, python, size, slots, load) if gguf else None
        taken: dict[str, list[float]] = {}
        for number in range(rounds):
            spent = {"generate": static(decoder, weights, load, slots)}
            before = engine.counts()
            spent["engine"], after = served(engine, load, slots)
            if peer:
                name = f"llama.cpp {peer.about['ftype']}"
                spent[name] = peer.ask(slots)["seconds"]
            for name, seconds in spent.items() if number else ():
                taken.setdefault(name, []).append(seconds)
        if peer:
            peer.close()
        tokens = sum(load.limits)
        speeds = {name: tokens / statistics.median(each) for name, each in taken.items()}
        levels[str(slots)] = {
            "speeds": speeds,
            "fill": (after.used - before.used) / max(1, after.room - before.room),
            **(waits(engine, size) if slots > 1 else {}),
        }
        engine.close(0)
    return {
        "device": jax.devices()[0].device_kind,
        "dtype": compute.dtype,
        "context": size.context,
        "at once": levels,
    }


def beside(gguf: str, python: str, size: Size, slots: int, load: Load) -> PeerProcess:
    """llama.cpp, ready for the same calls."""
    lengths = [
        (len(prompt), limit) for prompt, limit in zip(load.prompts, load.limits, strict=True)
    ]
    peer = llama_peer(gguf, python, slots, max(map(sum, lengths)), lengths)
    check_size(size, peer.about, gguf)
    return peer


def made_up(size: Size, calls: int) -> Load:
    """So many random prompts and geometric lengths, the same ones each time."""
    dice = random.Random(0)
    least, most = (min(length, size.context // 4) for length in PROMPT)
    prompts = [
        [dice.randrange(3, size.vocabulary) for _ in range(dice.randint(least, most))]
        for _ in range(calls)
    ]
    room = size.context - most
    limits = [min(room, 1 + int(dice.expovariate(1 / MEAN))) for _ in range(calls)]
    return Load(prompts, limits)


def static(decoder: Decoder, params: Any, load: Load, at_once: int) -> float:
    """Seconds in which `generate` answers all, so many in a batch, each waiting for its longest."""
    started = time.perf_counter()
    for first in range(0, len(load.prompts), at_once):
        part = slice(first, first + at_once)
        generate(decoder, params, load.prompts[part], Sampling(), limits=load.limits[part])
    return time.perf_counter() - started


def served(engine: DeviceEngine, load: Load, at_once: int) -> tuple[float, Counts]:
    """Seconds in which an engine answers all, so many at once; its counts as the last one comes."""
    room, started = threading.Semaphore(at_once), time.perf_counter()

    def tell(news: News) -> None:
        if news.ended:
            room.release()

    for prompt, limit in zip(load.prompts, load.limits, strict=True):
        room.acquire()
        engine.submit(Call(tuple(prompt), limit, temperature=0), tell)
    counts = engine.counts()
    for _ in range(at_once):
        room.acquire()
    return time.perf_counter() - started, counts


class Listener:
    """When each piece of an answer came. over: set at its end."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.over = threading.Event()

    def tell(self, news: News) -> None:
        """Takes the time."""
        self.times.append(time.perf_counter())
        if news.ended:
            self.over.set()


def waits(engine: DeviceEngine, size: Size) -> dict[str, float]:
    """Seconds that some wait for others, where all slots but one go on.

    gap: between two bursts' tokens as a rule. worst gap: while a prompt of LONG tokens is read.
    reading: of a prompt of 128 tokens alone. first token: of the same where others go on.
    """
    dice = random.Random(1)
    prompt = lambda length: tuple(dice.randrange(3, size.vocabulary) for _ in range(length))  # noqa: E731
    short, long = min(128, size.context // 4), min(LONG, size.context - 2)

    def ask(length: int, new: int) -> tuple[int, Listener, float]:
        listener = Listener()
        call = Call(prompt(length), new, temperature=0)
        return engine.submit(call, listener.tell), listener, time.perf_counter()

    def seconds(length: int) -> float:
        _, listener, asked = ask(length, 1)
        listener.over.wait()
        return listener.times[0] - asked

    reading = statistics.median(seconds(short) for _ in range(5))
    others = [ask(4, engine.context - 4) for _ in range(engine.slots - 1)]
    while any(len(told.times) < 8 and not told.over.is_set() for _, told, _ in others):
        time.sleep(0.01)
    times = others[0][1].times[2:]
    usual = statistics.median(after - before for before, after in pairwise(times))
    first = statistics.median(seconds(short) for _ in range(3))
    began = time.perf_counter()
    seconds(long)
    ended = time.perf_counter()
    for number, _, _ in others:
        engine.cancel(number)
    for _, listener, _ in others:
        listener.over.wait()
    worst = max(
        (
            after - before
            for _, listener, _ in others
            for before, after in pairwise(listener.times)
            if before < ended and after > began
        ),
        default=math.nan,
    )
    return {
        "gap": usual,
        "worst gap": worst,
        "reading": reading,
        "first token": first,
    }


def show(result: dict, console: Console) -> None:
    """Prints the figures as a table, then as one line of JSON."""
    table = Table(
        *("at once", "who", "tokens/s", "engine's ratio", "slots in use"),
        *("first token", "worst gap"),
        title=f"{result['device']}, {result['dtype']}, a context of {result['context']}",
    )
    for at_once, level in result["at once"].items():
        speeds = level["speeds"]
        told = ["", ""]
        if "gap" in level:
            gap, first = level["gap"], level["first token"] - level["reading"]
            told = [
                f"{first / gap:.1f} bursts + {1000 * level['reading']:.0f} ms",
                f"{level['worst gap'] / gap:.1f} of the usual {1000 * gap:.0f} ms",
            ]
        table.add_row(
            at_once, "engine", f"{speeds['engine']:,.0f}", "", f"{level['fill']:.0%}", *told
        )
        for name, speed in speeds.items():
            if name != "engine":
                table.add_row("", name, f"{speed:,.0f}", f"{speeds['engine'] / speed:.2f}")
    console.print(table)
    print(json.dumps(result))
