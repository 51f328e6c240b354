"""A batch in equal shares, each for a core of its own.

A CPU's cores hardly share a batch of small products, of which the attention of one token is made.
So each core runs a whole program on its share of the texts, beside the others; the weights, which
all read, are held once.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import jax

from polylm_jax.chips import cores
from polylm_jax.decode.prefill import ROWS_AT_ONCE

Item = TypeVar("Item")
Result = TypeVar("Result")


def shares(params: Any, rows: int) -> int:
    """Into how many a batch of so many rows is cut: 1 unless a CPU holds the model as one device.

    Int8 weights are one share, too: each program makes all of them floats again before its loop.
    params: the tree that decodes, or the part of it that is held in arrays.
    """
    leaves = jax.tree.leaves(params)
    devices = {device for leaf in leaves for device in leaf.devices()}
    copied = any(leaf.dtype == "int8" for leaf in leaves)
    if copied or len(devices) > 1 or any(device.platform != "cpu" for device in devices):
        return 1
    return max(1, min(cores(), rows // ROWS_AT_ONCE))


def side_by_side(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    leave: Callable[[], None] = lambda: None,
) -> list[Result]:
    """function(item) of each, all at once, each in a thread with the mesh that is in context.

    leave: called where one of them fails or somebody interrupts, to have the others end. Those
    are waited for, but not where it was Ctrl-C. The main thread runs none of them itself: it would
    not hear Ctrl-C before the program ends, which may take minutes.
    """
    mesh = jax.sharding.get_mesh()

    def one(item: Item) -> Result:
        with jax.set_mesh(mesh):
            return function(item)

    if len(items) == 1 and threading.current_thread() is not threading.main_thread():
        return [function(items[0])]
    threads = ThreadPoolExecutor(max(1, len(items)))
    asked = [threads.submit(one, item) for item in items]
    interrupted = False
    try:
        done, _ = wait(asked, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()  # raises what it failed with
    except BaseException as error:
        leave()
        interrupted = isinstance(error, KeyboardInterrupt)
        raise
    finally:
        threads.shutdown(wait=not interrupted)
    return [future.result() for future in asked]
