"""Held-out loss per source, in nats per token and in bits per byte."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from polylm_jax.data.rows import Store
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.parallel.sharding import batch_sharding


def held_out(store: Store, most_rows: int) -> dict[str, int]:
    """How many held-out rows of each source a run is validated on, most_rows at most.

    Sources that have none are left out; a small corpus in long rows may have none at all.
    """
    counts = {source: min(most_rows, store.rows(source, "valid")) for source in store.sources}
    return {source: count for source, count in counts.items() if count > 0}


def validation(
    evaluate: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    mesh: Mesh,
    store: Store,
    tokenizer: Tokenizer,
    counts: dict[str, int],
    batch: int,
) -> dict[str, Any]:
    """Held-out loss of each source: {"bits_per_byte": {source: …}, "loss": {source: …}}.

    Bits per byte is the summed loss in bits over the UTF-8 bytes that the targets stand for,
    which compares across tokenizers and languages; loss is nats per token.
    evaluate: as made by step.make_evaluate. counts: of rows, as held_out gives them, not none.
    batch: rows at a time.
    """
    rows = np.concatenate([store.read(s, np.arange(n), "valid") for s, n in counts.items()])
    padding = -len(rows) % batch
    padded = np.concatenate([rows, np.repeat(rows[:1], padding, axis=0)])
    losses = [
        evaluate(params, jax.device_put(part, batch_sharding(mesh)))
        for part in np.split(padded, len(padded) // batch)
    ]
    nats = np.concatenate([np.asarray(part) for part in losses])[: len(rows)]
    sizes = tokenizer.piece_bytes[rows[:, 1:]].sum(axis=1)
    ends = np.cumsum(list(counts.values()))
    spans = {s: slice(end - n, end) for end, (s, n) in zip(ends, counts.items(), strict=True)}
    return {
        "kind": "valid",
        "bits_per_byte": {
            source: float(nats[span].sum() / np.log(2) / sizes[span].sum())
            for source, span in spans.items()
        },
        "loss": {source: float(nats[span].mean() / store.length) for source, span in spans.items()},
    }


def told(record: dict[str, Any]) -> str:
    """One line of what `validation` returned."""
    bits = record["bits_per_byte"]
    lost = [source for source, value in bits.items() if not np.isfinite(value)]
    if lost:
        return f"validation is not a number in {', '.join(lost)}"
    return f"validation {np.mean(list(bits.values())):.3f} bits per byte (mean of sources)"
