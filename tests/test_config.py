"""Gin: every file parses and builds; what is wrong is named with its place and the mend."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polylm_jax import config
from polylm_jax.data.languages import LANGUAGES
from polylm_jax.data.schedule import make_curriculum
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
    config.parse([str(file)], [])
    verb = "tune" if config.get("tune").data else "train"
    assert f"polylm {verb} --gin_file=gin_configs/runs/{file.name}" in head


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
        ("train.folder = nan\n", ":1: 'train.folder = nan' is no gin; write block.field = VALUE"),
        ("\n\ntrain.batch = ((1)\n", ":4: EOF in multi-line statement; close what is open."),
        ("train.steps\n", ":1: 'train.steps' is no gin"),
        ("train.steps = 0\n", "x.gin:1: train.steps = 0; it must lie between 1 and"),
        ("train.folder = {[1]: 2}\n", "x.gin cannot be read as gin: unhashable"),
        ("train.folder = " + 5000 * "(" + "\n", "x.gin"),
        ("curriculum.non_english = ((0, 0.3), (5, 1.2))\n", "must lie between 0 and 1"),
        ("\nsteps = 5\n", ':2: no setting takes up "steps"; the nearest is "train.steps".'),
        ("bacth = 5\n", 'no setting takes up "bacth"; the nearest is "train.batch".'),
        ("A = 1\nB = %A\n", ':2: no setting takes up "B"'),
        (
            "foo/train.steps = 5\n",
            '"foo/train.steps" sets nothing, as there are no scopes here; wr',
        ),
        ("foo/train:\n  steps = 5\n", 'no scopes here; write "train.steps".'),
        ("train:\n  stepz = 5\n", ':2: there is no setting "train.stepz"'),
        ("training:\n  steps = 5\n", 'there is no block "training"; the nearest is "train".'),
        ("train.steps = %N\n", 'train.steps = %N, but nothing says what N is; add "N = VALUE".'),
        ("NN = 5\ntrain.steps = %N\n", 'or mean "%NN".'),
        ("A = %B\nB = %A\ntrain.steps = %A\n", ":3: train.steps = %A, which stands for itself."),
        ("train.steps = %gin.REQUIRED\n", "nothing says what gin.REQUIRED is"),
        ("train.steps = @f()\n", "train.steps = @f(): no setting takes a function"),
        ("curriculum.extras = {'code': @f}\n", "curriculum.extras = @f: no setting takes"),
        ("import os\n", ":1: a gin file imports nothing here"),
        ("from __gin__ import dynamic_registration\n", "a gin file imports nothing here"),
        ("include 'x.gin'\n", ":1: x.gin includes itself"),
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


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("steps=100", 'no setting takes up "steps"; the nearest is "train.steps".'),
        ("bacth=4", 'no setting takes up "bacth"; the nearest is "train.batch".'),
        ("foo/train.steps=5", 'there are no scopes here; write "train.steps".'),
        ("compute.dtype=%DT", "compute.dtype = %DT, but nothing says what DT is"),
        ("train.steps=@f", "train.steps = @f: no setting takes a function"),
        ("train.folder", "--gin.train.folder has no value; write --gin.train.folder=VALUE."),
        ("=5", 'no setting takes up ""'),
        ("train.steps=" + 9 * "9", ""),
        ("train.steps=" + 5000 * "9", "train.steps = '999"),
        ("train.steps=0x" + 5000 * "f", "train.steps = a number of thousands of digits; it must"),
        ("train.steps=" + 5000 * "(", "train.steps = '((("),
        ("train.steps=5\ntrain.batch=3", "is of the wrong type; it must be int"),
        ("optimizer.clip=nan", "optimizer.clip = 'nan' is of the wrong type; it must be float."),
        ("include 'x.gin'", "\"--gin.include 'x.gin'\" names no setting; write --gin.BLOCK.FIELD="),
        ("train.steps\n=5", ""),
    ],
)
def test_what_is_wrong_in_a_flag_is_named(flag, sentence):
    if not sentence:
        config.parse([], [flag])
        return
    with pytest.raises(UserError) as raised:
        config.parse([], [flag])
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_macro_stands_for_what_the_last_line_says_of_it(tmp_path):
    (tmp_path / "base.gin").write_text("train.steps = %N\ntrain.batch = %N\nN = 5\nM = %N\n")
    (tmp_path / "x.gin").write_text(
        "include 'base.gin'\nN = 6\ncurriculum.non_english = ((0, 0), (%M, %SHARE))\nSHARE = 0.5\n"
    )
    config.parse([str(tmp_path / "x.gin")], ["train.batch=4", "rows.length=%N"])
    assert (config.get("train").steps, config.get("train").batch) == (6, 4)
    assert config.get("rows").length == 6
    assert config.get("curriculum").non_english == ((0.0, 0.0), (6.0, 0.5))
    # what an override leaves unused was of use to the file
    config.parse([str(tmp_path / "base.gin")], ["train.steps=1", "train.batch=1", "rows.length=%M"])
    assert config.get("rows").length == 5


def test_an_include_is_found_beside_its_file_then_from_the_root_then_from_here(
    tmp_path, monkeypatch
):
    for name, steps in (
        ("lib/near.gin", 1),
        ("root/gin_configs/far.gin", 2),
        ("here/local.gin", 3),
        ("here/near.gin", 9),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"train.steps = {steps}\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    for file, included, steps in (
        ("lib/a.gin", "near.gin", 1),
        ("lib/b.gin", "../lib/near.gin", 1),
        ("root/gin_configs/runs/c.gin", "gin_configs/far.gin", 2),
        ("lib/d.gin", "local.gin", 3),
        ("lib/e.gin", "~/lib/near.gin", 1),
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(f"include '{included}'\n")
        for name in (tmp_path / file, f"../{file}", f"~/{file}"):
            config.parse([str(name)], [])
            assert config.get("train").steps == steps


def test_a_file_that_is_included_twice_is_read_twice(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.gin").write_text("include 'base.gin'\n")
    (tmp_path / "base.gin").write_text("train.steps = 7\n")
    (tmp_path / "x.gin").write_text("include 'a.gin'\ninclude 'b.gin'\n")
    config.parse([str(tmp_path / "x.gin")], [])
    assert config.get("train").steps == 7


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "cannot be read as a gin file: Is a directory"), (b"\xff\xfe#", "it is not text in")],
)
def test_what_is_no_gin_file_is_named(content, sentence, tmp_path):
    if content is None:
        (tmp_path / "x.gin").mkdir()
    else:
        (tmp_path / "x.gin").write_bytes(content)
    with pytest.raises(UserError, match=f"x.gin.*{sentence}"):
        config.parse([str(tmp_path / "x.gin")], [])


def test_an_empty_file_and_one_with_a_mark_of_byte_order_are_gin_files(tmp_path):
    (tmp_path / "x.gin").write_bytes(b"")
    (tmp_path / "y.gin").write_bytes(b"\xef\xbb\xbftrain.steps = 5\r\n")
    config.parse([str(tmp_path / "x.gin"), str(tmp_path / "y.gin")], [])
    assert config.get("train").steps == 5


def test_what_fails_leaves_the_settings_as_they_were():
    config.parse([], ["train.steps=5"])
    with pytest.raises(UserError):
        config.parse([], ["train.steps=6", "sampling.top_p=2"])
    assert config.get("train").steps == 5


def test_the_gin_of_an_older_version_may_have_settings_that_are_no_more():
    config.parse([], [], "train.gone = 5\nattic.steps = 1\ntrain.steps = 5\n")
    assert config.get("train").steps == 5


WORDS = (
    *list(config.SETTINGS)[::7],
    *("steps", "train", "include", "import", "N/macro.value", "é", "nan", "None", "True"),
    *(" = ", "=", ".", "/", ":\n  ", "\n", " ", "\t", "\\", "#", "\ufeff", "\0", "\f", "-"),
    *("(", ")", "[", "{", "}", ",", "'", '"', "%N", "@f()", "1e999", "0x1F", "'x.gin'"),
    *("{1: (%N, [2])}", "((0, 0.3),)", "99999999999999999999"),
)


@given(st.lists(st.sampled_from(WORDS), max_size=12))
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_text_is_gin_or_one_sentence(tmp_path, parts):
    file = tmp_path / "x.gin"
    file.write_text("".join(parts), "utf-8")
    for files, flags in (([str(file)], []), ([], ["".join(parts)])):
        try:
            config.parse(files, flags)
        except UserError as error:
            assert len(str(error).splitlines()) == 1, error  # noqa: PT017


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"there is no gin file gin_configs/runs/demmo\.gin"):
        config.parse(["gin_configs/runs/demmo.gin"], [])


def test_the_curriculum_of_the_docs_is_one(tmp_path):
    page = (ROOT / "docs/curriculum.md").read_text(encoding="utf-8")
    (tmp_path / "x.gin").write_text(page.split("```python\n")[1].split("```")[0])
    config.parse([str(tmp_path / "x.gin")], [])
    rows = dict.fromkeys(["en", "zh", "de", "th", "code", "en-de"], 1000)
    curriculum = make_curriculum(config.get("curriculum"), rows, 128)
    assert curriculum.sources == ("en", "zh", "de", "th", "en-de", "code")
