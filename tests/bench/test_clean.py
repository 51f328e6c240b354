"""The bench of cleaning: on a tiny corpus, with a peer that is not there."""

import math
import sys

import numpy as np
import pytest
from rich.console import Console

from polylm_jax.bench import clean
from polylm_jax.errors import UserError


def test_all_steps_are_timed_and_shown(tiny, monkeypatch, capsys):
    pytest.importorskip("fasttext")
    monkeypatch.setattr(clean, "ROUNDS", 1)
    monkeypatch.setattr(clean, "_LEAST_BYTES", 1000)
    monkeypatch.setattr(clean, "LEAST", 0)
    model = str(tiny["tokenizer.path"])
    result = clean.run(str(tiny["corpus.path"]), model, "")
    speeds = result["megabytes a second"]
    assert all(speed["polylm_jax"] > 0 for speed in speeds.values())
    assert {"rules", "signatures", "repair", "language", "mask", "perplexity"} <= speeds.keys()
    assert speeds["the whole, perplexity"].keys() == {"polylm_jax", "plain loops"}
    assert result["languages"]["right"] > 0.9
    # the sentences of the tiny corpus are all in its training side
    fluency = result["clean against shuffled"]
    assert len(fluency) > 10
    assert all(share > 0.9 or math.isnan(share) for share in fluency.values())
    clean.show(result, Console())
    assert "MB/s a core" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"clean_peer\.py"):
        clean.run(str(tiny["corpus.path"]), model, sys.executable)
    with pytest.raises(UserError, match="/nowhere does not start"):
        clean.run(str(tiny["corpus.path"]), model, "/nowhere")


def test_auc_counts_equal_ones_half():
    assert clean.auc(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == 3.5 / 4


def test_wrong_pairs_are_caught(monkeypatch):
    words = [f"w{number}x" for number in range(60)]
    chance = np.random.default_rng(0)
    blocks = []
    for _ in range(300):
        some = chance.choice(words, 8)
        blocks.append(" ".join(some) + "\n" + " ".join(f"v{word}" for word in some))
    text = "\n\n".join(blocks)
    monkeypatch.setattr(clean.corpus, "documents", lambda path, source, split: iter([text]))
    monkeypatch.setattr(
        clean.bilingual, "directions", lambda a, b, languages: np.ones(len(a), np.int8)
    )
    assert clean._pairs("", "en-de") > 0.95
