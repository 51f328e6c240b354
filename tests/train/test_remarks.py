"""What is said of settings before a run starts: what changed, and what the run does not come to."""

from pathlib import Path

import pytest

from polylm_jax import config
from polylm_jax.data.schedule import Schedule
from polylm_jax.train.optimizer import OptimizerSettings
from polylm_jax.train.remarks import differences, remarks

RUNS = sorted((Path(__file__).parents[2] / "gin_configs/runs").glob("*.gin"))
PLAIN = OptimizerSettings(warmup_steps=10, decay_steps=100)


def text_of(*flags):
    config.parse([], list(flags))
    return config.resolved()


def test_each_setting_that_differs_is_a_line_with_both_values():
    old = text_of("train.steps=10", "optimizer.peak_learning_rate=3e-3", "train.folder=r")
    new = text_of("train.steps=12", "optimizer.peak_learning_rate=1e-4", "train.folder=r")
    assert differences(old, new) == [
        "optimizer.peak_learning_rate: 0.003 -> 0.0001",
        "train.steps: 10 -> 12",
    ]
    assert differences(old, old) == []


def test_the_same_value_in_other_words_is_no_difference():
    given = text_of("curriculum.non_english=((0.0, 0.3),)", "optimizer.clip=1")
    assert differences(given, text_of()) == []


def test_settings_that_only_one_version_has_are_passed_over():
    old = text_of("train.steps=10") + "\ntrain.gone = 5\nno gin at all\n"
    new = text_of("train.steps=12") + "\ntrain.fresh = 5\n"
    assert differences(old, new) == ["train.steps: 10 -> 12"]


def test_long_values_are_shown_where_they_part():
    tables = [
        f"curriculum.weights=((0,{{'zh':1.0,'ru':1.0,'es':1.0,'de':1.0,'fr':1.0,'it':{x}}}),)"
        for x in (2, 3)
    ]
    [line] = differences(text_of(tables[0]), text_of(tables[1]))
    assert "'it': 2.0" in line.split(" -> ")[0]
    assert "'it': 3.0" in line.split(" -> ")[1]
    assert len(line) < 160
    assert line.isascii()


@pytest.mark.parametrize(
    ("steps", "changed", "words"),
    [
        (100, {}, []),
        (91, {}, []),
        (111, {}, []),
        (90, {}, ["decay_steps = 100 lies after train.steps = 90"]),
        (112, {}, ["the last 12 steps keep the final learning rate"]),
        (112, {"final_share": 1.0}, []),
        (10, {"decay_steps": 11}, ["warmup_steps = 10 reaches beyond train.steps = 10"]),
        (5, {}, ["warmup_steps = 10 reaches beyond", "decay_steps = 100 lies after"]),
        (100, {"warmup_tokens": 99, "decay_tokens": 1000}, []),
        (100, {"decay_tokens": 800}, ["decay_tokens = 800 lies before the run's 1,000 tokens"]),
        (100, {"decay_tokens": 800}, ["the last 200 tokens keep the final learning rate"]),
        (500, {"decay_tokens": 1200}, ["decay_tokens = 1,200 lies after the run's 1,000 tokens"]),
        (100, {"warmup_tokens": 1e3, "decay_tokens": 1050}, ["warmup_tokens = 1,000 reaches bey"]),
    ],
)
def test_a_learning_rate_that_the_run_does_not_follow(steps, changed, words):
    settings = OptimizerSettings(**{"warmup_steps": 10, "decay_steps": 100} | changed)
    said = remarks(steps, settings, Schedule(), 1000)
    assert len(said) == len(words)
    assert all(word in sentence for word, sentence in zip(words, said, strict=True))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"non_english": ((0, 0.3), (1000, 0.6))}, ""),
        ({"non_english": ((0, 0.3), (999, 0.3), (999, 0.6))}, ""),
        ({"non_english": ((0, 0.3), (2000, 0.3))}, ""),
        ({"non_english": ((0, 0.3), (2000, 0.6))}, "curriculum.non_english still changes up to 2,"),
        ({"non_english": ((0, 0.3), (1000, 0.3), (1000, 0.6))}, "curriculum.non_english still"),
        ({"weights": ((0, {"de": 1.0}), (2000, {"de": 1.0}))}, ""),
        ({"weights": ((0, {"de": 1.0}), (2000, {"fr": 1.0}))}, "curriculum.weights still changes"),
        ({"extras": {"code": ((0, 0.1), (5e3, 0.2))}}, 'extras["code"] still changes up to 5,000'),
    ],
)
def test_a_schedule_that_ends_after_the_run(fields, words):
    said = remarks(100, PLAIN, Schedule(**fields), 1000)
    assert [words in sentence for sentence in said] == ([True] if words else [])


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.stem)
def test_the_runs_that_ship_need_no_remark(file):
    config.parse([str(file)], [])
    training, length = config.get("train"), config.get("rows").length
    tokens = training.steps * training.batch * length
    optimizer, schedule = config.get("optimizer"), config.get("curriculum")
    assert remarks(training.steps, optimizer, schedule, tokens) == []
