"""Where the time of a compiled program goes, read from its text: kernels, bytes, FLOPs, by part.

Nothing runs here. A kernel takes as long as its bytes or its FLOPs do at stated rates, whichever
is longer: good enough to compare two programs, and to say which part of one is worth work.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from polylm_jax.plan.hlo import ARRAY, Instruction, Program, arrays, operands, parse, trips_of

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
_SLICES = ("dynamic-slice", "slice", "gather")
_IN_PLACE = ("dynamic-update-slice", "scatter")
# Of these an element of the result needs one of the operand.
_ELEMENT = ("bitcast", "reshape", "convert", "copy", "transpose", "bitcast-convert")
# The TPU's attention kernel names what it does.
_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)")
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_PLACED = re.compile(ARRAY.pattern + r"(\{[^}]*\})?")


def kernels(text: str, loop: bool = False) -> list[Kernel]:
    """The kernels of a program; collectives are not among them, see plan.collectives.

    loop: only of one turn of that loop of the entry that moves the most: a token's, of decoding.
    """
    program, entry = parse(text)
    if not loop:
        return list(_run(program, entry, 1))
    turns = [
        list(_run(program, name, 1))
        for one in program[entry]
        if one.op == "while"
        for name in [_target(one, "body")]
    ]
    return max(turns, key=_moved, default=[])


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


def _moved(found: list[Kernel]) -> float:
    return sum(one.times * one.bytes for one in found)


def _target(one: Instruction, part: str) -> str:
    found = re.search(rf"\b{part}=%?([\w.\-]+)", one.rest)
    return found[1] if found else ""


def _run(program: Program, name: str, times: int) -> Iterator[Kernel]:
    """The kernels of a computation that runs so often, and of all that it runs."""
    around = program[name]
    types = {one.name: one.type for one in around}
    for one in around:
        if one.op == "while":
            turns = times * trips_of(one, program, around)
            for part in ("body", "condition"):
                yield from _run(program, _target(one, part), turns)
        elif one.op == "conditional":
            names = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", one.rest)
            if several := re.search(r"branch_computations=\{([^}]*)\}", one.rest):
                names = re.findall(r"[\w.\-]+", several[1])
            branches = [list(_run(program, branch, times)) for branch in names]
            yield from max(branches, key=_moved, default=[])
        elif one.op in ("call", "async-start"):
            inner = _target(one, "to_apply") or _target(one, "calls")
            yield from _run(program, inner, times)
        elif not (
            one.op in _FREE or one.op.endswith(("-done", "-update")) or _COLLECTIVES.match(one.op)
        ):
            attention = "fmha" in one.rest or "splash" in one.rest
            yield Kernel(
                one.name,
                one.op,
                *_place(one, program),
                times,
                _bytes(one, types, program),
                _flops(one, types, program),
                attention,
            )


def _place(one: Instruction, program: Program) -> tuple[str, str]:
    """Scope and way of an instruction, from the name of what it was traced from.

    A fusion that ends outside all scopes, in the sum of a residual, is of its last part inside one.
    """
    scope, way = _traced(one)
    if scope is None and one.op == "fusion":
        inner = (_traced(part) for part in reversed(program[_target(one, "calls")]))
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


def _bytes(one: Instruction, types: dict[str, str], program: Program) -> float:
    """Bytes that one run of an instruction reads and writes: each operand once."""
    given = list(dict.fromkeys(operands(one)))
    if one.op == "fusion":
        return _of_fusion(one, types, program[_target(one, "calls")])
    if one.op in _SLICES:
        return 2 * _size(one.type) + sum(_size(types[name]) for name in given[1:])
    if one.op in _IN_PLACE:
        return 2 * sum(_size(types[name]) for name in given[1:])
    if one.op == "custom-call" and "AllocateBuffer" in one.rest:
        return 0
    result = _sizes(one.type)
    if one.op == "custom-call" and len(result) > 1 and re.search(r"[su]8\[\d+\]\S* *\)$", one.type):
        result = result[:-1]  # the last is a library's workspace
    if one.op == "copy-start":
        result = result[:1]
    return sum(result) + sum(_size(types.get(name, "")) for name in given)


def _of_fusion(one: Instruction, types: dict[str, str], body: list[Instruction]) -> float:
    """Bytes of a fusion: of an operand of which it needs a slice, or that it updates, just that."""
    users: dict[str, list[Instruction]] = {}
    by_name = {inner.name: inner for inner in body}
    for inner in body:
        for name in dict.fromkeys(operands(inner)):
            users.setdefault(name, []).append(inner)
    root = next(inner for inner in body if inner.root)

    def needed(inner: Instruction) -> float:
        """Elements of an instruction's result that the fusion needs."""
        total = _elements(inner.type) if inner.root else 0.0
        for user in users.get(inner.name, []):
            first = operands(user)[0] == inner.name
            if first and user.op in _SLICES:
                total += needed(user) if user.op == "slice" else _elements(user.type)
            elif first and user.op in _IN_PLACE:
                total += 0 if kept(user) else _elements(inner.type)
            elif user.op in _ELEMENT:
                total += needed(user)
            else:
                total += _elements(inner.type)
        return min(total, _elements(inner.type))

    def kept(inner: Instruction) -> bool:
        """Whether an update is a result, which then lies where its operand lay."""
        later = users.get(inner.name, [])
        return inner.root or (
            bool(later) and all(user.op in ("bitcast", "tuple") and kept(user) for user in later)
        )

    def written(name: str) -> float:
        inner = by_name[name]
        while inner.op == "bitcast":
            inner = by_name[operands(inner)[0]]
        if inner.op in _IN_PLACE:
            # (array, update, places…) or (array, places, updates)
            return _size(by_name[operands(inner)[1 if "dynamic" in inner.op else 2]].type)
        return _size(inner.type)

    outputs = operands(root) if root.op == "tuple" else [root.name]
    total = 0.0
    for kind, name in zip(_arrays(one.type), outputs, strict=False):
        total += min(_size(kind), written(name))
    counted = set()
    for inner in body:
        if inner.op != "parameter":
            continue
        given = operands(one)[int(inner.rest.split(")")[0])]
        size, elements = _size(types[given]), _elements(inner.type)
        if given not in counted and elements:
            total += size * needed(inner) / elements
        counted.add(given)
    return total


def _arrays(kind: str) -> list[str]:
    return [found[0] for found in _PLACED.finditer(kind)]


def _sizes(kind: str) -> list[float]:
    """Bytes of each array of a type; 0 of what lies in a memory on the chip, "S(1)"."""
    return [0.0 if re.search(r"S\([1-9]", one) else arrays(one)[0] for one in _arrays(kind)]


def _size(kind: str) -> float:
    return sum(_sizes(kind))


def _elements(kind: str) -> float:
    return float(sum(prod(_shape(one)) for one in _arrays(kind)))


def _shape(kind: str) -> list[int]:
    found = ARRAY.search(kind)
    return [int(n) for n in found[2].split(",") if n] if found else []


def _flops(one: Instruction, types: dict[str, str], program: Program) -> float:
    """FLOPs of an instruction's matrix products, an addition and a multiplication each two."""
    if one.op == "fusion":
        body = program[_target(one, "calls")]
        inside = {inner.name: inner.type for inner in body}
        return sum(_flops(inner, inside, program) for inner in body)
    if one.op == "convolution":
        return _of_convolution(one, types)
    if one.op == "custom-call" and "fmha" in one.rest:
        return _of_attention(one, types)
    if one.op == "custom-call" and (phase := _SPLASH.search(one.rest)):
        # two products forward, three for the queries, four for keys and values; half is masked
        *rows, length, size = _shape(one.type)
        return _SPLASH_PRODUCTS[phase[1]] * prod(rows) * length**2 * size
    contracted = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:] *[\[{]([\d,"\' ]*)', one.rest)
    if one.op not in ("dot", "custom-call") or contracted is None:
        return 0
    left = _shape(types[operands(one)[0]])
    summed = prod(left[int(axis)] for axis in re.findall(r"\d+", contracted[1]))
    return 2 * prod(_shape(one.type)) * summed


def _of_attention(one: Instruction, types: dict[str, str]) -> float:
    """cuDNN's: two products forward, five backward, half of each under a causal mask."""
    found = re.search(r'"intermediate_tensor_shape".*?"dimensions": *\[([^\]]*)\]', one.rest)
    scores = prod(int(n) for n in re.findall(r"\d+", found[1])) if found else 0
    size = _shape(types[operands(one)[0]])[-1]
    products = 5 if "Backward" in one.rest else 2
    return products * 2 * scores * size * (0.5 if '"CAUSAL"' in one.rest else 1)


def _of_convolution(one: Instruction, types: dict[str, str]) -> float:
    """As which a TPU's compiler writes products; batch axes are windows that meet one place."""
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    if found is None:
        return 0
    left, right, out = found.groups()
    given, kernel = (_shape(types[name]) for name in operands(one)[:2])
    result = _shape(one.type)
    window = _window(one.rest)
    total = 2.0 * kernel[right.index("i")]
    for label, size in zip(out, result, strict=True):
        if not label.isdigit():
            total *= size
    for axis in (label for label in out if label.isdigit()):
        at = int(axis)
        steps = {name: values[at] for name, values in window.items()}
        total *= _met(
            result[out.index(axis)],
            given[left.index(axis)],
            kernel[right.index(axis)],
            steps.get("stride", (1,))[0],
            steps.get("pad", (0, 0))[0],
            steps.get("lhs_dilate", (1,))[0],
            steps.get("rhs_dilate", (1,))[0],
        )
    return total


def _window(rest: str) -> dict[str, list[tuple[int, ...]]]:
    """{"size": [(16,), …], "pad": [(0, 0), …], …} of window={size=16x1 pad=0_0x0_0 …}."""
    found = re.search(r"window=\{([^}]*)\}", rest)
    window = {}
    for word in found[1].split() if found else []:
        name, _, value = word.partition("=")
        window[name] = [tuple(int(n) for n in one.split("_")) for one in value.split("x")]
    return window


@lru_cache
def _met(out: int, given: int, kernel: int, stride: int, pad: int, dilate: int, apart: int) -> int:
    """How many pairs of a place in the result and one in the kernel meet an element."""
    places = np.arange(out)[:, None] * stride + np.arange(kernel) * apart - pad
    return int(((places >= 0) & (places <= (given - 1) * dilate) & (places % dilate == 0)).sum())
