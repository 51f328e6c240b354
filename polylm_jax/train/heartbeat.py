"""The heartbeat file: what a run is doing, rewritten while it does it, for others to read."""

import contextlib
import json
import os
import socket
import threading
import time
from types import NoneType, TracebackType
from typing import Any, Self

from polylm_jax.errors import FULL
from polylm_jax.files import opened, put
from polylm_jax.jsonl import dumps, has_form
from polylm_jax.train.ends import ENDS, end_of

NAME = "heartbeat.json"
EVERY = 10  # seconds between two heartbeats
Beat = dict[str, Any]
# what a heartbeat holds when it is read; numbers that are none are null
COUNT, NUMBER = range(2**53), (float, NoneType)
BEAT = {
    **dict.fromkeys(("time?", "moved?"), float),
    **dict.fromkeys(("pid?", "step?", "steps?", "processes?"), COUNT),
    **dict.fromkeys(("state?", "host?", "reason?", "evaluated?"), str),
    "history?": [str],
    **dict.fromkeys(("tokens?", "skipped?", "slowest_host?"), COUNT),
    **dict.fromkeys(("loss?", "loss_before?", "steps_per_second?"), NUMBER),
    **dict.fromkeys(("tokens_per_second?", "slowest_host_seconds?", "memory_gib?"), NUMBER),
}


class Heartbeat:
    """Writes FOLDER/heartbeat.json every EVERY seconds and when the block ends.

    It starts with the first news. folder: local, or a path that fsspec knows, such as
    gs://bucket/run. active: whether this process writes; one of a run does.
    The file says time (of the beat), moved (of the last news), host, pid, state ("running", or a
    word of ENDS), where the end is no success its reason, and all that `tell` was given. Numbers
    that are none are null.
    """

    def __init__(self, folder: str, active: bool) -> None:
        self._folder, self._active = folder, active
        self._beat: Beat = {"state": "running", "host": socket.gethostname(), "pid": os.getpid()}
        self._over, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._go_on, daemon=True, name="heartbeat")

    def tell(self, **news: Any) -> None:
        """Adds news, or replaces them; they are in the file from the next beat on."""
        with self._lock:
            self._beat |= news | {"moved": time.time()}
        if self._active and self._thread.ident is None:
            self._write()
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._thread.is_alive():
            return
        self._over.set()
        self._thread.join()
        if error is not None:
            end = end_of(error)
            self.tell(state=end.word, reason=end.reason.splitlines()[0])
        self._write()

    def _go_on(self) -> None:
        while not self._over.wait(EVERY):
            self._write()

    def _write(self) -> None:
        with self._lock:
            beat = self._beat | {"time": time.time()}
        # neither a full disk nor a store out of reach may end the run here: saving says it better
        with contextlib.suppress(Exception):
            write(self._folder, beat)


def write_end(folder: str, word: str, reason: str) -> None:
    """Notes the end of a run whose heartbeat says of none, for a process that cannot write more.

    "failed" is none yet: a process often fails of what another one knows the word of.
    """
    beat = read_heartbeat(folder)
    if beat is not None and beat.get("state") not in ENDS.keys() - {"failed"}:
        with contextlib.suppress(Exception):
            write(folder, beat | {"state": word, "reason": reason, "time": time.time()})


def read_heartbeat(folder: str) -> Beat | None:
    """The last heartbeat of a run, None if there is none that can be read."""
    files, place = opened(folder)
    try:
        content = files.cat_file(f"{place}/{NAME}")
        beat = json.loads(content, parse_constant=lambda _: None)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return beat if has_form(beat, BEAT) else None


def write(folder: str, beat: Beat) -> None:
    """Writes a heartbeat as it is, whole or not at all where there is room."""
    content = dumps(beat).encode()
    try:
        put(f"{folder}/{NAME}", content)
    except OSError as error:
        # on a full disk the old file still has room for the last word
        if error.errno not in FULL:
            raise
        with open(opened(f"{folder}/{NAME}")[1], "r+b") as file:
            file.write(content)
            file.truncate()
