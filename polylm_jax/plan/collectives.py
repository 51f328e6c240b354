"""What a compiled program sends between chips, read from its text."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
BETWEEN = "slices"  # what is sent between slices, in the place of mesh axes
BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*)? \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_SEVERAL = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """Sends of one kind over the same mesh axes.

    count: how often a chip takes part in one step. bytes: what enters one chip in one step,
    by the ring algorithm. axes: names of mesh axes, "data+fsdp" for both at once, or BETWEEN.
    """

    kind: str
    axes: str
    count: int
    bytes: float


@dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    op: str
    rest: str
    root: bool


def collectives(text: str, mesh_shape: dict[str, int], slices: int = 1) -> list[Collective]:
    """The program's collectives, those in loops times their trips, largest first.

    text: compiled.as_text() of an SPMD program whose devices are in the mesh's order. slices: into
    which the first axis of the mesh is cut; the program is then one slice's, which hands what
    goes to the others to its host.
    A collective that the compiler cuts into pieces, so that other work runs meanwhile, keeps its
    channel and counts once.
    """
    program, entry = _parse(text)
    first, *others = mesh_shape.items()
    of_slice = dict([(first[0], first[1] // slices), *others])
    counts: Counter[tuple[str, str]] = Counter()
    sent: defaultdict[tuple[str, str], float] = defaultdict(float)
    found: dict[tuple, tuple[int, _Instruction, bool]] = {}
    for name, times in _multiplicities(program, entry).items():
        # the TPU compiler writes a reduce-scatter as a fusion of this name around an all-reduce
        scattered = name.startswith("all-reduce-scatter")
        seen: Counter[tuple] = Counter()
        for one in program[name]:
            if one.op == "send" and (between := _MEGASCALE.search(one.rest)):
                kind = between[1].lower().replace("_", "-")
                counts[kind, BETWEEN] += times
                # (what is sent, context, token)
                size = _arrays(one.type)[0] * (slices - 1) / slices
                sent[kind, BETWEEN] += times * size * (2 if kind == "all-reduce" else 1)
            if one.op.removesuffix("-start") not in KINDS:
                continue
            channel = re.search(r"channel_id=(\d+)", one.rest)
            # those of shard_map share a channel, so the type and the place count as well
            alike = (channel[1] if channel else name, *_ARRAY.findall(one.type))
            seen[alike] += 1
            key = (alike, seen[alike])
            # a piece may stand in a loop's body; the start does not
            if key not in found or times < found[key][0]:
                found[key] = (times, one, scattered)
    for times, one, scattered in found.values():
        kind = one.op.removesuffix("-start")
        ways, axes = _group(one.rest, of_slice)
        if ways == 1:
            continue
        size = _bytes_in(kind, one, ways, program)
        if scattered and kind == "all-reduce":
            kind, size = "reduce-scatter", size / 2
        counts[kind, axes] += times
        sent[kind, axes] += times * size
    listed = [Collective(*key, counts[key], sent[key]) for key in counts]
    return sorted(listed, key=lambda one: -one.bytes)


def trips(text: str) -> dict[str, int]:
    """How often the body of each while loop of a program runs, by the loop's name."""
    program, _ = _parse(text)
    return {
        one.name: _trips(one, program, instructions)
        for instructions in program.values()
        for one in instructions
        if one.op == "while"
    }


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Instructions of each computation by its name, and the name of the entry."""
    program: dict[str, list[_Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if line and not line[0].isspace():
            if header := _HEADER.match(line):
                current = program.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
        elif match := _INSTRUCTION.match(line):
            root, name, kind, op, rest = match.groups()
            current.append(_Instruction(name, kind, op, rest, bool(root)))
    return program, entry


def _multiplicities(program: dict[str, list[_Instruction]], entry: str) -> dict[str, int]:
    """How often each computation runs in one run of the program; the least, if it has callers."""
    least = {entry: 1}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        for one in program[name]:
            times = least[name]
            if one.op == "while":
                times *= _trips(one, program, program[name])
            for called in _called(one):
                if called in program and times < least.get(called, times + 1):
                    least[called] = times
                    waiting.append(called)
    return least


def _called(one: _Instruction) -> Iterator[str]:
    yield from _CALLED.findall(one.rest)
    for names in _SEVERAL.findall(one.rest):
        yield from re.findall(r"[\w.\-]+", names)


def _trips(
    loop: _Instruction, program: dict[str, list[_Instruction]], around: list[_Instruction]
) -> int:
    """Trips of a counted loop: as the compiler says, or (limit - start) / step; else 1."""
    known = re.search(r'"known_trip_count":\s*\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    condition, body = (
        program.get(re.search(rf"{part}=%?([\w.\-]+)", loop.rest)[1], [])  # type: ignore[index]
        for part in ("condition", "body")
    )
    compare = next((one for one in condition if one.op == "compare"), None)
    if compare is None or "direction=LT" not in compare.rest:
        return 1
    counter, limit = _operands(compare)[:2]
    end = _constant(limit, condition)
    place = re.search(r"index=(\d+)", _named(counter, condition).rest)
    if end is None or place is None:
        return 1
    at = int(place[1])
    start = _constant(_operands(_named(_operands(loop)[0], around))[at], around) or 0
    return max(1, -(-(end - start) // _step(body, at)))


def _step(body: list[_Instruction], at: int) -> int:
    """What a loop's body adds to element `at` of its state; 1 where it cannot be seen."""
    root = next(one for one in body if one.root)
    operands = _operands(root)
    added = _named(operands[at], body) if root.op == "tuple" and at < len(operands) else root
    while added.op in ("copy", "bitcast"):
        added = _named(_operands(added)[0], body)
    if added.op != "add":
        return 1
    steps = [_constant(name, body) for name in _operands(added)]
    return next((step for step in steps if step), 1)


def _named(name: str, instructions: list[_Instruction]) -> _Instruction:
    nothing = _Instruction(name, "", "", "", False)
    return next((one for one in instructions if one.name == name), nothing)


def _constant(name: str, instructions: list[_Instruction]) -> int | None:
    one = _named(name, instructions)
    while one.op in ("copy", "bitcast", "convert"):
        one = _named(_operands(one)[0], instructions)
    value = re.match(r"(-?\d+)\)", one.rest) if one.op == "constant" else None
    return int(value[1]) if value else None


def _operands(one: _Instruction) -> list[str]:
    depth, end = 1, 0
    for end, letter in enumerate(one.rest):  # noqa: B007
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            break
    return re.findall(r"%([\w.\-]+)", one.rest[:end])


def _arrays(kind: str) -> list[float]:
    """Bytes of each array of a type."""
    sizes = []
    for name, shape in _ARRAY.findall(kind):
        digits = re.search(r"\d+", name)
        bits = BITS.get(name) or int(digits[0] if digits else 8)
        sizes.append(prod(int(n) for n in shape.split(",") if n) * bits / 8)
    return sizes


def _bytes_in(
    kind: str, one: _Instruction, ways: int, program: dict[str, list[_Instruction]]
) -> float:
    """Bytes that enter one chip, by the ring algorithm, in one run of the instruction."""
    sizes = _arrays(one.type)
    if one.op.endswith("-start") and kind != "all-reduce":
        # (operands, results, flags): the results are as many as the operands
        sizes = sizes[len(_operands(one)) :][: len(_operands(one))]
    size, share = sum(sizes), (ways - 1) / ways
    return {
        "all-gather": size * share,
        "all-reduce": 2 * size * share,
        "reduce-scatter": size * (ways - 1),
        "all-to-all": size * share,
        "collective-permute": size,
    }[kind]


def _group(rest: str, mesh_shape: dict[str, int]) -> tuple[int, str]:
    """Chips of one group, and the mesh axes along which they differ."""
    devices = prod(mesh_shape.values())
    pairs = re.search(r"source_target_pairs=\{(.*?\})\}", rest)
    if pairs:
        groups = [[int(n) for n in re.findall(r"\d+", pair)] for pair in pairs[1].split("},")]
    else:
        groups = _replica_groups(rest, devices)
    shape = list(mesh_shape.values())
    differs = np.zeros(len(shape), bool)
    for group in groups:
        places = np.array(np.unravel_index(group, shape))
        differs |= (places != places[:, :1]).any(axis=1)
    axes = [name for name, differ in zip(mesh_shape, differs, strict=True) if differ]
    return len(groups[0]), "+".join(axes)


def _replica_groups(rest: str, devices: int) -> list[list[int]]:
    """The three ways to write groups: {{0,1},{2,3}}, [2,2]<=[4]T(…), mesh['a'=2,'b'=2] {'a'}."""
    mesh = re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[(.*?)\](?:T\((.*?)\))?\))? \{(.*?)\}",
        rest,
    )
    if mesh:
        names, sizes = zip(*re.findall(r"'(\w+)'=(\d+)", mesh[1]), strict=True)
        ids = _iota(mesh[2] or ",".join(sizes), mesh[3]).reshape([int(size) for size in sizes])
        within = [names.index(name) for name in re.findall(r"'(\w+)'", mesh[4])]
        outside = [axis for axis in range(ids.ndim) if axis not in within]
        ways = prod(ids.shape[axis] for axis in within)
        return ids.transpose(outside + within).reshape(-1, ways).tolist()
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        return _iota(iota[2], iota[3]).reshape([int(n) for n in iota[1].split(",")]).tolist()
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", rest)
    if listed:
        return [[int(n) for n in re.findall(r"\d+", part)] for part in listed[1].split("},")]
    return [list(range(devices))]


def _iota(shape: str, order: str | None) -> np.ndarray:
    """0, 1, 2, … as an array of the shape "8,4,2", its axes then in the order "1,0,2"."""
    sizes = [int(n) for n in shape.split(",")]
    ids = np.arange(prod(sizes)).reshape(sizes)
    return ids.transpose([int(n) for n in order.split(",")]) if order else ids
