"""The report says what the metrics say, computed here a second time."""

import io

import pytest
from rich.console import Console

from polylm_jax.data.languages import LANGUAGES, NON_ENGLISH
from polylm_jax.errors import UserError
from polylm_jax.report import report
from tests.test_figures import ROWS, synthetic_metrics, write_run


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
        ([f"en-{code}" for code in NON_ENGLISH], "17 sources paired with English"),
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


def test_a_missing_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"gone is no folder: give --run"):
        told(tmp_path / "gone")
    with pytest.raises(UserError, match="holds no training step"):
        told(write_run(tmp_path, []))
