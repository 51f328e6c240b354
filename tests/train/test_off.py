"""0 turns off what a run does every so many steps."""

import json

from polylm_jax.__main__ import main
from polylm_jax.train.loop import Training
from tests.conftest import gin_flags


def when(training, asked):
    return [step for step in range(training.steps + 1) if asked(step)]


def test_when_a_run_saves_and_validates():
    often = Training(steps=10, checkpoint_every=4, validate_every=5)
    assert when(often, often.saves)[1:] == [4, 8, 10]
    assert when(often, often.validates) == [0, 5, 10]
    never = Training(steps=10, checkpoint_every=0, validate_every=0)
    assert when(never, never.saves) == [10]
    assert when(never, never.validates) == []


def test_a_run_with_everything_off_trains_saves_and_says_what_changes(tiny, tmp_path, capsys):
    off = dict.fromkeys(("validate_every", "checkpoint_every", "log_every", "data_timeout"), 0)
    off = {f"train.{name}": value for name, value in off.items()}
    flags = gin_flags(tiny | off | {"train.folder": tmp_path, "train.steps": 3})
    assert main(["train", *flags]) == 0
    said = capsys.readouterr().err
    assert "optimizer.decay_steps = 12 lies after train.steps = 3" in said
    assert "step 2/3" not in said
    assert "step 3/3" in said
    with open(tmp_path / "metrics.jsonl") as lines:
        kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds.count("train") == 3
    assert "valid" not in kinds
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]

    assert main(["train", *flags, "--gin.train.steps=4", "--gin.train.log_every=1"]) == 0
    said = capsys.readouterr().err
    assert "\ntrain.steps: 3 -> 4\ntrain.log_every: 0 -> 1\n" in said
    assert said.count(" -> ") == 2
