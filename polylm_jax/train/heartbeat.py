"""The heartbeat file: what a run is doing, rewritten while it does it, for others to read."""

import contextlib
import json
import os
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

from fsspec.core import url_to_fs

from polylm_jax.files import put
from polylm_jax.jsonl import dumps

NAME = "heartbeat.json"
EVERY = 10  # seconds between two heartbeats
Beat = dict[str, Any]


class Heartbeat:
    """Writes FOLDER/heartbeat.json every EVERY seconds and when the block ends.

    It starts with the first news. folder: local, or a path that fsspec knows, such as
    gs://bucket/run. active: whether this process writes; one of a run does.
    The file says time (of the beat), moved (of the last news), host, pid, state ("running", or
    what the run was told last, or "failed" with a reason) and all that `tell` was given.
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
            reason = str(error).strip() or type(error).__name__
            self.tell(state="failed", reason=reason.splitlines()[0])
        self._write()

    def _go_on(self) -> None:
        while not self._over.wait(EVERY):
            self._write()

    def _write(self) -> None:
        with self._lock:
            content = dumps(self._beat | {"time": time.time()}).encode()
        # neither a full disk nor a store out of reach may end the run here: saving says it better
        with contextlib.suppress(Exception):
            put(f"{self._folder}/{NAME}", content)


def read_heartbeat(folder: str) -> Beat | None:
    """The last heartbeat of a run, None if there is none."""
    files, place = url_to_fs(folder)
    try:
        return json.loads(files.cat_file(f"{place}/{NAME}"))
    except FileNotFoundError:
        return None
