"""The report counts what was done and marks what looks wrong; the verb runs, explains, says what it
would take, and takes thresholds that were edited."""

import json

import numpy as np
import pytest

from polylm_jax.__main__ import main
from polylm_jax.data.clean import report
from polylm_jax.data.clean.thresholds import BINS, bins
from tests.data.clean.test_pipeline import verdicts, write

NOTES = [
    {
        "counts": {
            "en": {
                "read": [10, 100],
                "kept": [6, 60],
                "first": {"duplicate": [1, 10], "words": [3, 30]},
                "any": {"duplicate": 1, "words": 3},
            }
        },
        "samples": {"en words": [["0b", "zwei"], ["0a", "eins"]]},
    },
    {
        "counts": {
            "de": {
                "read": [4, 40],
                "kept": [1, 10],
                "first": {"language": [2, 20], "words": [1, 10]},
                "any": {"language": 3, "words": 1},
            },
            "en": {"read": [2, 20], "kept": [2, 20], "first": {}, "any": {}},
        },
        "samples": {"en words": [["09", "null"]]},
    },
]
LIMITS = {"en": {"words": (50, None), "digits": (None, 0.1)}, "de": {"words": (50, None)}}


def test_counts_add_up_and_shares_are_the_papers():
    counts = report.counted(NOTES)
    assert counts["en"] == {
        "read": [12, 120],
        "kept": [8, 80],
        "first": {"duplicate": [1, 10], "words": [3, 30]},
        "any": {"duplicate": 1, "words": 3},
    }
    assert sum(report.by_kind(counts["de"]).values()) == 4
    here = report.beside_paper(counts)
    assert here["rules and quality"] == pytest.approx(100 * 4 / 14)
    assert here["duplicates, English"] == pytest.approx(100 / 12)
    assert here["duplicates, others"] == 0


def test_rules_that_drop_nothing_or_most_are_marked():
    marks = list(report.marked(report.counted(NOTES), LIMITS))
    assert marks == ["digits drops nothing", "language drops 75% of German (de)"]
    of_all = LIMITS | {"*": {"hashes": (None, 0.1)}}
    marks = list(report.marked(report.counted(NOTES), of_all))
    assert marks[:2] == ["digits drops nothing", "hashes drops nothing"]


def test_samples_are_those_of_the_lowest_ids():
    assert [one["id"] for one in report.samples(NOTES)] == ["09", "0a", "0b"]
    assert [one["id"] for one in report.samples(NOTES[::-1])] == ["09", "0a", "0b"]


def test_notes_of_many_shards_are_one_that_is_no_larger():
    many = [
        {
            "counts": NOTES[at % 2]["counts"],
            "pairs": {"en-de": {"pairs": 7, "wrong": at}},
            "samples": {"en words": [[f"{(at * 37 + n) % 999:03}", "x" * 300] for n in range(10)]},
        }
        for at in range(60)
    ]
    one = report.NOTHING
    for note in many:
        one = report.together(one, note)
    assert report.counted([one]) == report.counted(many)
    assert report.of_pairs([one]) == report.of_pairs(many)
    assert [*report.samples([one])] == [*report.samples(many)]
    assert len(json.dumps(one)) < 2 * len(json.dumps(many[0])) + 1000


def test_the_report_is_written_the_same_twice(tmp_path):
    histograms = {
        code: {"words": np.bincount(bins(np.arange(1.0, 99)), minlength=BINS)}
        for code in ("en", "de")
    }
    for name in "ab":
        report.write(str(tmp_path / name), NOTES, LIMITS, histograms)
    for file in ("report.md", "languages.png", "histograms.png", "samples.jsonl"):
        one, other = ((tmp_path / name / "report" / file).read_bytes() for name in "ab")
        assert one == other
    text = (tmp_path / "a/report/report.md").read_text()
    assert "| English (en) | 12 | 0.00 | 8 | 0.00 | 8.3% | 0.0% | 0.0% | 25.0% |" in text
    assert "| rules and quality | 28.6 | 28.3 |" in text


def test_the_verb_runs_explains_and_takes_edited_thresholds(tmp_path, capsys):
    web, output = write(tmp_path / "in", shards=1), tmp_path / "out"
    flags = [
        f"--gin.clean.inputs={{'{web}/de': 'de'}}",
        f"--gin.clean.output={output}",
        "--gin.thresholds.method=given",
        "--gin.thresholds.limits={'*': {'words': (20, None)}}",
    ]
    assert main(["clean", "--dry_run", *flags]) == 0
    assert "core-hours" in capsys.readouterr().out
    assert not output.exists()
    assert main(["clean", *flags]) == 0
    said = capsys.readouterr().out
    assert "31 documents are measured" in said
    assert "duplicates, others" in said
    assert main(["clean", "status", *flags]) == 0
    assert "write       1 of 1 shards" in capsys.readouterr().out
    rows = verdicts(output)
    [copy, *_] = [row for row in rows if row["reason"] == "duplicate"]
    assert main(["clean", "explain", copy["id"], *flags]) == 0
    said = capsys.readouterr().out
    assert f"of which {copy['survivor']} survives" in said
    assert "language  de, as its input says" in said
    assert "nan" not in said
    assert main(["clean", "explain", "nonesuch", *flags]) == 1
    samples = [json.loads(line) for line in (output / "report/samples.jsonl").open()]
    assert {one["reason"] for one in samples} == {"duplicate", "words"}
    gin = output / "thresholds.gin"
    gin.write_text(gin.read_text().replace('"words": (20.0, None)', '"words": (9000, None)'))
    assert main(["clean", *flags[:3]]) == 1  # of other settings than it was derived of
    assert "was edited" in capsys.readouterr().err
    assert main(["clean", *flags]) == 0
    assert "is kept" not in capsys.readouterr().err
    assert not any(row["kept"] for row in verdicts(output))
    assert main(["clean", "status", *flags]) == 0
    assert "write       1 of 1 shards" in capsys.readouterr().out
    edited = gin.read_text()
    gin.write_text(edited.replace("(9000, None)", "(90, None)"))
    assert main(["clean", "status", *flags]) == 0
    assert capsys.readouterr().out.split("\n")[2:5] == [
        "duplicates  1 of 1 shards", "decide      0 of 1 shards", "write       0 of 1 shards"
    ]  # fmt: skip
    gin.write_text(edited + "clean.off = ('words',)\n")
    assert main(["clean", *flags]) == 1
    assert "clean.off is not read here" in capsys.readouterr().err


def test_the_verb_cleans_onto_storage(tmp_path, capsys):
    web = write(tmp_path / "in", shards=1)
    flags = [
        f"--gin.clean.inputs={{'{web}/de': 'de'}}",
        "--gin.clean.output=memory://cleaned",
        "--gin.thresholds.method=given",
    ]
    for action in ("write", "status", "verify"):
        assert main(["clean", action, *flags]) == 0
    said = capsys.readouterr().out
    assert "The thresholds are in memory://cleaned/thresholds.gin" in said
    assert "write       1 of 1 shards" in said
    assert "files of memory://cleaned are as they were written" in said
