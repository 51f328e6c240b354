"""Say what a run needs of a slice that is not here: compiled, in memory, time and chip-hours."""

import argparse
import json
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import jax

from polylm_jax import config
from polylm_jax.errors import UserError
from polylm_jax.files import destination, local, output
from polylm_jax.plan import certified, decode
from polylm_jax.plan.compile import Run, check, compile_step, on, parts_here
from polylm_jax.plan.report import (
    COLUMNS,
    TABLE_HEAD,
    Plan,
    by_text,
    draw,
    lines,
    make_plan,
    record,
    row,
)
from polylm_jax.plan.search import as_gin, cheaper, search, settings_of
from polylm_jax.plan.slices import FAMILIES, Slice, missing_compiler, slice_of
from polylm_jax.plan.text import RATES, table
from polylm_jax.ranges import TINY, Range
from polylm_jax.sizes import Count
from polylm_jax.verbs import number

WEIGHTS = ("int8", "float")  # float: of compute.dtype
# how a run's name ends: _v5p_128, _4xv5e_256
SLICE = re.compile(rf"_((?:\d+x)?(?:{'|'.join(FAMILIES)}))_(\d+)$")
RUNS = Path("gin_configs/runs")
HERE = "cpu"  # --slice of --text: this machine


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--slice",
        default="",
        help="v5p-128, 4xv5e-256, h100-64, …; by default what the run's name ends with",
    )
    parser.add_argument(
        "--efficiency",
        type=number("--efficiency", Annotated[float, Range(TINY, 1)]),
        default=0.5,
        help="share of the bound that a run reaches (0.5)",
    )
    parser.add_argument(
        "--json", type=partial(destination, name="--json"), help="file for all numbers"
    )
    parser.add_argument(
        "--out",
        default="runs/plans",
        type=partial(local, name="--out"),
        help="folder for figures and the cache",
    )
    parser.add_argument(
        "--search", action="store_true", help="try meshes, remat policies and microbatches"
    )
    parser.add_argument(
        "--decode", choices=WEIGHTS, help="decoding on one chip, with weights of this type"
    )
    parser.add_argument(
        "--text",
        action="store_true",
        help="where a step's time goes, by the compiled program's text; --slice=cpu: on this CPU",
    )
    parser.add_argument(
        "--memory",
        type=number("--memory", Annotated[float, Range(TINY, 1e6, also=(0, "the chip's"))]),
        default=0,
        help="GB of the device to decode on (the chip's)",
    )
    parser.add_argument(
        "--best", type=number("--best", Count), default=6, help="how many a search compiles (6)"
    )
    parser.add_argument(
        "--known",
        action="store_true",
        help="only what is known without compiling: whether it can be split, and is certified",
    )
    parser.add_argument(
        "--certify",
        metavar="FILE",
        type=partial(destination, name="--certify"),
        help="plan every run of gin_configs/runs that is named after a slice, or those of them "
        "that --gin_file names; the table goes between the marks in FILE",
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    jax.config.update("jax_platforms", "cpu")  # whatever is here, it is not what is planned for
    jax.config.update("jax_enable_compilation_cache", False)  # a slice's programs cannot be read
    if given.certify:
        _certify(given)
        return
    out, name = Path(given.out), Path(given.gin_file[-1]).stem if given.gin_file else "run"
    if given.known:
        print(_known(certified.any_slice_of(given.slice or slice_in(name))))
        return
    if given.text and given.slice == HERE:
        print("\n".join(_here()))
        return
    where = slice_of(given.slice or slice_in(name))
    if given.decode:
        _decode(given, name, where)
        return
    plan = _search(given, name, where) if given.search else _plan(given, name, where)
    print("\n".join([*lines(plan), *(by_text(plan) if given.text else [])]))
    figure = draw(plan, out / f"{f'{name}_{where.name}' if given.slice else name}.png")
    if given.json:
        _write(given.json, record(plan))
    print(f"\nThe figure is {figure}{f', the numbers are in {given.json}' if given.json else ''}.")
    if not plan.fits:
        raise UserError(f"{name} does not fit {where.name}; see above for what would help.")


def settings() -> Run:
    """What of the parsed gin makes the step."""
    return Run(
        training=config.get("train"),
        size=config.get("model"),
        init=config.get("init"),
        compute=config.get("compute"),
        mesh=config.get("mesh"),
        optimizer=config.get("optimizer"),
        length=config.get("rows").length,
        lora=config.get("lora"),
        marked=bool(config.get("tune").data),
    )


def slice_in(name: str) -> str:
    """The slice that a run's name ends with: "v5e-256" of polylm_1b7_v5e_256."""
    found = SLICE.search(name)
    if found is None:
        raise UserError(f"give --slice: the name {name} does not end with one, as …_v5p_128 does.")
    return f"{found[1]}-{found[2]}"


def _here() -> list[str]:
    """A step on this CPU, by its text."""
    head, *rest = table(parts_here(settings()), RATES[HERE])
    return [f"A step on one device of this CPU, {head}", *rest]


def _plan(given: argparse.Namespace, name: str, where: Slice) -> Plan:
    planned = on(where, settings())
    check(planned, where)
    compiled = compile_step(planned, where, Path(given.out, "cache"))
    return make_plan(name, planned, where, compiled, given.efficiency)


def _known(where: Slice) -> str:
    planned = on(where, settings())
    certified.refuse(planned, where)
    for one in certified.rows(Path()):
        file = RUNS / f"{one.name}.gin"
        if one.compiles == "not tried" or slice_in(one.name) != where.name or not file.is_file():
            continue
        config.parse([str(file)], [])
        if certified.same_memory(planned, on(where, settings()), where):
            if one.compiles != "yes":
                raise UserError(f"it does not fit {where.name}: {one.name} is certified so.")
            return f"It fits {where.name}, {one.memory} GiB a chip: {one.name} is certified."
    return (
        f"Whether it fits {where.name} is not certified; "
        f"`polylm plan --slice={where.name}` with the same flags compiles it and tells."
    )


def _search(given: argparse.Namespace, name: str, where: Slice) -> Plan:
    compiler = partial(compile_step, cache=Path(given.out, "cache"))
    say = partial(print, flush=True)
    plans = search(name, on(where, settings()), where, given.best, given.efficiency, compiler, say)
    print("\nOf those that fit, the least bound first:")
    for rank, plan in enumerate(plans, 1):
        print(f"  {rank}. {settings_of(plan.run)}: {plan.bound.seconds:.3f} s a step or more")
    file = Path(given.out, f"{name}_{where.name}_found.gin")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(as_gin(given.gin_file, plans[0]))
    print(f"The first is written to {file}.\n")
    return plans[0]


def _decode(given: argparse.Namespace, name: str, where: Slice) -> None:
    size, compute = config.get("model"), config.get("compute")
    print(f"Compiling {given.decode} decoding for one chip of {where.name}.", flush=True)
    plan = decode.plan_decode(
        size, compute, given.decode == "int8", where, given.memory * decode.GB
    )
    print("\n".join(decode.lines(plan, name, size, where)))
    if given.json:
        _write(given.json, asdict(plan))
    if not plan.fits:
        raise UserError(f"{name} does not fit; int8 weights or a smaller model.context would help.")


def _write(path: str, numbers: dict) -> None:
    with output(path) as file:
        file.write((json.dumps(numbers, indent=1) + "\n").encode())


def _certify(given: argparse.Namespace) -> None:
    _, former, _ = certified.around_the_table(given.certify)
    rows: dict[str, str] = {}
    failed, costly = list[str](), list[str]()
    files = [file for file in sorted(RUNS.glob("*.gin")) if SLICE.search(file.stem)]
    chosen = {Path(file).stem for file in given.gin_file} or {file.stem for file in files}
    if other := chosen - {file.stem for file in files}:
        raise UserError(
            f"{min(other)} of --gin_file is no run of {RUNS} named after a slice; leave it out."
        )
    for file in (file for file in files if file.stem in chosen):
        where = slice_of(slice_in(file.stem))
        old = "".join(_line_of(file.stem, former))
        if old and missing_compiler(where):
            print(f"{file.stem}: as before. {missing_compiler(where)}", flush=True)
            rows[file.stem] = old + " |" * (len(COLUMNS) + 1 - old.count("|"))
            continue
        config.parse([str(file)], given.overrides)
        plan = _plan(given, file.stem, where)
        rows[file.stem] = row(plan)
        print(rows[file.stem], "" if rows[file.stem] == old else "(new)", flush=True)
        failed += [] if plan.fits else [file.stem]
        costly += _costly(given, plan)
    # again: it may have been edited meanwhile, and its other rows made by another process
    before, latest, after = certified.around_the_table(given.certify)
    kept = {file.stem: line for file in files for line in _line_of(file.stem, latest)}
    rows = kept | rows
    made = "\n".join([TABLE_HEAD, *(rows[name] for name in sorted(rows))]) + "\n"
    with output(given.certify) as out:
        out.write((before + made.join(certified.MARKS) + after).encode())
    print(f"The table is in {given.certify}.")
    if failed:
        raise UserError(f"These no longer fit: {', '.join(failed)}; the table says which and how.")
    if costly:
        raise UserError(f"These compute more again than they must: {'; '.join(costly)}.")


def _line_of(name: str, table: str) -> list[str]:
    """The row of a run in a table of Markdown, if there is one."""
    return [line for line in table.splitlines() if f"`{name}`" in line][:1]


def _costly(given: argparse.Namespace, plan: Plan) -> list[str]:
    """What the run file should say, if a cheaper remat policy fits."""
    for one in cheaper(plan.run, plan.where):
        compiled = compile_step(one, plan.where, Path(given.out, "cache"))
        if compiled and compiled.fits:
            return [f'{plan.name} fits with compute.remat = "{one.compute.remat}"']
    return []
