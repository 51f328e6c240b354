"""Draws house.svg, the rooms of the package and what imports what, from the imports themselves.

python docs/house.py: writes house.svg beside this file. A line leads from a room up to one that
imports it. One that follows from others is left out: where bench imports train and train imports
data, there is none between bench and data.
"""

import sys
from graphlib import TopologicalSorter
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # of a clone
from tests.test_imports import PACKAGE, ROOMS, imports  # noqa: E402

INK, MUTED, PALE, BLUE = "#22303c", "#6b7a88", "#eef3f6", "#1f6f9f"
WIDTH, HEIGHT, ACROSS, UP = 104, 30, 170, 58  # of a box; from one to the next
ENTRY = "polylm"

Graph = dict[str, set[str]]


def graph_of(package: Path) -> Graph:
    """What each room imports of others; modules that stand alone are rooms, too."""
    found: Graph = {}
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        rooms = found.setdefault(room, set())
        for _, name in imports(path, package):
            first, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if first == package.name and other in ROOMS and other != room:
                rooms.add(other)
    return found


def without_ground(graph: Graph) -> Graph:
    """The same where small modules that import no room are one, "the ground"."""
    ground = {
        room
        for room in TopologicalSorter(graph).static_order()
        if (PACKAGE / f"{room}.py").is_file() and room not in ("config", "__main__")
    }
    named = {room: "the ground" if room in ground else room for room in graph}
    named["__main__"] = ENTRY
    merged: Graph = {}
    for room, others in graph.items():
        merged.setdefault(named[room], set()).update(named[other] for other in others)
    return {room: others - {room} for room, others in merged.items()}


def reduced(graph: Graph) -> Graph:
    """Only the imports that do not follow from others."""
    beyond: Graph = {}
    for room in TopologicalSorter(graph).static_order():
        beyond[room] = set().union(*({other} | beyond[other] for other in graph[room]))
    return {
        room: {o for o in others if not any(o in beyond[between] for between in others)}
        for room, others in graph.items()
    }


def floors(graph: Graph) -> list[list[str]]:
    """The rooms of each floor, the lowest first: a room lies above all that it imports."""
    floor: dict[str, int] = {}
    for room in TopologicalSorter(graph).static_order():
        floor[room] = 1 + max((floor[other] for other in graph[room]), default=-1)
    return [sorted(r for r in floor if floor[r] == f) for f in range(1 + max(floor.values()))]


def drawn(graph: Graph) -> str:
    """The figure as SVG."""
    arrows, places = reduced(graph), dict[str, tuple[float, float]]()
    house = floors(arrows)
    width = max(map(len, house)) * ACROSS
    for up, rooms in enumerate(reversed(house)):
        # a room alone stands aside, left and right in turn, so that no line goes behind it
        aside = (-1) ** up * ACROSS * 0.4 if len(rooms) == 1 else 0
        for along, room in enumerate(rooms):
            x = width / 2 + aside + (along - (len(rooms) - 1) / 2) * ACROSS
            places[room] = (x, 8 + up * UP)
    height = 16 + HEIGHT + (len(house) - 1) * UP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="DejaVu Sans, sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for room, others in sorted(arrows.items()):
        for other in sorted(others):
            (x, y), (x0, y0) = places[room], places[other]
            y, bend = y + HEIGHT, (y0 - y - HEIGHT) / 2
            lines.append(
                f'<path d="M{x0:g} {y0:g} C{x0:g} {y0 - bend:g} {x:g} {y + bend:g} {x:g} {y:g}" '
                f'fill="none" stroke="{BLUE}" stroke-width="1.5"/>'
            )
    for room, (x, y) in sorted(places.items()):
        lines += [
            f'<rect x="{x - WIDTH / 2:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5" '
            f'fill="{PALE}" stroke="{MUTED}"/>',
            f'<text x="{x:g}" y="{y + 20:g}" text-anchor="middle" fill="{INK}">{room}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def house() -> str:
    """The figure of this package."""
    return drawn(without_ground(graph_of(PACKAGE)))


if __name__ == "__main__":
    (HERE / "house.svg").write_text(house(), encoding="utf-8")
