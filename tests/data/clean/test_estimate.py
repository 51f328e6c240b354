"""What cleaning would take is arithmetic from the sizes of files, whatever they are packed in."""

import pytest

from polylm_jax.data import shards
from polylm_jax.data.clean import estimate, jobs
from polylm_jax.data.clean.engine import Beam
from polylm_jax.data.clean.language import Identification
from polylm_jax.data.clean.settings import Clean

GB = 10**9


def told(tmp_path, inputs, **settings):
    clean = Clean(inputs=inputs, output=str(tmp_path / "out"), **settings)
    work = jobs.planned(clean, Identification(), "", Beam(workers=2))
    lines = [*estimate.told(work)]
    hours = {line[2:28].strip(): float(line[28:40]) for line in lines if "core-hours" in line}
    return lines, hours


def sized(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [
        ("a.txt", 9 * GB, 9),
        ("a.JSONL.GZ", 2 * GB, 7),
        ("a.wet.zst", 2 * GB, 8),
        ("a.warc", 15 * GB, 1),
    ],
)
def test_the_sums_are_those_of_the_rates(tmp_path, name, size, text):
    sized(tmp_path / name, size)
    lines, hours = told(tmp_path, {str(tmp_path / name): "de"})
    assert lines[0] == f"1 shards, about {text} GB of text in {text * GB / 3000:,.0f} documents"
    assert hours.pop("in all") == pytest.approx(sum(hours.values()), abs=0.02)
    taken = {step: text * 1000 / rate / 3600 for step, rate in estimate.RATES.items()}
    assert hours["rules"] == pytest.approx(taken["rules"], abs=0.01)
    assert ("text out of HTML" in hours) == name.endswith("warc")
    assert not {"language", "perplexity"} & hours.keys()
    _, hours = told(tmp_path, {str(tmp_path / name): ""}, fluent="clean")
    assert hours["language"] == pytest.approx(taken["language"], abs=0.01)
    assert hours["perplexity"] == pytest.approx(taken["perplexity"], abs=0.01)


def test_a_corpus_in_packed_shards_counts_as_what_lies_on_the_disk(tmp_path):
    path, text = str(tmp_path / "corpus"), "so many words " * 3000
    entries = {"de": [shards.write_shard(path, "de", 0, 1, [(text, "x", 1)])]}
    shards.write_manifest(path, entries)
    [piece] = jobs.planned(
        Clean(inputs={path: ""}, output=str(tmp_path / "out")), Identification(), "", Beam()
    ).pieces
    [file] = (tmp_path / "corpus" / "de").iterdir()
    assert piece.shard.bytes == file.stat().st_size < len(text) / 4
