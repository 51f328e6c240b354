"""What one instruction of a compiled program costs: bytes that it moves, FLOPs of its products."""

import re
from collections.abc import Callable
from functools import lru_cache
from math import prod

import numpy as np

from polylm_jax.plan.hlo import ARRAY, Instruction, Program, arrays, operands

_SLICES = ("dynamic-slice", "slice", "gather")
_IN_PLACE = ("dynamic-update-slice", "scatter")
# Of these an element of the result needs one of the operand.
_ELEMENT = ("bitcast", "reshape", "convert", "copy", "transpose", "bitcast-convert")
# The TPU's attention kernels by their names, and the products of each; half of them is masked.
SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)")
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_PLACED = re.compile(ARRAY.pattern + r"(\{[^}]*\})?")


def target(one: Instruction, part: str) -> str:
    """Name of the computation that an instruction runs as its `part`, "" if there is none."""
    found = re.search(rf"\b{part}=%?([\w.\-]+)", one.rest)
    return found[1] if found else ""


def moved(one: Instruction, types: dict[str, str], program: Program) -> float:
    """Bytes that one run of an instruction reads and writes: each operand once."""
    given = list(dict.fromkeys(operands(one)))
    if one.op == "fusion":
        return _of_fusion(one, types, program)
    if one.op.removesuffix("-start") in _SLICES:
        # of a start's ((operands), result, context) the result
        result = _arrays(one.type)[len(operands(one)) if one.op.endswith("-start") else 0]
        read = arrays(result)[0] if _size(types[given[0]]) else 0
        return read + _size(result) + sum(_size(types[name]) for name in given[1:])
    if one.op in _IN_PLACE:
        return 2 * sum(_size(types[name]) for name in given[1:])
    if one.op == "custom-call" and "AllocateBuffer" in one.rest:
        return 0
    written = _sizes(one.type)
    workspace = re.search(r"[su]8\[\d+\]\S* *\)$", one.type)
    if one.op == "custom-call" and len(written) > 1 and workspace:
        written = written[:-1]
    if one.op == "copy-start":
        written = written[:1]
    return sum(written) + sum(_size(types.get(name, "")) for name in given)


def _of_fusion(one: Instruction, types: dict[str, str], program: Program) -> float:
    """Bytes of a fusion: of an operand of which it needs a slice, or that it updates, just that."""
    body = program[target(one, "calls")]
    root = next(inner for inner in body if inner.root)
    outputs = operands(root) if root.op == "tuple" else [root.name]
    total = 0.0
    for kind, name in zip(_arrays(one.type), outputs, strict=False):
        total += min(_size(kind), _written(name, body, program))
    counted = set()
    needed = _needed(body, program, True)
    for inner in body:
        if inner.op != "parameter":
            continue
        given = operands(one)[_place(inner)]
        size, elements = _size(types[given]), _elements(inner.type)
        if given not in counted and elements:
            total += size * needed(inner) / elements
        counted.add(given)
    return total


def _place(parameter: Instruction) -> int:
    return int(parameter.rest.split(")")[0])


def _written(name: str, body: list[Instruction], program: Program) -> float:
    """Bytes that are written of a result of a fusion's body: of one updated in place the update."""
    by_name = {inner.name: inner for inner in body}
    inner = by_name[name]
    while inner.op == "bitcast":
        inner = by_name[operands(inner)[0]]
    if inner.op == "fusion":  # a TPU's compiler puts fusions into fusions
        within = program[target(inner, "calls")]
        root = next(one.name for one in within if one.root)
        return _written(root, within, program)
    if inner.op in _IN_PLACE:
        # (array, update, places…) or (array, places, updates)
        return _size(by_name[operands(inner)[1 if "dynamic" in inner.op else 2]].type)
    return _size(inner.type)


def _needed(
    body: list[Instruction], program: Program, whole: bool
) -> Callable[[Instruction], float]:
    """A function of an instruction of a fusion's body: elements of its result that are needed.

    whole: whether what the body gives is the kernel's result, and may lie where an operand lay.
    """
    users: dict[str, list[Instruction]] = {}
    for inner in body:
        for name in dict.fromkeys(operands(inner)):
            users.setdefault(name, []).append(inner)

    def needed(inner: Instruction) -> float:
        total = _elements(inner.type) if inner.root else 0.0
        for user in users.get(inner.name, []):
            first = operands(user)[0] == inner.name
            if first and user.op in _SLICES:
                total += needed(user) if user.op == "slice" else _elements(user.type)
            elif first and user.op in _IN_PLACE:
                total += 0 if kept(user) else _elements(inner.type)
            elif user.op in _ELEMENT:
                total += needed(user)
            elif user.op == "fusion":
                total += _needed_within(user, inner.name, program, kept(user))
            else:
                total += _elements(inner.type)
        return min(total, _elements(inner.type))

    def kept(inner: Instruction) -> bool:
        """Whether an update is a result, which then lies where its operand lay."""
        later = users.get(inner.name, [])
        return (whole and inner.root) or (
            bool(later) and all(user.op in ("bitcast", "tuple") and kept(user) for user in later)
        )

    return needed


def _needed_within(fusion: Instruction, name: str, program: Program, whole: bool) -> float:
    """Elements of an operand that a fusion within a fusion needs; whole as above."""
    body = program[target(fusion, "calls")]
    needed = _needed(body, program, whole)
    return sum(
        needed(inner)
        for inner in body
        if inner.op == "parameter" and operands(fusion)[_place(inner)] == name
    )


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


def flops(one: Instruction, types: dict[str, str], program: Program) -> float:
    """FLOPs of an instruction's matrix products, an addition and a multiplication each two."""
    if one.op == "fusion":
        body = program[target(one, "calls")]
        inside = {inner.name: inner.type for inner in body}
        return sum(flops(inner, inside, program) for inner in body)
    if one.op == "convolution":
        return _of_convolution(one, types)
    if one.op == "custom-call" and "fmha" in one.rest:
        return _of_attention(one, types)
    if one.op == "custom-call" and (phase := SPLASH.match(one.name)):
        # its result has the most axes; what it gives of the softmax, and its own, fewer
        *rows, length, size = max(map(_shape, _arrays(one.type)), key=len)
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
