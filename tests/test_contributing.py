"""What CONTRIBUTING.md says can be done: its diffs apply, and its figure is the code's."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import same

ROOT = Path(__file__).parents[1]
DIFFS = re.findall(r"(?ms)^```diff\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))


def apply(diff, folder, *flags):
    command = ["git", "apply", "--recount", *flags, "-"]
    subprocess.run(command, cwd=folder, input=diff, text=True, check=True)


@pytest.mark.parametrize("diff", DIFFS, ids=lambda diff: re.search(r"\+\+\+ b/(\S+)", diff)[1])
def test_a_worked_diff_applies_and_is_short(diff):
    apply(diff, ROOT, "--check")
    assert len(re.findall(r"(?m)^[+-](?![+-]{2} )", diff)) <= 10


def test_the_house_is_drawn_from_the_imports_of_today():
    spec = importlib.util.spec_from_file_location("house", ROOT / "docs" / "house.py")
    house = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(house)
    drawn = (ROOT / "docs" / "house.svg").read_text("utf-8")
    assert drawn == house.house(), "rooms import anew: python docs/house.py draws them"
    graph = {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": {"a", "c"}}
    assert house.reduced(graph) == {"a": set(), "b": {"a"}, "c": {"b"}, "d": {"c"}}
    assert house.floors(house.reduced(graph)) == [["a"], ["b"], ["c"], ["d"]]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ([{"kind": "train", "step": 1, "loss": 0.5}], ""),
        ([{"kind": "train", "step": 1, "loss": 0.5000001}], "train loss at step 1: 0.5 -> 0.50000"),
        ([{"kind": "train", "step": 1}], "train loss at step 1: 0.5 -> None"),
        ([], "1 records -> 0"),
    ],
)
def test_one_bit_is_a_difference(other, words):
    assert same.difference([{"kind": "train", "step": 1, "loss": 0.5}], other).startswith(words)
    assert bool(same.difference([{"kind": "train", "step": 1, "loss": 0.5}], other)) == bool(words)


@pytest.mark.rare
def test_a_revision_trains_to_its_own_bits(capfd):
    assert same.main("HEAD") == 0
    assert "records and the parameters." in capfd.readouterr().out


@pytest.mark.rare
def test_all_diffs_together_pass_the_tests_that_go_with_them(tmp_path):
    for name in ("polylm_jax", "gin_configs", "tests", "tpu_scripts", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("pyproject.toml", "CONTRIBUTING.md", "Makefile"):
        shutil.copy(ROOT / name, tmp_path / name)
    for diff in DIFFS:
        apply(diff, tmp_path)
    tests = ["tests/test_config.py", "tests/test_flags.py", "tests/test_first_minutes.py"]
    tests += ["tests/evaluation/test_riddles.py", "tests/data/clean/test_rules.py"]
    chosen = "tokens or swahili or medium or tensor8 or riddle or plain or page"
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-n", "0", *tests, "-k", chosen]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
