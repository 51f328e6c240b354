"""Measure a part of the program beside its peers."""

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from polylm_jax import config
from polylm_jax.bench import choices as bench_choices
from polylm_jax.bench import data as bench_data
from polylm_jax.bench import decode as bench_decode
from polylm_jax.bench import rouge as bench_rouge
from polylm_jax.bench import tables
from polylm_jax.bench import train as bench_train
from polylm_jax.bench.step import Work
from polylm_jax.data import tokenizer
from polylm_jax.data.rows import open_store
from polylm_jax.files import destination, existing, local, output
from polylm_jax.parallel import platform
from polylm_jax.sizes import Count
from polylm_jax.verbs import number
from polylm_jax.verbs.model_of import model_of


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument("part", choices=PARTS, help="what to measure")
    parser.add_argument(
        "--json", type=partial(destination, name="--json"), help="file for the figures"
    )
    parser.add_argument("--vs", choices=["torch"], help="measure Hugging Face's GPT-2 beside it")
