"""What a compiled program sends between chips, read from its text."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from math import prod

import numpy as np

from polylm_jax.plan.hlo import (
    ARRAY,
    Instruction,
    Program,
    arrays,
    called,
    multiplicities,
    operands,
    parse,
)

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
BETWEEN = "slices"  # what is sent between slices, in the place of mesh axes
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclass(frozen=True)
class Collective:
    """Sends of one kind over the same mesh axes.

    count: how often a chip takes part in one step. bytes: what enters one chip in one step,
    by the ring algorithm. axes: names of mesh axes, "data+fsdp" for both at once, or BETWEEN.
    overlapped: of the bytes, those sent while the chip may compute: by an instruction with a start
    and an end, or one inside a fusion with something else. beside: how many of the count do so.
    """

    kind: str
    axes: str
    count: int
    bytes: float
    overlapped: float = 0.0
    beside: int = 0


def collectives(text: str, mesh_shape: dict[str, int], slices: int = 1) -> list[Collective]:
    """The program's collectives, those in loops times their trips, largest first.

    text: compiled.as_text() of an SPMD program whose devices are in the mesh's order. slices: into
    which the first axis of the mesh is cut; the program is then one slice's, which hands what
    goes to the others to its host.
    A collective that the compiler cuts into pieces, so that other work runs meanwhile, keeps its
    channel and counts once.
    """
    program, entry = parse(text)
    first, *others = mesh_shape.items()
    of_slice = dict([(first[0], first[1] // slices), *others])
    counts: Counter[tuple[str, str]] = Counter()
    sent: defaultdict[tuple[str, str], float] = defaultdict(float)
    hidden: defaultdict[tuple[str, str], float] = defaultdict(float)
    beside: Counter[tuple[str, str]] = Counter()
    found: dict[tuple, tuple[int, Instruction, bool]] = {}
    started: set[tuple] = set()
    inside = _run_inside(program)
    for name, times in multiplicities(program, entry).items():
        # the TPU compiler writes a reduce-scatter as a fusion of this name around an all-reduce
        scattered = name.startswith("all-reduce-scatter")
        seen: Counter[tuple] = Counter()
        for one in program[name]:
            if one.op == "send" and (between := _MEGASCALE.search(one.rest)):
                kind = between[1].lower().replace("_", "-")
                counts[kind, BETWEEN] += times
                # (what is sent, context, token)
                size = arrays(one.type)[0] * (slices - 1) / slices
                sent[kind, BETWEEN] += times * size * (2 if kind == "all-reduce" else 1)
            if one.op.removesuffix("-start") not in KINDS:
                continue
            channel = re.search(r"channel_id=(\d+)", one.rest)
            # those of shard_map share a channel, so the type and the place count as well
            alike = (channel[1] if channel else name, *ARRAY.findall(one.type))
            seen[alike] += 1
            key = (alike, seen[alike])
            if one.op.endswith("-start") or (name in inside and not scattered):
                started.add(key)
            # a piece may stand in a loop's body; the start does not
            if key not in found or times < found[key][0]:
                found[key] = (times, one, scattered)
    for key, (times, one, scattered) in found.items():
        kind = one.op.removesuffix("-start")
        ways, axes = _group(one.rest, of_slice)
        if ways == 1:
            continue
        size = _bytes_in(kind, one, ways, program)
        if scattered and kind == "all-reduce":
            kind, size = "reduce-scatter", size / 2
        counts[kind, axes] += times
        sent[kind, axes] += times * size
        hidden[kind, axes] += times * size * (key in started)
        beside[kind, axes] += times * (key in started)
    listed = [Collective(*key, counts[key], sent[key], hidden[key], beside[key]) for key in counts]
    return sorted(listed, key=lambda one: -one.bytes)


def _run_inside(program: Program) -> set[str]:
    """Names of the computations that are run by a fusion or between a start and an end."""
    return {
        name
        for instructions in program.values()
        for one in instructions
        if one.op in ("fusion", "async-start")
        for name in called(one)
    }


def _bytes_in(kind: str, one: Instruction, ways: int, program: Program) -> float:
    """Bytes that enter one chip, by the ring algorithm, in one run of the instruction."""
    sizes = arrays(one.type)
    if one.op.endswith("-start") and kind != "all-reduce":
        # (operands, results, flags): the results are as many as the operands
        sizes = sizes[len(operands(one)) :][: len(operands(one))]
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
