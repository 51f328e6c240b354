"""Held-out loss per source, in nats per token and in bits per byte."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from polylm_jax.data.rows import Store
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.parallel.sharding import batch_sharding


def validation(
    evaluate: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    mesh: Mesh,
    store: Store,
    tokenizer: Tokenizer,
    most_rows: int,
    batch: int,
) -> dict[str, Any]:
    """Held-out loss of each source: {"bits_per_byte": {source: …}, "loss": {source: …}}.

    Bits per byte is the summed loss in bits over the UTF-8 bytes that the targets stand for,
    which compares across tokenizers and languages; loss is nats per token.
    evaluate: as made by step.make_evaluate. most_rows: of each source. batch: rows at a time.
    """
    sources = [source for source in store.sources if store.rows(source, "valid")]
    counts = [min(most_rows, store.rows(source, "valid")) for source in sources]
    rows = np.concatenate(
        [store.read(s, np.arange(n), "valid") for s, n in zip(sources, counts, strict=True)]
    )
    padding = -len(rows) % batch
    padded = np.concatenate([rows, np.repeat(rows[:1], padding, axis=0)])
    losses = [
        evaluate(params, jax.device_put(part, batch_sharding(mesh)))
        for part in np.split(padded, len(padded) // batch)
    ]
    nats = np.concatenate([np.asarray(part) for part in losses])[: len(rows)]
    sizes = tokenizer.piece_bytes[rows[:, 1:]].sum(axis=1)
    ends = np.cumsum(counts)
    spans = [slice(end - n, end) for end, n in zip(ends, counts, strict=True)]
    return {
        "kind": "valid",
        "bits_per_byte": {
            source: float(nats[span].sum() / np.log(2) / sizes[span].sum())
            for source, span in zip(sources, spans, strict=True)
        },
        "loss": {
            source: float(nats[span].mean() / store.length)
            for source, span in zip(sources, spans, strict=True)
        },
    }
