"""Work shared by processes that end with the one that started them, be it killed."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import Any

from polylm_jax.errors import UserError

_job: Any  # in a worker process


@contextmanager
def shared_by(job: Any, count: int) -> Iterator[Callable]:
    """Gives run(function, pieces): function(job, piece) of each, in the order they finish.

    job: what every call needs; sent to each process once. count: processes, or 1 for this one.
    """
    if count == 1:
        yield lambda function, pieces: (function(job, piece) for piece in pieces)
        return
    # a fork would copy the locks of JAX's threads, so start afresh
    with ProcessPoolExecutor(count, get_context("spawn"), _start_worker, (job,)) as pool:

        def run(function: Callable, pieces: Iterable[Any]) -> Iterator[Any]:
            left = iter(pieces)
            # a few for each, or there would be a future in memory for all there is to do
            waiting = {pool.submit(_call, function, piece) for piece in islice(left, 4 * count)}
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                waiting |= {pool.submit(_call, function, p) for p in islice(left, len(done))}
                yield from (future.result() for future in done)

        try:
            yield run
        except BrokenProcessPool as error:
            raise UserError(
                "A worker process died, for lack of memory perhaps; run the same "
                "command again: what is finished is kept."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(job: Any) -> None:
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sees to it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(function: Callable, piece: Any) -> Any:
    return function(_job, piece)
