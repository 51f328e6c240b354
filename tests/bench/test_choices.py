"""The bench of choices: all policies and both losses, told as measured."""

import json

import pytest

from polylm_jax.__main__ import main
from polylm_jax.bench import choices
from polylm_jax.model.decoder import REMAT_POLICIES
from tests.conftest import gin_flags

SETTINGS = {"compute.loss_block": 16, "rows.length": 32, "train.microbatches": 2}


def measure(tiny, capsys):
    flags = gin_flags(tiny | SETTINGS)
    assert main(["bench", "choices", "--steps=5", *flags]) == 0
    shown = capsys.readouterr().out
    found = json.loads(shown.splitlines()[-1])
    return shown, {(choice["part"], choice["name"]): choice for choice in found}


@pytest.mark.rare
def test_every_choice_is_measured_and_less_kept_is_less_memory(tiny, capsys):
    shown, found = measure(tiny, capsys)
    expected = [("remat", policy) for policy in REMAT_POLICIES]
    assert list(found) == [*expected, ("loss", "blocked"), ("loss", "plain")]
    assert all(choice["seconds"] > 0 for choice in found.values())
    temporary = {key: choice["temporary"] for key, choice in found.items()}
    assert 0 < temporary["remat", "full"] <= temporary["remat", "none"]
    assert 0 < temporary["loss", "blocked"] < temporary["loss", "plain"]
    assert "does not fit" not in shown


@pytest.mark.rare
def test_what_does_not_fit_is_not_run(tiny, capsys, monkeypatch):
    monkeypatch.setattr(choices, "_fits", lambda planned: False)
    monkeypatch.setattr(choices, "REMAT_POLICIES", ["full"])
    shown, found = measure(tiny, capsys)
    assert all(choice["seconds"] is None for choice in found.values())
    assert shown.count("does not fit") == len(found)


def test_no_steps_are_refused(tiny, capsys):
    assert main(["bench", "choices", "--steps=0", *gin_flags(tiny)]) == 1
    assert "--steps=0; it must lie between 1" in capsys.readouterr().err
