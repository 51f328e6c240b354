"""What may be set of a server."""

from dataclasses import dataclass
from typing import Annotated

from polylm_jax.ranges import Range, check


@dataclass(frozen=True)
class Serving:
    """How many are answered at once, and how they share the device.

    slots: texts that go on at once; on a mesh so many more that it splits them evenly. Each has
        room for `context` tokens in the cache from the start.
    context: tokens of a prompt and its answer together.
    burst: tokens that each text gets between two looks at who comes and goes.
    prompt_tokens: tokens of prompts read between two bursts while all slots are in use; more where
        some are idle, all where nobody waits for a next token. It bounds how long they wait.
    queue: calls that may wait for a slot; more are refused.
    """

    slots: Annotated[int, Range(1, 4096)] = 8
    context: Annotated[int, Range(2, also=(0, "the model's"))] = 0
    burst: Annotated[int, Range(1, 64)] = 8
    prompt_tokens: Annotated[int, Range(16)] = 256
    queue: Annotated[int, Range(0, 10**6)] = 256

    def __post_init__(self) -> None:
        check(self, "serve")
