"""Where the time of a compiled program goes, read from its text: kernels, bytes, FLOPs, by part.

Nothing runs here. A kernel takes as long as its bytes or its FLOPs do at stated rates, whichever
is longer: good enough to compare two programs, and to say which part of one is worth work.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polylm_jax.plan.costs import SPLASH, flops, moved, target
from polylm_jax.plan.hlo import Instruction, Program, parse, trips_of

GB, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Rates:
    """What a device is assumed to reach, less than its data sheet says.

    products: FLOP/s of bfloat16 matrix products. attention: FLOP/s of a fused attention, of
    scores that are not masked. memory: bytes/s. kernel: seconds that one takes at the least.
    """

    products: float
    attention: float
    memory: float
    kernel: float


# By the family of a slice. h100: a bare product of 8192³ was seen to reach 798e12, a copy 3.0e12.
# TPUs: assumed, 85% of the data sheet's FLOP/s and 90% of its bytes/s; attention at half of that.
# cpu: of two cores of a Xeon with AMX, seen: 829e9 in one product, 21e9 bytes/s read.
RATES = {
    "h100": Rates(700e12, 450e12, 3.0e12, 2e-6),
    "v4": Rates(234e12, 117e12, 1.08e12, 1e-6),
    "v5e": Rates(167e12, 84e12, 0.74e12, 1e-6),
    "v5p": Rates(390e12, 195e12, 2.49e12, 1e-6),
    "v6e": Rates(780e12, 390e12, 1.48e12, 1e-6),
    "cpu": Rates(829e9, 400e9, 21e9, 2e-6),
}


@dataclass(frozen=True)
class Kernel:
    """One instruction that runs. times: in one run of the program, or of its loop.

    scope: of the named scopes below, the innermost that it was traced in, "rest" where in none.
    way: "forward", "again" (computed again for the backward pass), "backward", or "" of what has
    no gradient. bytes: into and out of memory, flops: of products, both of one time.
    """

    name: str
    op: str
    scope: str
    way: str
    times: int
    bytes: float
    flops: float
    attention: bool

    def seconds(self, rates: Rates) -> float:
        """Of all its times."""
        products = rates.attention if self.attention else rates.products
        return self.times * max(rates.kernel, self.bytes / rates.memory, self.flops / products)


@dataclass(frozen=True)
class Part:
    """The kernels of one scope and way together; bytes, flops and seconds of all their times."""

    name: str
    kernels: int
    bytes: float
    flops: float
    seconds: float


# The named scopes of the decoder, the loss, the optimizer and the search.
SCOPES = (
    *("embedding", "attention_norm", "qkv", "attention", "attention_out", "mlp_norm", "mlp_in"),
    *("gelu", "mlp_out", "final_norm", "loss", "optimizer", "logits", "choice", "cache"),
)
# What takes no time of its own; of what is asynchronous the start counts.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "domain"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency", "send", "recv"),
}
_COLLECTIVES = re.compile(
    r"(all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)(-start)?$"
)


def kernels(text: str, loop: bool = False) -> list[Kernel]:
    """The kernels of a program; collectives are not among them, see plan.collectives.

    loop: only of one turn of that loop of the entry that moves the most: a token's, of decoding.
    """
    program, entry = parse(text)
    return _turn(program, entry) if loop else list(_run(program, entry, 1))


def _turn(program: Program, name: str) -> list[Kernel]:
    """One turn of the loop of a computation that moves the most, [] if it has none.

    Of a loop whose products are another's that it runs, as a CPU's bursts of tokens, the other's.
    """
    bodies = [target(one, "body") for one in program[name] if one.op == "while"]
    turns = [(list(_run(program, body, 1)), body) for body in bodies]
    found, body = max(turns, key=lambda turn: _moved(turn[0]), default=([], ""))
    inner = _turn(program, body) if found else []
    return inner if 2 * _multiplied(inner) > _multiplied(found) else found


def parts(found: list[Kernel], rates: Rates) -> list[Part]:
    """Kernels by scope and way, what takes the longest first."""
    groups: dict[str, list[Kernel]] = {}
    for one in found:
        groups.setdefault(", ".join(filter(None, (one.scope, one.way))), []).append(one)
    summed = [_sum(name, group, rates) for name, group in groups.items()]
    return sorted(summed, key=lambda part: -part.seconds)


def whole(found: Sequence[Part]) -> Part:
    """All parts as one."""
    fields = ("kernels", "bytes", "flops", "seconds")
    return Part("all", *(sum(getattr(one, name) for one in found) for name in fields))


def table(found: Sequence[Part], rates: Rates) -> list[str]:
    """Parts in words, with the rates that their times assume."""
    return [
        f"at {rates.products / TERA:.3g} TFLOP/s of products, {rates.attention / TERA:.3g} of "
        f"attention, {rates.memory / TERA:.3g} TB/s of memory and {rates.kernel * 1e6:.0f} µs a "
        "kernel or more, all assumed:",
        f"  {'part':28}{'kernels':>9}{'GB':>11}{'TFLOP':>10}{'ms':>10}",
        *(
            f"  {one.name:28}{one.kernels:>9,}{one.bytes / GB:>11,.3f}{one.flops / TERA:>10,.3f}"
            f"{one.seconds * 1e3:>10,.3f}"
            for one in (*found, whole(found))
        ),
    ]


def _sum(name: str, group: list[Kernel], rates: Rates) -> Part:
    return Part(
        name,
        sum(one.times for one in group),
        _moved(group),
        sum(one.times * one.flops for one in group),
        sum(one.seconds(rates) for one in group),
    )


def _multiplied(found: list[Kernel]) -> float:
    return sum(one.times * one.flops for one in found)


def _moved(found: list[Kernel]) -> float:
    return sum(one.times * one.bytes for one in found)


def _run(program: Program, name: str, times: int) -> Iterator[Kernel]:
    """The kernels of a computation that runs so often, and of all that it runs."""
    around = program[name]
    types = {one.name: one.type for one in around}
    for one in around:
        if one.op == "while":
            turns = times * trips_of(one, program, around)
            for part in ("body", "condition"):
                yield from _run(program, target(one, part), turns)
        elif one.op == "conditional":
            names = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", one.rest)
            if several := re.search(r"branch_computations=\{([^}]*)\}", one.rest):
                names = re.findall(r"[\w.\-]+", several[1])
            branches = [list(_run(program, branch, times)) for branch in names]
            yield from max(branches, key=_moved, default=[])
        elif one.op in ("call", "async-start", "call-start"):
            inner = target(one, "to_apply") or target(one, "calls")
            yield from _run(program, inner, times)
        elif not (
            one.op in _FREE or one.op.endswith(("-done", "-update")) or _COLLECTIVES.match(one.op)
        ):
            attention = one.op == "custom-call" and (
                "fmha" in one.rest or bool(SPLASH.match(one.name))
            )
            yield Kernel(
                one.name,
                one.op,
                *_place(one, program),
                times,
                moved(one, types, program),
                flops(one, types, program),
                attention,
            )


def _place(one: Instruction, program: Program) -> tuple[str, str]:
    """Scope and way of an instruction, from the name of what it was traced from.

    A fusion that ends outside all scopes, in the sum of a residual, is of its last part inside one.
    """
    if kernel := SPLASH.match(one.name):  # whose text says no more
        return "attention", "forward" if kernel[1] == "fwd" else "backward"
    scope, way = _traced(one)
    if scope is None and one.op == "fusion":
        inner = (_traced(part) for part in reversed(program[target(one, "calls")]))
        scope, way = next((found for found in inner if found[0]), (None, way))
    return scope or "rest", way


def _traced(one: Instruction) -> tuple[str | None, str]:
    found = re.search(r'op_name="([^"]*)"', one.rest)
    path = found[1] if found else ""
    words = re.split(r"[/()]", path)
    scope = next((word for word in reversed(words) if word in SCOPES), None)
    for mark, way in (("rematted", "again"), ("transpose(", "backward"), ("jvp(", "forward")):
        if mark in path:
            return scope, way
    return scope, ""
