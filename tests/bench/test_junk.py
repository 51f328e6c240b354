"""Junk of all kinds goes into a corpus; most of it is found, and held-out text stays as it is."""

import pytest
from rich.console import Console

from polylm_jax import config
from polylm_jax.bench import junk
from polylm_jax.data import corpus
from polylm_jax.data.shards import write_manifest, write_shard
from polylm_jax.verbs import clean as cleaning
from tests.data.sentences import SENTENCES


@pytest.fixture
def clean_corpus(tmp_path):
    """Two languages of sixty documents, and six that are held out."""
    entries = {}
    for source in ("de", "fr"):
        lines = SENTENCES[source]
        texts = [
            " ".join(lines[(at * step + at // 7) % len(lines)] for step in range(1, 9))
            + f" {at} {source}."
            for at in range(66)
        ]
        entries[source] = [
            write_shard(str(tmp_path / "clean"), source, number, 2, some, edge)
            for number, some, edge in (
                (0, [(text, "", at) for at, text in enumerate(texts[6:])], 0),
                (1, [(text, "", at) for at, text in enumerate(texts[:6])], 2**64),
            )
        ]
    write_manifest(str(tmp_path / "clean"), entries)
    return str(tmp_path / "clean")


def test_junk_is_put_in_and_found(clean_corpus, tmp_path, capsys):
    pytest.importorskip("fasttext")
    raw, kept = str(tmp_path / "junk"), str(tmp_path / "kept")
    junk.put(clean_corpus, raw)
    entries = corpus.manifest(raw)["sources"]
    before = corpus.manifest(clean_corpus)["sources"]
    for source, entry in entries.items():
        share = 1 - before[source]["train"]["bytes"] / entry["train"]["bytes"]
        assert share == pytest.approx(junk.SHARE, abs=0.1)
    first = (tmp_path / "junk/de/train-00000-of-00002.jsonl").read_bytes()
    junk.put(clean_corpus, raw)
    assert (tmp_path / "junk/de/train-00000-of-00002.jsonl").read_bytes() == first

    config.parse(
        [],
        [
            f"clean.inputs={junk.inputs(raw)}",
            f"clean.output='{tmp_path}/done'",
            "clean.valid_share=0.0",
            "clean.scraps=30",
            "thresholds.method='english'",
            'clean.off=("characters","words")',
        ],
    )
    job = cleaning.planned(config.get("clean"))
    cleaning.passes(job)
    result = junk.keep(clean_corpus, raw, job, kept)
    assert set(result) == {junk.ORIGINAL, *junk.KINDS}
    assert result[junk.ORIGINAL]["documents"] == 120
    dropped = {
        kind: 1 - (counts.get("kept", 0) + counts.get("moved", 0)) / counts["documents"]
        for kind, counts in result.items()
    }
    print(result)
    assert dropped["copies"] > 0.9
    assert dropped["menus"] == dropped["random characters"] == 1
    assert not result["another language"].get("kept")
    for source in ("de", "fr"):
        held = [*corpus.documents(clean_corpus, source, "valid")]
        for path in (raw, kept):
            assert [*corpus.documents(path, source, "valid")] == held
    junk.show(result, Console(width=120))
    assert "near copies" in capsys.readouterr().out
