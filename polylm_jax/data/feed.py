"""From the row store to the devices: each process reads just the rows that its devices hold."""

import threading
import time
from collections.abc import Generator, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from polylm_jax.data.curriculum import locate
from polylm_jax.data.rows import Store
from polylm_jax.data.schedule import Curriculum
from polylm_jax.errors import UserError

AHEAD = 2  # batches that are read and on their way to the devices before they are wanted


COLUMNS = ("tokens", "source", "marks")  # of a batch


class StalledRead(UserError):
    """Rows have not come in time."""


def read_rows(
    store: Store, curriculum: Curriculum, start: int, stop: int
) -> tuple[np.ndarray, ...]:
    """Rows start..stop-1 of the run.

    Returns tokens int32 [stop - start, length + 1], source int32 [stop - start], an index into
    curriculum.sources, and where the store has them marks, uint8 [stop - start, length + 1].
    """
    source, place = locate(curriculum, start, stop)
    wanted = curriculum.sources, source, place
    rows = store.read_mixed(*wanted), source.astype(np.int32)
    return (*rows, store.marks_mixed(*wanted)) if store.marked else rows


def batches(
    store: Store,
    curriculum: Curriculum,
    sharding: NamedSharding,
    batch: int,
    first_row: int,
    timeout: float = 300.0,
) -> Generator[dict[str, jax.Array], None, None]:
    """Endless global batches from row first_row on: COLUMNS as in read_rows, by name.

    The rows a process reads follow from the sharding's index map and never from its number:
    with tensor parallelism several processes feed the same rows. StalledRead where a batch has
    not come within `timeout` seconds of being wanted; 0 waits for ever.
    """
    shape = (batch, store.length + 1)

    def rows_of(index: Any) -> tuple[int, int]:
        start, stop, _ = index[0].indices(batch)
        return start, stop

    wanted = set(map(rows_of, sharding.addressable_devices_indices_map(shape).values()))

    def make(first: int) -> dict[str, jax.Array]:
        parts = {
            (start, stop): read_rows(store, curriculum, first + start, first + stop)
            for start, stop in wanted
        }

        def whole(column: int, part: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(
                (batch, *part.shape[1:]), sharding, lambda index: parts[rows_of(index)][column]
            )

        some = next(iter(parts.values()))
        return {COLUMNS[column]: whole(column, part) for column, part in enumerate(some)}

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
            result = made.get(timeout=timeout or None)
        except Empty:
            files = [f"{store.path}/{name}/train-*" for name in silent(store, curriculum.sources)]
            raise StalledRead(
                f"no rows came from {', '.join(files) or store.path} within {timeout:g} s; see "
                "whether that storage answers and run the same command again, or raise "
                "train.data_timeout."
            ) from None
        if isinstance(result, Exception):
            raise result
        try:
            yield result
        except GeneratorExit:
            firsts.put(None)
            thread.join(timeout or None)
            raise


def silent(store: Store, sources: Sequence[str], seconds: float = 5.0) -> list[str]:
    """The sources of which not even one row comes within so many seconds."""
    first = np.array([0])
    probes = {
        name: threading.Thread(target=store.read, args=(name, first), daemon=True)
        for name in sources
        if name in store.sources
    }
    end = time.monotonic() + seconds
    for probe in probes.values():
        probe.start()
    for probe in probes.values():
        probe.join(max(0.0, end - time.monotonic()))
    return [name for name, probe in probes.items() if probe.is_alive()]
