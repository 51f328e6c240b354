"""Measure a part of the program beside its peers."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from polylm_jax import config
from polylm_jax.bench import data as bench_data
from polylm_jax.bench import decode as bench_decode
from polylm_jax.data import tokenizer


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument("part", choices=PARTS, help="what to measure")
    parser.add_argument("--json", default="", help="file for the figures")
    parser.add_argument("--vs", choices=["torch"], help="measure Hugging Face's GPT-2 beside it")
    parser.add_argument("--peer_python", default="", help="interpreter that has torch")


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    result = PARTS[given.part](given)
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=1) + "\n")


def _data(given: argparse.Namespace) -> dict:
    length, text = config.get("rows").length, config.get("corpus").path
    print(f"Tokenizing {text} on one core, then feeding rows of {length} tokens; a minute or so.")
    result = bench_data.run(
        text, tokenizer.load(config.get("tokenizer").path), config.get("curriculum"), length
    )
    bench_data.show(result, Console())
    return result


def _decode(given: argparse.Namespace) -> dict:
    size, compute = config.get("model"), config.get("compute")
    beside = f", beside {given.vs}" if given.vs else ""
    print(f"Reading and continuing batches of {bench_decode.BATCHES} random prompts{beside}.")
    result = bench_decode.run(size, config.get("init"), compute, bool(given.vs), given.peer_python)
    bench_decode.show(result, Console())
    return result


PARTS = {"data": _data, "decode": _decode}
