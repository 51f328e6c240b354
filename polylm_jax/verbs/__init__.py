"""One module a verb; and the numbers that their flags take, checked where they are read."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from polylm_jax.ranges import fit


def module_of(verb: str) -> ModuleType:
    """The module of a verb, which has its name with _ for -."""
    return importlib.import_module(f"polylm_jax.verbs.{verb.replace('-', '_')}")


def number(flag: str, hint: Any) -> Callable[[str], Any]:
    """A flag's `type` for argparse: text to the number of that type, or UserError."""

    def read(text: str) -> Any:
        value: int | float | str = text
        for kind in (float, int):
            try:
                value = kind(text)
            except ValueError:
                continue
        return fit(value, hint, flag)

    return read
