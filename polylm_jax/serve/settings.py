"""What may be set of a server."""

import re
from dataclasses import dataclass
from typing import Annotated

from polylm_jax.errors import UserError
from polylm_jax.files import MaybeLocalPlace
from polylm_jax.ranges import Range, check


def _origin(text: str, name: str) -> str:
    if text == "*" or re.fullmatch(r"https?://[\w.\[\]:-]+", text, re.ASCII):
        return text
    raise UserError(f'{name} = "{text}" is no origin; write it like https://chat.example.org.')


@dataclass(frozen=True)
class Serving:
    """How many are answered at once, how they share the device, and who is let in.

    slots: texts that go on at once; on a mesh so many more that it splits them evenly. Each has
        room for `context` tokens in the cache from the start.
    context: tokens of a prompt and its answer together.
    burst: tokens that each text gets between two looks at who comes and goes.
    prompt_tokens: tokens of prompts read between two bursts while all slots are in use; more where
        some are idle, all where nobody waits for a next token. It bounds how long they wait; where
        so many would take longer than two bursts, fewer are read.
    queue: calls that may wait for a slot; more are refused.
    key_variable, key_file: an environment variable and a file that may hold the key; the variable
        counts first. Without a key only this machine is answered.
    origins: of pages elsewhere that browsers may let ask, or "*" for all.
    drain_seconds: for which running answers go on when the server is asked to stop.
    """

    slots: Annotated[int, Range(1, 4096)] = 8
    context: Annotated[int, Range(2, also=(0, "the model's"))] = 0
    burst: Annotated[int, Range(1, 64)] = 8
    prompt_tokens: Annotated[int, Range(16)] = 512
    queue: Annotated[int, Range(0, 10**6)] = 256
    key_variable: str = "POLYLM_KEY"
    key_file: MaybeLocalPlace = ""
    origins: tuple[Annotated[str, _origin], ...] = ()
    drain_seconds: Annotated[float, Range(0, 86_400)] = 30.0

    def __post_init__(self) -> None:
        check(self, "serve")
