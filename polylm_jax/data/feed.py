"""From the row store to the devices: each process reads just the rows that its devices hold."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from polylm_jax.data.curriculum import Curriculum, locate
from polylm_jax.data.rows import Store

AHEAD = 2  # batches that are read and on their way to the devices before they are wanted


def read_rows(
    store: Store, curriculum: Curriculum, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows start..stop-1 of the run.

    Returns tokens int32 [stop - start, length + 1] and source int32 [stop - start], an index
    into curriculum.sources.
    """
    source, place = locate(curriculum, start, stop)
    return store.read_mixed(curriculum.sources, source, place), source.astype(np.int32)


def batches(
    store: Store, curriculum: Curriculum, sharding: NamedSharding, batch: int, first_row: int
) -> Generator[dict[str, jax.Array], None, None]:
    """Endless global batches from row first_row on: tokens [batch, length + 1], source [batch].

    The rows a process reads follow from the sharding's index map and never from its number:
    with tensor parallelism several processes feed the same rows.
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
        return {
            "tokens": jax.make_array_from_callback(
                shape, sharding, lambda index: parts[rows_of(index)][0]
            ),
            "source": jax.make_array_from_callback(
                (batch,), sharding, lambda index: parts[rows_of(index)][1]
            ),
        }

    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
        pending = deque(pool.submit(make, first_row + batch * i) for i in range(AHEAD))
        while True:
            first_row += batch
            pending.append(pool.submit(make, first_row + batch * (AHEAD - 1)))
            yield pending.popleft().result()
