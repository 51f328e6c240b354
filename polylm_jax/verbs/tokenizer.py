"""Train a SentencePiece tokenizer, or take an existing one."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from polylm_jax import config
from polylm_jax.data import tokenizer
from polylm_jax.files import local
from polylm_jax.runs import figures


def flags(parser: argparse.ArgumentParser) -> None:
    """This verb has no flags of its own."""


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    settings, text = config.get("tokenizer"), config.get("corpus").path
    local(settings.path, "tokenizer.path")  # read anywhere, but made here
    print(
        f"Training a tokenizer ({settings.algorithm}, {settings.pieces:,} pieces) on {text}."
        if not settings.model
        else f"Taking the tokenizer {settings.model}."
    )
    trained = tokenizer.train(settings, text)
    table = tokenizer.bytes_per_token(trained, text)
    if not table:
        print(f"The tokenizer is in {settings.path}; there is no held-out text to measure it on.")
        return
    shown = Table("source", "bytes per token", title="Held-out text")
    for source, value in table.items():
        shown.add_row(source, f"{value:.2f}")
    Console().print(shown)
    figure = figures.bytes_per_token(table, Path(settings.path) / "bytes_per_token.png")
    print(f"The tokenizer is in {settings.path}; the figure is {figure}.")
