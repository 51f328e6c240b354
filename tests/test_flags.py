"""Numbers of flags are checked where flags are read, before anything is begun."""

import argparse

import pytest

from polylm_jax.__main__ import VERBS, main
from polylm_jax.errors import UserError
from polylm_jax.verbs import module_of

WILD = ("0", "-1", "2.5", "1e300", "-1e300", "nan", "inf", "9" * 20, "9" * 5000, "x", "", "1 2")


@pytest.mark.parametrize("verb", VERBS)
def test_every_number_of_a_flag_is_checked(verb):
    parser = argparse.ArgumentParser()
    module_of(verb).flags(parser)
    for action in parser._actions:
        assert action.type not in (int, float), f"{verb} {action.option_strings} takes any number"
        taken = []
        for text in WILD if callable(action.type) else ():
            try:
                taken.append(action.type(text))
            except UserError as error:
                said = str(error)
                assert any(name in said for name in (*action.option_strings, "N = ", "FOLDER")), (
                    said
                )
                assert said.count("\n") == 0
        numbers = [value for value in taken if not isinstance(value, str)]  # or a path's type
        assert -1 not in numbers
        assert all(abs(number) < 2**40 for number in numbers)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generate", "--run=.", "--prompt=x", "--batch=0"], "--batch=0; it must lie between 1"),
        (["score", "--run=.", "--pairs=p", "--out=o", "--batch=-3"], "--batch=-3; it must"),
        (["bench", "train", "--steps=1e300"], "--steps=1e+300; it must lie between 1"),
        (["plan", "--efficiency=nan"], "--efficiency=nan; it must lie above 0, up to 1."),
        (["plan", "--memory=-1"], "or be 0 (the chip's)."),
        (["plan", "--best=none"], "--best='none' is of the wrong type; it must be int."),
        (["rows", "show", "9" * 30], "N = "),
        (["train", "--processes=0"], "--processes=0; it must lie between 1"),
        (
            ["train", "--processes=2", "--process=2", "--coordinator=localhost:1"],
            "--process=2 is not one of --processes=2",
        ),
        (
            ["chat", "--run=.", "--gin.chat.seed=" + "9" * 20],
            "chat.seed = 99999999999999999999; it",
        ),
    ],
)
def test_a_number_that_cannot_be_is_one_sentence(arguments, sentence, capsys):
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
