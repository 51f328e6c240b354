"""A process that is lost, or has ended alone, ends the others: with its word, not by an abort."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import distributed

from polylm_jax.errors import UserError
from polylm_jax.parallel import together

ALONE = "polylm/alone"  # under it a process that ends by itself leaves its word and its reason
KEPT: list[Any] = []  # handlers that the C library knows the addresses of


@contextlib.contextmanager
def watched(
    say: Callable[[str], None], leave: Callable[[str, str], int], again: str, lost_after: float
) -> Iterator[None]:
    """Ends this process with one sentence as soon as another one is lost or has ended alone.

    say: function that says the sentence once this process is gone. leave: function (word, reason)
    to the exit status. again: what mends a loss. lost_after: seconds in which one is noticed.
    """
    state: Any = distributed.global_state
    client = state.client
    everyone = list(range(state.num_processes))
    over = threading.Event()

    def news() -> tuple[str, str]:
        """Blocks until a process has ended alone, or is not the one any more that it was."""
        first = client.get_live_nodes(everyone)
        while not over.wait(1):
            for _, words in client.key_value_dir_get(ALONE):
                word, reason = json.loads(words)
                return word, reason
            live = client.get_live_nodes(everyone)
            if live != first:
                return lost([i for i in everyone if i not in live or live[i] != first.get(i)])
        return "", ""

    def lost(names: list[int]) -> tuple[str, str]:
        which = " and ".join(map(str, names))
        return "lost", f"process {which} of {len(everyone)} was lost; {again}."

    leaving = threading.Lock()

    def end(word: str, reason: str) -> None:
        leaving.acquire()  # for good: one sentence is enough
        threading.Timer(10, os._exit, [1]).start()  # storage may not answer either
        status = leave(word, reason)
        say(f"{word}: {reason}")
        os._exit(status)

    def watch() -> None:
        try:
            word, reason = news()
        except jax.errors.JaxRuntimeError:
            word, reason = lost([0])  # there is nobody left to ask
        # those who are through leave a moment sooner or later than this one
        if not over.wait(5):
            end(word, reason)
        # process 0 leaves last: JAX aborts whoever is still there without it
        while state.process_id == 0 and len(client.get_live_nodes(everyone)) > 1:
            time.sleep(0.1)

    alone: list[int] = []  # the exit status, once this process has ended by itself

    def aborted() -> None:
        if alone:
            os._exit(alone[0])
        # the watch may wait for an answer that does not come
        if not over.wait(5) and not _answers(state.coordinator_address):
            end(*lost([0]))

    thread = threading.Thread(target=watch, daemon=True, name="watch")
    thread.start()
    _before_an_abort(aborted)
    try:
        yield
        client.wait_at_barrier("polylm/end", together.PATIENCE * 1000)
        over.set()
        thread.join(30)
    except BaseException as error:
        if isinstance(getattr(error, "defect", error), jax.errors.JaxRuntimeError):
            # most likely the loss of another, which the watch knows in a moment and says better
            time.sleep(lost_after + 15)
        word, reason = getattr(error, "word", "failed"), getattr(error, "reason", str(error))
        if isinstance(error, UserError) and together.all_come(f"end/{word}", together.MEET):
            over.set()
            thread.join(30)
            raise
        over.set()
        alone.append(getattr(error, "status", 1))
        # whoever fails alone tells the others, and must not wait for them on the way out
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            reason = f"process {state.process_id} of {len(everyone)}: {reason}"
            client.key_value_set(f"{ALONE}/{state.process_id}", json.dumps([word, reason]))
        # before process 0 follows, whose loss JAX would tell of in its own way
        threading.Timer(3, os._exit, alone).start()
        raise
    finally:
        over.set()


def _before_an_abort(happens: Callable[[], None]) -> None:
    """Calls a function before SIGABRT ends this process, whatever thread it comes from.

    JAX aborts a process that has lost process 0, and leaves Python no word otherwise.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: happens())
    KEPT.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))


def _answers(address: str) -> bool:
    """Whether anything listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 2).close()
    except OSError:
        return False
    return True
