"""The text of a compiled program, taken apart: its computations, instructions and loops."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}
ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*)? \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_SEVERAL = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclass(frozen=True)
class Instruction:
    """One line: name = type op(rest."""

    name: str
    type: str
    op: str
    rest: str
    root: bool


Program = dict[str, list[Instruction]]


def parse(text: str) -> tuple[Program, str]:
    """Instructions of each computation by its name, and the name of the entry."""
    program: Program = {}
    entry, current = "", []
    for line in text.splitlines():
        if line and not line[0].isspace():
            if header := _HEADER.match(line):
                current = program.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
        elif match := _INSTRUCTION.match(line):
            root, name, kind, op, rest = match.groups()
            current.append(Instruction(name, kind, op, rest, bool(root)))
    return program, entry


def multiplicities(program: Program, entry: str) -> dict[str, int]:
    """How often each computation runs in one run of the program; the least, if it has callers."""
    least = {entry: 1}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        for one in program[name]:
            times = least[name]
            if one.op == "while":
                times *= trips_of(one, program, program[name])
            for inner in called(one):
                if inner in program and times < least.get(inner, times + 1):
                    least[inner] = times
                    waiting.append(inner)
    return least


def called(one: Instruction) -> Iterator[str]:
    """Names of the computations that an instruction runs."""
    yield from _CALLED.findall(one.rest)
    for names in _SEVERAL.findall(one.rest):
        yield from re.findall(r"[\w.\-]+", names)


def trips(text: str) -> dict[str, int]:
    """How often the body of each while loop of a program runs, by the loop's name."""
    program, _ = parse(text)
    return {
        one.name: trips_of(one, program, instructions)
        for instructions in program.values()
        for one in instructions
        if one.op == "while"
    }


def trips_of(loop: Instruction, program: Program, around: list[Instruction]) -> int:
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
    counter, limit = operands(compare)[:2]
    end = constant(limit, condition)
    place = re.search(r"index=(\d+)", named(counter, condition).rest)
    if end is None or place is None:
        return 1
    at = int(place[1])
    start = constant(operands(named(operands(loop)[0], around))[at], around) or 0
    return max(1, -(-(end - start) // _step(body, at)))


def _step(body: list[Instruction], at: int) -> int:
    """What a loop's body adds to element `at` of its state; 1 where it cannot be seen."""
    root = next(one for one in body if one.root)
    state = operands(root)
    added = named(state[at], body) if root.op == "tuple" and at < len(state) else root
    while added.op in ("copy", "bitcast"):
        added = named(operands(added)[0], body)
    if added.op != "add":
        return 1
    steps = [constant(name, body) for name in operands(added)]
    return next((step for step in steps if step), 1)


def named(name: str, instructions: list[Instruction]) -> Instruction:
    nothing = Instruction(name, "", "", "", False)
    return next((one for one in instructions if one.name == name), nothing)


def constant(name: str, instructions: list[Instruction]) -> int | None:
    one = named(name, instructions)
    while one.op in ("copy", "bitcast", "convert"):
        one = named(operands(one)[0], instructions)
    value = re.match(r"(-?\d+)\)", one.rest) if one.op == "constant" else None
    return int(value[1]) if value else None


def operands(one: Instruction) -> list[str]:
    """Names of an instruction's operands."""
    depth, end = 1, 0
    for end, letter in enumerate(one.rest):  # noqa: B007
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            break
    return re.findall(r"%([\w.\-]+)", one.rest[:end])


def arrays(kind: str) -> list[float]:
    """Bytes of each array of a type."""
    sizes = []
    for name, shape in ARRAY.findall(kind):
        digits = re.search(r"\d+", name)
        bits = BITS.get(name) or int(digits[0] if digits else 8)
        sizes.append(prod(int(n) for n in shape.split(",") if n) * bits / 8)
    return sizes
