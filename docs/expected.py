"""Makes the table and the figure of measured.md's "On paper": MFU of the certified runs by the text
of their compiled programs, beside what other stacks have published.

python docs/expected.py: prints the table and writes expected.png beside this file.
"""

from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from polylm_jax import config
from polylm_jax.plan import certified
from polylm_jax.plan.slices import slice_of
from polylm_jax.runs.figures import BLUE, INK, MUTED, PALE, STYLE
from polylm_jax.sizes import flops_per_token
from polylm_jax.verbs.plan import RUNS, slice_in

HERE = Path(__file__).parent


class Published(NamedTuple):
    """What others wrote of their own runs. chip: as the run files' slices are named."""

    chip: str
    what: str
    mfu: float
    source: str


MAXTEXT = "MaxText's README, 2024 (counts attention without its mask)"
RECIPES = "github.com/AI-Hypercomputer/tpu-recipes"
FOUNDRY = "llm-foundry's tables of throughput"
PUBLISHED = (
    Published("v4", "MaxText 22B, v4-128", 0.567, "MaxText's README, November 2023"),
    Published("v5e", "MaxText 32B, v5e-256", 0.669, MAXTEXT),
    Published("v5p", "MaxText 32B, v5p-128", 0.715, MAXTEXT),
    Published("v6e", "MaxText Llama 3.1 8B, v6e-256", 0.455, "MaxText's documentation, 2026"),
    Published("v6e", "MaxText Gemma 3 12B, 262K pieces", 0.381, RECIPES),
    Published("h100", "llm-foundry MPT 1B, 8", 0.418, FOUNDRY),
    Published("h100", "llm-foundry MPT 13B, 128", 0.422, FOUNDRY),
    Published("h100", "MaxText Llama 2 7B, 8", 0.50, "NVIDIA's JAX-Toolbox"),
)


class Expected(NamedTuple):
    """A certified run. bound, text: MFU at the least time of a step, and at the text's."""

    name: str
    chip: str
    bound: float
    text: float


def expected() -> list[Expected]:
    """The pretraining runs whose time by the text stands in the certified table."""
    _, table, _ = certified.around_the_table(str(HERE / "plans.md"))
    head, _, *rows = (
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines()
    )
    found = []
    for row in rows:
        name, bound, text = (row[head.index(n)] for n in ("run", "bound of a step", "by its text"))
        if not text.endswith(" s") or "lora" in name or "multialpaca" in name:
            continue
        config.parse([str(RUNS / f"{name}.gin")], [])
        size, length, where = (
            config.get("model"),
            config.get("rows").length,
            slice_of(slice_in(name)),
        )
        flops = config.get("train").batch * length * flops_per_token(size, length)
        best = flops / (where.chips * where.chip.flops)
        seconds = [float(words.split()[0]) for words in (bound, text)]
        found.append(Expected(name, where.family, *(best / one for one in seconds)))
    return found


def draw(runs: list[Expected]) -> None:
    """Bars of our runs by the text, of the bound behind them, and of what others published."""
    chips = dict.fromkeys(one.chip for one in runs)
    rows: list[tuple[str, float, float, bool]] = []
    for chip in chips:
        rows += [(one.name, one.text, one.bound, True) for one in runs if one.chip == chip]
        rows += [(one.what, one.mfu, 0, False) for one in PUBLISHED if one.chip == chip]
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 0.3 * len(rows) + 1.2), layout="constrained")
        axes = figure.add_subplot()
        for place, (_, value, bound, ours) in enumerate(rows):
            axes.barh(place, bound, color=PALE)
            axes.barh(place, value, color=BLUE if ours else MUTED, height=0.5)
            axes.text(value + 0.005, place, f"{value:.0%}", va="center", color=INK, fontsize=8)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.02)
        axes.set_title(
            "Model FLOPs utilisation\n"
            "blue: ours by the compiled text, nothing has run; pale: at the bound; grey: measured "
            "by others",
            fontsize=9,
            loc="left",
        )
        figure.savefig(HERE / "expected.png", dpi=90)


def main() -> None:
    runs = expected()
    print("| run | MFU at the bound | MFU by the text |\n|---|---|---|")
    for one in runs:
        print(f"| `{one.name}` | {one.bound:.0%} | {one.text:.0%} |")
    print("\n| others | MFU as published | where |\n|---|---|---|")
    for other in PUBLISHED:
        print(f"| {other.what} | {other.mfu:.1%} | {other.source} |")
    draw(runs)


if __name__ == "__main__":
    main()
