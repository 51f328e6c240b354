"""Every number of every setting has a range, said in its type; nothing outside comes through."""

import math
from dataclasses import fields
from typing import Annotated, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polylm_jax import config
from polylm_jax.errors import UserError
from polylm_jax.ranges import HUGE, INT32, TINY, OneOf, Range, fit, hints_of
from polylm_jax.train.optimizer import OptimizerSettings, learning_rate, make_optimizer

WILD = (0, -1, 1, 2.5, 1e300, -1e300, 10**30, 10**5000, 2**31, 2**64, math.nan, math.inf, -math.inf)
FIELDS = [(block, field.name) for block, cls in config.BLOCKS.items() for field in fields(cls)]


def leaves(hint):
    """(type, rule) of all that a value of this type is made of, dict keys left out."""
    if get_origin(hint) is Annotated:
        return [get_args(hint)]
    parts = [part for part in get_args(hint) if part not in (Ellipsis, type(None))]
    parts = parts[1:] if get_origin(hint) is dict else parts
    return [leaf for part in parts for leaf in leaves(part)] if parts else [(hint, None)]


def usual(hint):
    """A value that the type allows."""
    if get_origin(hint) is Annotated:
        return get_args(hint)[1].least
    parts = get_args(hint)
    if get_origin(hint) is dict:
        return {"de": usual(parts[1])}
    return tuple(usual(part) for part in parts if part is not Ellipsis)


def placed(hint, number):
    """(value, rule): values of the type in which one number after the other is the given one."""
    if get_origin(hint) is Annotated:
        return [(number, get_args(hint)[1])] if get_args(hint)[0] in (int, float) else []
    parts = [part for part in get_args(hint) if part not in (Ellipsis, type(None))]
    if get_origin(hint) is dict:
        return [({"de": value}, rule) for value, rule in placed(parts[1], number)]
    if get_origin(hint) is not tuple:
        return []
    return [
        (tuple(value if i == at else usual(part) for i, part in enumerate(parts)), rule)
        for at, own in enumerate(parts)
        for value, rule in placed(own, number)
    ]


@pytest.mark.parametrize(("block", "name"), FIELDS)
def test_a_number_has_a_range_and_a_choice_has_its_words(block, name):
    for kind, rule in leaves(hints_of(config.BLOCKS[block])[name]):
        if kind in (int, float):
            assert isinstance(rule, Range), f"{block}.{name} is a number without a Range"
            assert rule.least <= rule.most <= HUGE
        else:
            assert kind in (str, bool)
            assert not isinstance(rule, Range)


def refusal(make):
    """What the user is told, or nothing."""
    try:
        make()
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("block", "name"), FIELDS)
def test_what_is_outside_its_range_is_one_sentence_and_nothing_else(block, name):
    hint = hints_of(config.BLOCKS[block])[name]
    whole = int in dict(leaves(hint))
    for number in WILD:
        for value, rule in placed(hint, number):
            said = refusal(lambda value=value: config.BLOCKS[block](**{name: value}))
            allowed = number in rule and not (whole and number % 1)
            assert allowed or said, f"{block}.{name} takes {number}"
            # numbers that are allowed may yet not go together
            assert not said or f"{block}.{name}" in said
            assert allowed or str(rule) in said or "wrong type" in said
            assert "\n" not in said


@pytest.mark.parametrize(("block", "name"), FIELDS)
def test_the_same_from_gin(block, name, tmp_path):
    file = tmp_path / "x.gin"
    for number in (-1e300, math.inf, 10**30, -7):
        for value, rule in placed(hints_of(config.BLOCKS[block])[name], number):
            text = f"{block}.{name} = {value}".replace("inf", "1e999")
            file.write_text(f"# a comment\n{text}\n")
            flag = refusal(lambda text=text: config.parse([], [text]))
            line = refusal(lambda: config.parse([str(file)], []))
            assert line == (f"{file}:2: {flag}" if flag else "")
            assert f"{block}.{name}" in flag or number in rule


def test_the_defaults_are_allowed_and_stay_what_they_are():
    for block, name in FIELDS:
        cls = config.BLOCKS[block]
        default = getattr(cls(), name)
        assert fit(default, hints_of(cls)[name], name) == default


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("train.steps", 0, "train.steps = 0; it must lie between 1 and 2,147,483,647."),
        ("train.keep", 0, "2,147,483,647; a large number keeps all."),
        ("train.validate_every", -1, "or be 0 (no validation)."),
        (
            "optimizer.clip",
            -1,
            "optimizer.clip = -1; it must lie above 0, up to 3.4e+38, or be 0 (",
        ),
        ("mesh.fsdp", 0, "or be -1 (all devices that are left)."),
        ("train.seed", 10**19, "train.seed = 10000000000000000000; it must lie between 0 and 4,29"),
        ("train.steps", True, "train.steps = True is of the wrong type; it must be int."),
        ("curriculum.extras", {"code": ((0, 2),)}, "curriculum.extras['code'][0][1] = 2; it must"),
        ("curriculum.non_english", (0, 0.3), "curriculum.non_english[0] = 0 is of the wrong type"),
        ("curriculum.non_english", ((0, 1, 2),), "non_english[0] = (0, 1, 2); it must be 2 values"),
        ("curriculum.weights", ((0, {1: 1}),), "must be str"),
        ("train.batch", 10, "train.microbatches = 4 does not divide train.batch = 10"),
        ("model.heads", 7, "model.heads = 7 does not divide model.d_model"),
        ("optimizer.warmup_steps", 608_000, "is not below optimizer.decay_steps"),
        ("compute.prefill_chunk", 3, "compute.prefill_chunk = 3; it must be a power of two"),
        ("sampling.beams", 2, "must be 0 where sampling.beams = 2 are searched"),
    ],
)
def test_the_sentence_says_what_would_be_right(name, value, sentence):
    with pytest.raises(UserError) as raised:
        config.parse([], ["train.microbatches=4", "sampling.temperature=0.5", f"{name}={value!r}"])
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("block", "name"),
    [
        (b, n)
        for b, n in FIELDS
        for _, rule in leaves(hints_of(config.BLOCKS[b])[n])
        if isinstance(rule, OneOf)
    ],
)
def test_a_word_that_is_none_of_the_choices_is_told_all_of_them(block, name):
    hint = hints_of(config.BLOCKS[block])[name]
    [(_, rule)] = leaves(hint)
    value = "('nonesuch',)" if get_origin(hint) is tuple else "nonesuch"
    with pytest.raises(UserError) as raised:
        config.parse([], [f"{block}.{name}={value}"])
    assert 'is "nonesuch"; choose one of ' + ", ".join(rule.words) in str(raised.value)
    assert f"{block}.{name}" in str(raised.value)


def test_numbers_of_numpy_and_whole_floats_are_numbers():
    assert fit(np.int64(5), Annotated[int, Range(1)], "x") == 5
    assert fit(np.float32(0.5), Annotated[float, Range(0, 1)], "x") == 0.5
    assert type(fit(1e5, Annotated[int, Range(1, INT32)], "x")) is int


def test_no_clipping_leaves_the_gradient_as_it_is_and_the_state_of_the_same_form():
    tree = {"w": jnp.array([3.0, 4.0])}
    settings = {"warmup_steps": 0, "decay_steps": 10, "beta1": 0.0, "beta2": 0.0, "eps": 1e9}
    made = {}
    for clip in (0.0, 1.0, 100.0):
        steps = make_optimizer(OptimizerSettings(clip=clip, **settings), {"w": False})
        made[clip] = steps.update(tree, steps.init(tree), tree)
    # eps is so large that a step is the gradient by a constant
    np.testing.assert_allclose(made[0.0][0]["w"], made[100.0][0]["w"])
    np.testing.assert_allclose(made[0.0][0]["w"], 5 * made[1.0][0]["w"], rtol=1e-6)
    assert jax.tree.structure(made[0.0]) == jax.tree.structure(made[1.0])


def test_no_warm_up_begins_at_the_peak():
    rate = learning_rate(OptimizerSettings(warmup_steps=0, decay_steps=10))
    assert float(rate(0)) == pytest.approx(1e-4)


def test_float32_holds_what_is_allowed():
    assert np.float32(TINY) > 0
    assert np.isfinite(np.float32(HUGE))
    assert np.float32(0.999999) < 1
