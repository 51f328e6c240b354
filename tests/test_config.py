"""Gin: every file parses and builds; what is wrong is named with its place and the mend."""

from pathlib import Path

import pytest

from polylm_jax import config
from polylm_jax.data.curriculum import make_curriculum
from polylm_jax.data.languages import LANGUAGES
from polylm_jax.errors import UserError
from polylm_jax.model.parameters import count

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "gin_configs").rglob("*.gin"))
RUNS = sorted((ROOT / "gin_configs/runs").glob("*.gin"))
BILINGUAL = [f"en-{code}" for code in LANGUAGES if code != "en"]


def test_there_are_gin_files():
    assert len(FILES) >= 12
    assert {"polylm_1b7.gin", "polylm_13b.gin", "demo.gin"} <= {run.name for run in RUNS}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_gin_file_parses_and_builds(file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # includes do not depend on where the command is given
    config.parse([str(file)], [])
    settings = {name: config.get(name) for name in config.BLOCKS}
    rows = dict.fromkeys([*LANGUAGES, *BILINGUAL, "code"], 1000)
    curriculum = make_curriculum(settings["curriculum"], rows, settings["rows"].length)
    assert curriculum.sources[0] == "en"


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.name)
def test_a_run_says_how_it_is_started(file):
    head = file.read_text().split("include")[0]
    assert f"polylm train --gin_file=gin_configs/runs/{file.name}" in head


@pytest.mark.parametrize(
    ("run", "parameters", "tokens"),
    [("polylm_1b7", 1_737_084_928, 639.6e9), ("polylm_13b", 13_906_790_400, 639.6e9)],
)
def test_the_released_runs_have_the_released_sizes(run, parameters, tokens):
    config.parse([str(ROOT / f"gin_configs/runs/{run}.gin")], [])
    training, size = config.get("train"), config.get("model")
    assert count(size) == parameters
    read = training.steps * training.batch * config.get("rows").length
    assert read == pytest.approx(tokens, rel=1e-3)


def test_resolved_text_gives_the_same_settings():
    config.parse([str(ROOT / "gin_configs/runs/demo.gin")], ["train.batch=64"])
    before, text = {name: config.get(name) for name in config.BLOCKS}, config.resolved()
    config.parse([], [], text)
    assert {name: config.get(name) for name in config.BLOCKS} == before
    assert config.get("train").batch == 64


def test_later_values_win_and_words_need_no_quotes():
    config.parse([], ["train.folder=runs/x", "train.steps=5", "train.steps=6", "optimizer.clip=2"])
    assert config.get("train").folder == "runs/x"
    assert config.get("train").steps == 6
    assert config.get("optimizer").clip == 2.0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\ntrain.stepz = 5\n", ':2: there is no setting "train.stepz"; the nearest is "train.st'),
        ("optimiser.clip = 1.0\n", ':1: there is no block "optimiser"; the nearest is "optimizer"'),
        ("train.steps = 'ten'\n", "train.steps = 'ten' is of the wrong type; it must be int"),
        ("train.steps = 2.5\n", "train.steps = 2.5 is of the wrong type; it must be int"),
        ("compute.dtype = 16\n", "compute.dtype = 16 is of the wrong type; it must be str"),
        ("compute.dtype = 'float8'\n", 'compute.dtype is "float8"; choose one of bfloat16, float'),
        ("include 'gin_configs/no.gin'\n", "there is no gin file gin_configs/no.gin to include"),
        ("train.steps = = 5\n", ":1: "),
        ("curriculum.non_english = ((0, 0.3), (5, 1.2))\n", "must lie between 0 and 1"),
        ("curriculum.non_english = ((9, 0.3), (5, 0.2))\n", "rising order of tokens"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, sentence):
    file = tmp_path / "x.gin"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        config.parse([str(file)], [])
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"there is no gin file gin_configs/runs/demmo\.gin"):
        config.parse(["gin_configs/runs/demmo.gin"], [])


def test_the_readme_s_curriculum_is_one(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "x.gin").write_text(readme.split("```python\n")[1].split("```")[0])
    config.parse([str(tmp_path / "x.gin")], [])
    rows = dict.fromkeys(["en", "zh", "de", "th", "code", "en-de"], 1000)
    curriculum = make_curriculum(config.get("curriculum"), rows, 128)
    assert curriculum.sources == ("en", "zh", "de", "th", "en-de", "code")
