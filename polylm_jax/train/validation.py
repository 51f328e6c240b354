"""Held-out loss per source, in nats per token and in bits per byte."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from polylm_jax.data.rows import LEARNED, Store
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.parallel.sharding import batch_sharding


def held_out(store: Store, most_rows: int) -> dict[str, int]:
    """How many held-out rows of each source a run is validated on, most_rows at most.

    Sources that have none are left out; a small corpus in long rows may have none at all.
    """
    counts = {source: min(most_rows, store.rows(source, "valid")) for source in store.sources}
    return {source: count for source, count in counts.items() if count > 0}


def validation(
    evaluate: Callable[[dict[str, jax.Array]], jax.Array],
    mesh: Mesh,
    store: Store,
    tokenizer: Tokenizer,
    counts: dict[str, int],
    batch: int,
) -> dict[str, Any]:
    """Held-out loss of each source: {"bits_per_byte": {source: …}, "loss": {source: …}}.

    Bits per byte is the summed loss in bits over the UTF-8 bytes that the learned targets stand
    for, which compares across tokenizers and languages; loss is nats per learned token.
    evaluate: function (batch) -> summed loss of each row, of step.make_evaluate. counts: of rows,
    as held_out gives them, not none. batch: rows at a time.
    """
    which = np.repeat(np.arange(len(counts)), list(counts.values()))
    wanted = list(counts), which, np.concatenate([*map(np.arange, counts.values())]), "valid"
    rows = {"tokens": store.read_mixed(*wanted)}
    learned = np.ones((len(which), store.length), np.int64)
    if store.marked:
        rows["marks"] = store.marks_mixed(*wanted)
        learned = (rows["marks"][:, 1:] & LEARNED).astype(np.int64)

    def losses(first: int) -> jax.Array:
        # the last part begins again at row 0, so that all parts are of one shape
        part = np.arange(first, first + batch) % len(which)
        return evaluate(
            {name: jax.device_put(x[part], batch_sharding(mesh)) for name, x in rows.items()}
        )

    parts = [losses(first) for first in range(0, len(which), batch)]
    nats = np.concatenate([np.asarray(part) for part in parts])[: len(which)]
    sizes = (tokenizer.piece_bytes[rows["tokens"][:, 1:]] * learned).sum(axis=1)
    tokens = learned.sum(axis=1)
    ends = np.cumsum(list(counts.values()))
    spans = {s: slice(end - n, end) for end, (s, n) in zip(ends, counts.items(), strict=True)}
    return {
        "kind": "valid",
        "bits_per_byte": {
            source: float(nats[span].sum() / np.log(2) / sizes[span].sum())
            for source, span in spans.items()
        },
        "loss": {
            source: float(nats[span].mean() / np.float32(tokens[span].mean()))
            for source, span in spans.items()
        },
    }


def told(record: dict[str, Any]) -> str:
    """One line of what `validation` returned."""
    bits = record["bits_per_byte"]
    lost = [source for source, value in bits.items() if not np.isfinite(value)]
    if lost:
        return f"validation is not a number in {', '.join(lost)}"
    return f"validation {np.mean(list(bits.values())):.3f} bits per byte (mean of sources)"
