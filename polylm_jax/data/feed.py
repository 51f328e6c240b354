"""From the row store to the devices: each process reads just the rows that its devices hold."""

import threading
from collections.abc import Callable, Generator
from queue import Empty, SimpleQueue
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from polylm_jax.data.curriculum import Curriculum, locate
from polylm_jax.data.rows import Store
from polylm_jax.errors import UserError

AHEAD = 2  # batches that are read and on their way to the devices before they are wanted


def read_rows(
    store: Store,
    curriculum: Curriculum,
    start: int,
    stop: int,
    note: Callable[[str], object] = str,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows start..stop-1 of the run.

    Returns tokens int32 [stop - start, length + 1] and source int32 [stop - start], an index
    into curriculum.sources. note: told each source before it is read.
    """
    source, place = locate(curriculum, start, stop)
    tokens = np.empty((stop - start, store.length + 1), np.int32)
    for index in np.unique(source):
        mine = source == index
        note(curriculum.sources[index])
        tokens[mine] = store.read(curriculum.sources[index], place[mine])
    return tokens, source.astype(np.int32)


def batches(
    store: Store,
    curriculum: Curriculum,
    sharding: NamedSharding,
    batch: int,
    first_row: int,
    timeout: float = 300.0,
) -> Generator[dict[str, jax.Array], None, None]:
    """Endless global batches from row first_row on: tokens [batch, length + 1], source [batch].

    The rows a process reads follow from the sharding's index map and never from its number:
    with tensor parallelism several processes feed the same rows. A UserError where a batch has
    not come within `timeout` seconds of being wanted.
    """
    shape = (batch, store.length + 1)

    def rows_of(index: Any) -> tuple[int, int]:
        start, stop, _ = index[0].indices(batch)
        return start, stop

    wanted = set(map(rows_of, sharding.addressable_devices_indices_map(shape).values()))

    reading = ""

    def note(source: str) -> None:
        nonlocal reading
        reading = source

    def make(first: int) -> dict[str, jax.Array]:
        parts = {
            (start, stop): read_rows(store, curriculum, first + start, first + stop, note)
            for start, stop in wanted
        }
        return {
            "tokens": jax.make_array_from_callback(
                shape, sharding, lambda index: parts[rows_of(index)][0]
            ),
            "source": jax.make_array_from_callback(
                (batch,), sharding, lambda index: parts[rows_of(index)][1]
            ),
        }

    firsts: SimpleQueue[int | None] = SimpleQueue()
    made: SimpleQueue[dict[str, jax.Array] | Exception] = SimpleQueue()

    def work() -> None:
        while (first := firsts.get()) is not None:
            try:
                made.put(make(first))
            except Exception as error:
                made.put(error)

    # a daemon, unlike a pool's thread: a read that never returns must not keep the process alive
    thread = threading.Thread(target=work, name="feed", daemon=True)
    thread.start()
    for i in range(AHEAD):
        firsts.put(first_row + batch * i)
    while True:
        first_row += batch
        firsts.put(first_row + batch * (AHEAD - 1))
        try:
            result = made.get(timeout=timeout)
        except Empty:
            raise UserError(
                f"no rows came from {store.path}/{reading}/train-*.tokens within {timeout:g} s; "
                "see whether that storage answers and run the same command again, or raise "
                "train.data_timeout."
            ) from None
        if isinstance(result, Exception):
            raise result
        try:
            yield result
        except GeneratorExit:
            firsts.put(None)
            thread.join(timeout)
            raise
