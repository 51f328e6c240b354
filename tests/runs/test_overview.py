"""`polylm runs`: every run below a folder is a line, whatever it holds."""

import json

import fsspec
import pytest

from polylm_jax.__main__ import main
from polylm_jax.errors import UserError
from polylm_jax.runs.overview import find_runs, line_of
from tests.runs.test_figures import synthetic_metrics, write_run
from tests.runs.test_status import folder_with


@pytest.fixture
def some(tmp_path):
    """A run that goes on, one of which only the log is left, one in a folder of runs."""
    folder_with(tmp_path / "b run")
    write_run(tmp_path / "b run", synthetic_metrics(steps=10))
    write_run(tmp_path / "a", synthetic_metrics(steps=5), tail='{"kind": "tr')
    (tmp_path / "sweep" / "one" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "sweep" / "notes").mkdir()
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    return tmp_path


def test_each_run_is_a_line_with_its_state_and_numbers(some, capsys):
    assert main(["runs", str(some)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "state", "step"]
    assert [line[:9].strip() for line in lines] == ["a", "b run", "sweep/one"]
    assert "running" in lines[1]
    assert "50 of 100" in lines[1]
    assert "never started" in lines[2]


def test_for_programs_a_line_is_json_and_bits_are_the_mean_of_the_languages(some, capsys):
    assert main(["runs", str(some), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    last = [r for r in synthetic_metrics(steps=10) if r["kind"] == "valid"][-1]["bits_per_byte"]
    mean = sum(value for name, value in last.items() if "-" not in name) / 18
    assert lines[1]["bits"] == pytest.approx(mean)
    assert (lines[1]["step"], lines[1]["tokens"], lines[1]["loss"]) == (50, 51_200, 4.0)
    assert lines[2]["bits"] is None
    assert main(["runs", str(some / "sweep" / "notes")]) == 1
    assert "there is no run in" in capsys.readouterr().err


def test_a_bucket_and_a_broken_log_are_told_of(tmp_path):
    files = fsspec.filesystem("memory")
    folder = folder_with(f"memory://{tmp_path}/runs/x")
    assert find_runs(f"memory://{tmp_path}/runs") == [folder]
    files.pipe_file(f"{tmp_path}/runs/x/metrics.jsonl", b"no record\n{}\n")
    assert "is not a record" in line_of(folder).note
    with pytest.raises(UserError, match="there is no run in"):
        find_runs(f"memory://{tmp_path}/none")
