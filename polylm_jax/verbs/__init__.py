"""One module a verb; and the numbers that their flags take, checked where they are read."""

from collections.abc import Callable
from typing import Any

from polylm_jax.ranges import fit


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
