"""What a compiled program sends between chips, read from its text."""

import re
from collections import defaultdict
from collections.abc import Iterator
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
# Fusions of these names are the first and the last piece of a collective, without other work.
_BEGINS, _ENDS = "async-collective-start", "async-collective-done"
_SCATTERED = "all-reduce-scatter"
_WORK = ("fusion", "convolution", "dot", "copy", "while", "call", "conditional", "reduce", "sort")
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclass(frozen=True)
class Collective:
    """Sends of one kind over the same mesh axes.

    count: how often a chip takes part in one step. bytes: what enters one chip in one step,
    by the ring algorithm. axes: names of mesh axes, "data+fsdp" for both at once, or BETWEEN.
    overlapped: of the bytes, those sent while the chip computes: between a start and an end that
    have work between them, or in a fusion with it. beside: how many of the count are sent so.
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
    channel and counts where it begins.
    """
    program, entry = parse(text)
    runs = multiplicities(program, entry)
    first, *others = mesh_shape.items()
    of_slice = dict([(first[0], first[1] // slices), *others])
    groups: defaultdict[tuple[str, str], list[Collective]] = defaultdict(list)
    for one in (*_within(program, runs, of_slice), *_between(program, runs, slices)):
        groups[one.kind, one.axes].append(one)
    fields = ("count", "bytes", "overlapped", "beside")
    summed = [
        Collective(*key, *(sum(getattr(one, name) for one in group) for name in fields))
        for key, group in groups.items()
    ]
    return sorted(summed, key=lambda one: -one.bytes)


def _within(program: Program, runs: dict[str, int], mesh: dict[str, int]) -> Iterator[Collective]:
    """What is sent within a slice. runs: how often each computation does."""
    callers = _callers(program)
    pieces: defaultdict[tuple, list[tuple[str, int, Instruction]]] = defaultdict(list)
    for name, times in runs.items():
        # the TPU compiler writes a reduce-scatter as a fusion of this name around an all-reduce
        scattered = name.startswith(_SCATTERED)
        caller, around = callers.get(name, (None, ""))
        for one in program[name]:
            if one.op.removesuffix("-start") not in KINDS:
                continue
            meanwhile = False
            if caller and caller.op == "fusion" and not scattered:
                channel = re.search(r"channel_id=(\d+)", one.rest)
                alike = (channel[1] if channel else name, *ARRAY.findall(one.type))
                pieces[alike].append((caller.name, times, one))
                continue
            if one.op.endswith("-start"):
                meanwhile = _works_before_its_end(one, program[name])
            elif caller and caller.op != "fusion":  # by a processor of its own
                meanwhile = _works_before_its_end(caller, program[around])
            yield from _sent(one, times, mesh, scattered, meanwhile)
    for some in pieces.values():
        # A turn peeled off a loop has a beginning of its own. What goes on may stand in a loop's
        # body that the beginning stands before; a gather in one piece has no beginning.
        begins = [piece for piece in some if piece[0].startswith(_BEGINS)]
        meanwhile = any(not piece[0].startswith((_BEGINS, _ENDS)) for piece in some)
        for _, times, one in begins or [min(some, key=lambda piece: piece[1])]:
            yield from _sent(one, times, mesh, False, meanwhile)


def _sent(
    one: Instruction, times: int, mesh: dict[str, int], scattered: bool, meanwhile: bool
) -> Iterator[Collective]:
    """An instruction as a collective; nothing if it sends nothing."""
    kind = one.op.removesuffix("-start")
    ways, axes = _group(one.rest, mesh)
    size = times * _bytes_in(kind, one, ways)
    if scattered and kind == "all-reduce":
        kind, size = "reduce-scatter", size / 2
    if ways > 1:
        yield Collective(kind, axes, times, size, size * meanwhile, times * meanwhile)


def _between(program: Program, runs: dict[str, int], slices: int) -> Iterator[Collective]:
    """What a slice's program hands to its host for the other slices."""
    for name, times in runs.items():
        for one in program[name]:
            if one.op == "send" and (found := _MEGASCALE.search(one.rest)):
                kind = found[1].lower().replace("_", "-")
                # (what is sent, context, token)
                size = arrays(one.type)[0] * (slices - 1) / slices
                size *= 2 if kind == "all-reduce" else 1
                yield Collective(kind, BETWEEN, times, times * size)


def _callers(program: Program) -> dict[str, tuple[Instruction, str]]:
    """By which instruction, and in which computation, a fusion's or an asynchronous call's is run.

    That is, of each computation's name that has such a caller.
    """
    return {
        name: (one, around)
        for around, instructions in program.items()
        for one in instructions
        if one.op in ("fusion", "async-start", "call-start")
        for name in called(one)
    }


def _works_before_its_end(start: Instruction, around: list[Instruction]) -> bool:
    """Whether something is computed between an asynchronous instruction's start and its end."""
    going = {start.name}
    for one in around[around.index(start) + 1 :]:
        if going & set(operands(one)):
            if one.op.endswith("-done"):
                return False
            going |= {one.name} if one.op.endswith("-update") else set()
        elif _computes(one):
            return True
    return False


def _computes(one: Instruction) -> bool:
    """Whether an instruction keeps a chip busy with arrays, and sends nothing."""
    if one.op == "custom-call":
        return re.search(r'custom_call_target="(Prepare|AllocateBuffer)', one.rest) is None
    sends = any(name.startswith(_SCATTERED) for name in called(one))
    return one.op in _WORK and not sends and not one.name.startswith((_BEGINS, _ENDS))


def _bytes_in(kind: str, one: Instruction, ways: int) -> float:
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
