"""The report says what the metrics say, computed here a second time."""

import io
import json
import os
import random
import subprocess
import sys
from contextlib import suppress

import pytest
from rich.console import Console

from polylm_jax.data.languages import LANGUAGES, NON_ENGLISH
from polylm_jax.errors import UserError
from polylm_jax.runs.report import report
from polylm_jax.verbs.tune import show_gain
from tests.runs.test_figures import LENGTH, ROWS, languages_only, synthetic_metrics, write_run


def told(run):
    console = Console(file=io.StringIO(), width=100)
    report(str(run), console)
    return console.file.getvalue()


def test_the_numbers_are_those_of_the_run(tmp_path):
    metrics = synthetic_metrics(40)
    run = write_run(tmp_path / "demo", metrics)
    (run / "samples.txt").write_text("[Der Hund] lief [b]weg[/b].\n", encoding="utf-8")
    text = told(run)

    valid = [record["bits_per_byte"] for record in metrics if record["kind"] == "valid"]
    before, after = valid[0], valid[-1]
    lines = {line.split("(")[1][:2]: line for line in text.splitlines() if line.startswith("│")}
    assert list(lines) == list(LANGUAGES)
    for code, line in lines.items():
        fall = 100 * (before[code] - after[code]) / before[code]
        numbers = [f"{before[code]:.3f}", f"{after[code]:.3f}", f"{fall:.1f}%"]
        assert line.replace("│", " ").split()[2:] == numbers
    for names, kind in (
        (list(LANGUAGES), "18 languages"),
        ([f"en-{code}" for code in NON_ENGLISH], "17 bilingual sources"),
    ):
        first, last = (sum(table[name] for name in names) / len(names) for table in (before, after))
        fall = 100 * (first - last) / first
        line = f"Mean of {kind}: {first:.3f} → {last:.3f} bits per byte, a fall of {fall:.1f}%."
        assert line in text

    train = [record for record in metrics if record["kind"] == "train"]
    worst = max(
        abs(count - record["schedule_counts"][source])
        for record in train
        for source, count in record["row_counts"].items()
    )
    assert f"largest deviation from the schedule over all sources and steps: {worst:.3f} rows" in (
        text
    )

    def share(counts, earlier):
        read = {code: counts[code] - earlier.get(code, 0) for code in LANGUAGES}
        return 100 * (1 - read["en"] / sum(read.values()))

    counts = [record["row_counts"] for record in train]
    start, end = share(counts[3], {}), share(counts[39], counts[35])
    assert f"{start:.1f}% in the first tenth → {end:.1f}% in the last tenth" in text
    assert "(schedule: 30.0% → 60.0%)" in text
    assert train[-1]["rows"] == 40 * ROWS

    for place in ("checkpoints", "figures/overview.png", "figures/curriculum.png", "samples.txt"):
        assert str(run / place) in text
    assert text.endswith("[Der Hund] lief [b]weg[/b].\n")
    assert (run / "figures" / "overview.png").exists()


def test_a_run_without_validation_still_reports_its_curriculum(tmp_path):
    metrics = [record for record in synthetic_metrics(5) if record["kind"] == "train"]
    text = told(write_run(tmp_path, metrics))
    assert "No validation of the trained model yet." in text
    assert "Non-English share: " in text
    assert "bits_per_byte.png" not in text
    assert "Samples" not in text


def test_code_has_its_row_in_the_table_but_not_in_the_mean(tmp_path):
    metrics = synthetic_metrics(5)
    for record in metrics:
        if record["kind"] == "valid":
            record["bits_per_byte"] = {"code": 9.0, "de": 2.0 if record["step"] == 0 else 1.0}
    text = told(write_run(tmp_path, metrics))
    assert "│ code " in text
    assert "Mean of 1 languages: 2.000 → 1.000 bits per byte, a fall of 50.0%." in text


def test_shares_are_those_between_two_counts_and_the_words_say_so(tmp_path):
    metrics = synthetic_metrics(40, log_every=7)
    counted = {r["step"]: r["row_counts"] for r in metrics if "row_counts" in r}
    assert list(counted) == [7, 14, 21, 28, 35, 40]

    def share(counts):
        return 100 * (1 - counts["en"] / sum(counts[code] for code in LANGUAGES))

    last = {code: counted[40][code] - counted[35][code] for code in LANGUAGES}
    text = told(write_run(tmp_path, metrics))
    first = f"{share(counted[7]):.1f}% in the first 18% → {share(last):.1f}% in the last 12%"
    assert first in text
    worst = max(record["deviation"] for record in metrics if record["kind"] == "train")
    assert f"over all sources and steps: {worst:.3f} rows" in text
    del metrics[5]
    assert "over all sources and 39 logged steps: " in told(write_run(tmp_path, metrics))


def test_numbers_that_are_none_or_nothing_are_said_in_words(tmp_path):
    metrics = synthetic_metrics(5)
    for record in metrics:
        if record["kind"] == "valid":
            zero = 0.0 if record["step"] == 0 else 1.0
            record["bits_per_byte"] = {"de": None, "fr": zero, "ru": 0.0, "code": float("nan")}
        elif record["step"] > 3:
            record["loss"] = None
    text = told(write_run(tmp_path, metrics))
    cells = [
        [c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line
    ]
    assert cells == [
        ["Russian (ru)", "0.000", "0.000", "–"],
        ["German (de)", "not a number", "not a number", "–"],
        ["French (fr)", "0.000", "1.000", "–"],
        ["code", "not a number", "not a number", "–"],
    ]
    assert "Mean of 3 languages: not a number → not a number bits per byte" in text
    assert "The loss was not a number in 2 of 5 steps." in text


def test_a_run_of_one_step_that_counted_no_rows_is_told(tmp_path):
    (record,) = synthetic_metrics(1)[1:2]
    uncounted = {n: v for n, v in record.items() if not n.endswith("_counts")}
    assert "Non-English share" not in told(write_run(tmp_path, [uncounted]))
    assert "% in the first 100% → " in told(write_run(tmp_path, [record]))


def test_samples_do_nothing_to_the_terminal(tmp_path, monkeypatch):
    run = write_run(tmp_path, synthetic_metrics(1))
    (run / "samples.txt").write_bytes(b"a\x1b]0;pwned\x07\x1b[2J\xc2\x9b1m\xff b\r\nc\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = told(run).splitlines()
    assert shown[-2:] == ["a\\x1b]0;pwned\\x07\\x1b[2J\\x9b1m\ufffd b", "c"]


def test_a_log_of_anything_is_reported_or_refused_in_a_sentence(tmp_path):
    chance = random.Random(int(os.environ.get("FUZZ_SEED", "0")))
    values = [None, True, 0, -1, 1e-300, 1e300, 10**400, "x", "", [], {}, {"en": None}, [[1]]]
    values += [
        {"\x1b[2J": 1, "[bold]": 0, "$x_$": 2, "\ud800": 1},
        {"en": 1e15},
        {"en": "x"},
        float("nan"),
    ]
    told_of = 0
    for number in range(15):
        metrics = json.loads(json.dumps(synthetic_metrics(chance.randint(1, 3))))
        for _ in range(chance.randint(1, 4)):
            record = chance.choice(metrics)
            record[chance.choice([*record])] = chance.choice(values)
        lines = [json.dumps(record) for record in metrics]
        run = tmp_path / str(number)
        run.mkdir()
        (run / "metrics.jsonl").write_text("\n".join(lines[:: chance.choice([1, 1, 1, -1])]) + "\n")
        with suppress(UserError):
            told(run)
            told_of += 1
    assert 0 < told_of < 15


CHILD = """
import io, sys
from rich.console import Console
from polylm_jax.runs.report import report
report(sys.argv[1], Console(file=io.StringIO()))
# ru_maxrss would begin with what the process had that started this one
[most] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(most) // 1024)
"""


def test_memory_does_not_grow_with_the_log(tmp_path):
    counts = json.dumps({"row_counts": dict.fromkeys(LANGUAGES, 3), "schedule_counts": {"en": 3.5}})
    taken = []
    for steps in (20_000, 200_000):
        run = tmp_path / str(steps)
        run.mkdir()
        with (run / "metrics.jsonl").open("w") as file:
            for step in range(1, steps + 1):
                head = f'{{"kind": "train", "step": {step}, "tokens": {step * ROWS * LENGTH}, '
                file.write(f'{head}"loss": {2 + 1 / step}, "deviation": 0.5, "skipped": 0')
                file.write(f", {counts[1:]}\n" if step % 10 == 0 else "}\n")
        child = [sys.executable, "-c", CHILD, str(run)]
        taken.append(int(subprocess.check_output(child, text=True)))
    # a list of the larger log's records would take some 300 MiB
    assert abs(taken[1] - taken[0]) < 16, taken


def test_a_run_without_english(tmp_path):
    text = told(write_run(tmp_path, languages_only(["hi", "sw", "cs", "hi-sw"])))
    assert "Mean of 3 languages: 3.000 → 2.400 bits per byte, a fall of 20.0%." in text
    assert "Mean of 1 bilingual sources: " in text
    assert "\nLargest deviation from the schedule over all sources and steps: 0.000 rows." in text
    assert "Swahili (sw)" in text
    assert "English" not in text


def test_a_missing_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"gone is no folder: give --run"):
        told(tmp_path / "gone")
    with pytest.raises(UserError, match="holds no training step"):
        told(write_run(tmp_path, []))


def test_what_tuning_gained_is_told_of_each_language(tmp_path, capsys):
    metrics = synthetic_metrics(5)
    show_gain(str(write_run(tmp_path, metrics)))
    text = capsys.readouterr().out
    valid = [record["bits_per_byte"] for record in metrics if record["kind"] == "valid"]
    for code in LANGUAGES:
        before, after = valid[0][code], valid[-1][code]
        numbers = [f"{before:.3f}", f"{after:.3f}", f"{100 * (after - before) / before:+.1f}%"]
        [line] = [line for line in text.splitlines() if f"({code})" in line]
        assert line.replace("│", " ").split()[2:] == numbers
    assert "Mean of 18 languages: " in text
