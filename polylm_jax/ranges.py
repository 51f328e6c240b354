"""What a setting may be: said once, in its type, and checked wherever the setting is made.

steps: Annotated[int, Range(1)] = 610_000
clip: Annotated[float, Range(TINY, HUGE, also=(0, "no clipping"))] = 1.0
weights: tuple[tuple[Tokens, dict[str, Weight]], ...] = ()
remat: Annotated[str, OneOf(*REMAT_POLICIES)] = "full"
"""

import math
import numbers
import types
from dataclasses import dataclass, fields
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from polylm_jax.errors import UserError

# float32's smallest normal number and its largest: what lies outside becomes 0 or infinite there
TINY, HUGE = 1.2e-38, 3.4e38
INT32 = 2**31 - 1  # JAX counts in int32


@dataclass(frozen=True)
class Range:
    """A number from least to most, both allowed; NaN lies in no range.

    also: one number outside, such as 0, that is allowed too, and what it means.
    note: what else to say where a number is refused.
    """

    least: float
    most: float = INT32
    also: tuple[float, str] | None = None
    note: str = ""

    def __contains__(self, value: Any) -> bool:
        return self.least <= value <= self.most or bool(self.also and value == self.also[0])

    def __str__(self) -> str:
        if self.least == TINY:
            rule = f"it must lie above 0, up to {_number(self.most)}"
        else:
            rule = f"it must lie between {_number(self.least)} and {_number(self.most)}"
        if self.also:
            rule += f", or be {_number(self.also[0])} ({self.also[1]})"
        return rule + (f"; {self.note}" if self.note else "")


class OneOf:
    """One of several words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __contains__(self, value: Any) -> bool:
        return value in self.words

    def __str__(self) -> str:
        return f"choose one of {', '.join(self.words)}"


Share = Annotated[float, Range(0, 1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]  # jax.random.key drops higher bits


def check(settings: Any, block: str) -> None:
    """UserError where a field of a dataclass is not what its type says. block: its name in gin."""
    hints = hints_of(type(settings))
    for field in fields(settings):
        fit(getattr(settings, field.name), hints[field.name], f"{block}.{field.name}")


def hints_of(block: type) -> dict[str, Any]:
    """The types of a dataclass's fields, ranges included."""
    return get_type_hints(block, include_extras=True)


def fit(value: Any, hint: Any, name: str) -> Any:
    """The value as its type has it: lists become tuples, ints floats, whole floats ints.

    UserError, which calls it `name`, where it is of another type or not allowed.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        result = fit(value, arguments[0], name)
        for rule in arguments[1:]:
            if isinstance(rule, Range | OneOf) and result not in rule:
                word = f'{name} is "{_shown(value)[1:-1]}"'
                given = word if isinstance(value, str) else _given(name, value)
                raise UserError(f"{given}; {rule}.")
            if callable(rule):
                result = rule(result, name)
        return result
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        return fit(value, next(one for one in arguments if one is not types.NoneType), name)
    if origin is tuple and isinstance(value, list | tuple):
        each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(each) != len(value):
            raise UserError(f"{_given(name, value)}; it must be {len(each)} values.")
        parts = enumerate(zip(value, each, strict=True))
        return tuple(fit(item, one, f"{name}[{i}]") for i, (item, one) in parts)
    if origin is dict and isinstance(value, dict):
        key, item = arguments
        found = {fit(k, key, name): fit(v, item, f"{name}[{_shown(k)}]") for k, v in value.items()}
        if len(found) < len(value):
            raise UserError(f"{_given(name, value)} has one thing under two names; leave out one.")
        return found
    if hint in (int, float) and isinstance(value, numbers.Real) and not isinstance(value, bool):
        if hint is float:
            return _float(value)
        if value % 1 == 0:
            return math.floor(value)
    elif hint in (str, bool) and isinstance(value, hint):
        return value
    wanted = getattr(origin or hint, "__name__", str(hint))
    raise UserError(f"{_given(name, value)} is of the wrong type; it must be {wanted}.")


def _given(name: str, value: Any) -> str:
    """As it was given: train.steps = 0, or --batch=0."""
    return f"{name}={_shown(value)}" if name.startswith("--") else f"{name} = {_shown(value)}"


def _shown(value: Any) -> str:
    """A value as gin has it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _float(value: numbers.Real) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
