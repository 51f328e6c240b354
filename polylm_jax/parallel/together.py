"""What the processes of a run do together without any device: number, agree, meet."""

import json
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed

PATIENCE = 600  # seconds that processes wait for each other where they must
MEET = 30  # seconds in which those that end for the same reason come to the same point


def process() -> int:
    """Which process of the run this is; unlike JAX's own number it needs no devices."""
    state: Any = distributed.global_state
    return state.process_id or 0


def processes() -> int:
    """How many processes the run has; unlike JAX's own number it needs no devices."""
    state: Any = distributed.global_state
    return state.num_processes or 1


def verdict(name: str, mine: str, judge: Callable[[list[str]], str]) -> str:
    """What process 0 makes of what each process says, for all of them; it needs no devices.

    name: of the question, one that was not asked before. judge: function from the words of all
    processes, in their order, to the answer.
    """
    state: Any = distributed.global_state
    if state.client is None:
        return judge([mine])
    key = f"polylm/{name}"
    state.client.key_value_set(f"{key}/{state.process_id}", json.dumps(mine))
    if state.process_id == 0:
        told = [
            json.loads(state.client.blocking_key_value_get(f"{key}/{i}", PATIENCE * 1000))
            for i in range(state.num_processes)
        ]
        state.client.key_value_set(f"{key}/verdict", json.dumps(judge(told)))
    return json.loads(state.client.blocking_key_value_get(f"{key}/verdict", PATIENCE * 1000))


def all_come(name: str, seconds: float) -> bool:
    """Whether all processes call this, with the same name, within so many seconds."""
    client: Any = distributed.global_state.client
    if client is None:
        return True
    try:
        client.wait_at_barrier(f"polylm/{name}", round(1000 * seconds))
    except jax.errors.JaxRuntimeError:
        return False
    return True
