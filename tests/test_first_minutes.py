"""What a new user meets: the package's gin files from any folder, examples that work, a wheel."""

import fnmatch
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from polylm_jax import config
from polylm_jax.__main__ import HELP, VERBS, main
from polylm_jax.verbs import module_of
from polylm_jax.verbs.examples import EXAMPLES, FIRST

ROOT = Path(__file__).parent.parent


def test_a_gin_file_of_the_package_is_found_by_name_and_one_here_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/demo.gin", "gin_configs/runs/demo.gin", "./runs/demo.gin"):
        config.parse([name], [])
        assert config.get("train").folder == "runs/demo"
    Path("my.gin").write_text('include "runs/demo.gin"\ninclude "mesh/gpu1.gin"\n')
    config.parse(["my.gin"], [])
    assert (config.get("train").steps, config.get("mesh").tensor) == (320, 1)
    Path("runs").mkdir()
    Path("runs/demo.gin").write_text("train.steps = 3\n")
    config.parse(["runs/demo.gin"], [])
    assert (config.get("train").steps, config.get("train").folder) == (3, "runs/polylm")
    config.parse(["my.gin"], [])
    assert config.get("train").steps == 3


@pytest.mark.parametrize("name", ["runs/dmo.gin", "../pyproject.toml", "runs", "/runs/demo.gin"])
def test_what_is_no_gin_file_anywhere_is_one_sentence(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["config", f"--gin_file={name}"]) == 1
    said = capsys.readouterr().err
    assert f"there is no gin file {name}, here or in the package; the nearest there is " in said
    assert said.count("\n") == 1


def test_without_arguments_the_first_steps_are_shown(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == HELP.strip()
    places = [shown.index(f"\n  polylm {verb} {EXAMPLES[verb]}\n") for verb in FIRST]
    assert places == sorted(places)
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_an_example_that_its_flags_and_gin_take(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/demo", "runs/demo_tune"):
        Path(folder).mkdir(parents=True)
    ran = []
    monkeypatch.setattr(module_of(verb), "run", ran.append)
    assert main([verb, *shlex.split(EXAMPLES[verb])]) == 0
    assert len(ran) == 1
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert f"For example: polylm {verb} {EXAMPLES[verb]}\n" in capsys.readouterr().out


def test_every_file_that_is_no_module_comes_with_the_package():
    """As setuptools would have it: package-data, and gin_configs by setup.py."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    assert data["polylm_jax.gin_configs"] == ["**/*.gin"]
    found = [
        p.relative_to(ROOT) for n in ("polylm_jax", "gin_configs") for p in (ROOT / n).rglob("*")
    ]
    for path in (path for path in found if (ROOT / path).is_file()):
        if "__pycache__" in path.parts:
            continue
        name = path.as_posix()
        package = path.parent.as_posix().replace("/", ".")
        if path.parts[0] == "gin_configs":
            assert path.suffix == ".gin", f"{name} would not be in a wheel"
        elif path.suffix != ".py":
            patterns = data.get(package, [])
            assert any(fnmatch.fnmatch(path.name, one) for one in patterns), (
                f"{name} would not be in a wheel; name it in package-data of pyproject.toml"
            )
        else:
            assert (ROOT / path.parent / "__init__.py").is_file(), f"{package} is no package"


@pytest.mark.rare
def test_a_wheel_works_in_an_empty_folder(tmp_path):
    source, empty, target = tmp_path / "source", tmp_path / "empty", tmp_path / "target"
    source.mkdir(), empty.mkdir()
    for name in ("polylm_jax", "gin_configs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    environment = os.environ | {"PYTHONPATH": str(target)}

    def polylm(*arguments):
        command = [sys.executable, "-m", "polylm_jax", *arguments]
        done = subprocess.run(
            command, cwd=empty, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "First, in an empty folder" in polylm()
    assert "train.steps = 320\n" in polylm("config", "--gin_file=runs/demo.gin")
    assert "The figure is runs/" in polylm("curriculum", "--gin_file=runs/polylm_1b7.gin")
    assert [path.name for path in empty.iterdir()] == ["runs"]
