"""What is asked of a model: choices to score, or a prompt to continue.

Nothing here knows a benchmark's files or a device. A number is the item's place in its task and
language, the same in all languages of a benchmark whose languages are translations.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Choice:
    """One answer: how likely is the continuation after the context? An empty context is the
    beginning of a document."""

    context: str
    continuation: str


@dataclass(frozen=True)
class Item:
    """A question whose answers are scored, and the place of the right one.

    A task of kind "text" has one choice an item, a whole text after an empty context.
    document: what the benchmark's file says of it.
    """

    number: int
    choices: tuple[Choice, ...]
    gold: int = 0
    document: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """A text to continue greedily.

    stops: strings before which the answer ends; `</s>` ends every one. new_tokens: most of an
    answer. answers: those that count as right.
    """

    number: int
    text: str
    stops: tuple[str, ...]
    new_tokens: int
    answers: tuple[str, ...]
    document: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """One figure of a task in one language.

    name: as lm-eval calls it, where it does. value: as lm-eval prints it (acc and F1 from 0 to 1,
    BLEU from 0 to 100). error: its standard error; NaN where there is none.
    each: one value an item, whose mean is the value; None where only all together have one.
    note: how it was computed, such as sacreBLEU's signature.
    """

    name: str
    value: float
    error: float
    each: np.ndarray | None = None
    note: str = ""
