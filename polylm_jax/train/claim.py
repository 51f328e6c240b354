"""One writer a folder: a second run that would train into it is refused, and nothing is touched.

On a disk a lock decides. An object store has none, and a disk that is shared over a network may not
show it to other machines: there the heartbeat decides, which moves as long as its writer lives.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from polylm_jax.console import format_duration
from polylm_jax.files import held, opened
from polylm_jax.parallel import together
from polylm_jax.train import heartbeat
from polylm_jax.train.ends import ENDS, RunEnded

SETTLE = 2.0  # seconds after which of two that begin at once all but the last writer give way


@contextlib.contextmanager
def claimed(folder: str, say: Callable[[str], None]) -> Iterator[None]:
    """Holds a run's folder for the length of the block; process 0 does it for all.

    say: where a wait is announced. RunEnded("busy") in every process where another run has it.
    """
    with contextlib.ExitStack() as taken:
        refusal = ""
        if together.process() == 0:
            refusal = _take(folder, say, taken)
        if refusal := together.verdict("folder", refusal, lambda told: told[0]):
            raise RunEnded("busy", refusal)
        yield


def _take(folder: str, say: Callable[[str], None], taken: contextlib.ExitStack) -> str:
    """Takes the folder until `taken` closes; returns "", or why it cannot be had."""
    files, place = opened(folder)
    local = isinstance(files, LocalFileSystem)

    def busy(process: str, host: str) -> RunEnded:
        return RunEnded("busy", _refusal(folder, _holder(folder, process, host)))

    if local:
        try:
            local = taken.enter_context(held(Path(place), busy))
        except RunEnded as refused:
            return str(refused)
    beat = heartbeat.read_heartbeat(folder)
    # on one machine the lock has said that nobody writes
    if (
        beat
        and beat.get("state") not in ENDS
        and not (local and beat.get("host") == socket.gethostname())
    ):
        say(
            f"{folder} has the heartbeat of {_who(beat)}; looking for {_watch():.0f} s whether it "
            "moves."
        )
        if moved := _moved(folder, beat):
            return _refusal(folder, moved)
    return "" if local else _last_to_write(folder, beat)


def _holder(folder: str, process: str, host: str) -> heartbeat.Beat:
    """The heartbeat of a lock's holder; without its age where what is there is of another run."""
    beat = heartbeat.read_heartbeat(folder) or {}
    own = (str(beat.get("pid")), beat.get("host")) == (process, host)
    return beat if own else {"pid": process, "host": host}


def _watch() -> float:
    return 2.5 * heartbeat.EVERY


def _moved(folder: str, beat: heartbeat.Beat) -> heartbeat.Beat | None:
    """The next heartbeat, None if none comes, or one that says that its run has ended."""
    end = time.monotonic() + _watch()
    while time.monotonic() < end:
        time.sleep(heartbeat.EVERY / 10)
        now = heartbeat.read_heartbeat(folder)
        if now is not None and now != beat:
            return now if now.get("state") not in ENDS else None
    return None


def _last_to_write(folder: str, former: heartbeat.Beat | None) -> str:
    """Writes a first heartbeat where there is no lock; "" if it is still there a moment later."""
    mine = (former or {}) | {
        **{"state": "running", "host": socket.gethostname(), "pid": os.getpid()},
        **{"time": time.time(), "moved": time.time()},
    }
    heartbeat.write(folder, mine)
    time.sleep(SETTLE)
    now = heartbeat.read_heartbeat(folder)
    same = now is not None and all(now.get(name) == mine[name] for name in ("host", "pid", "time"))
    return "" if same else _refusal(folder, now)


def _refusal(folder: str, beat: heartbeat.Beat | None) -> str:
    return (
        f"{folder} is being written by {_who(beat or {})}; wait for that run or stop it, or choose "
        "another train.folder. Nothing was touched."
    )


def _who(beat: heartbeat.Beat) -> str:
    """The process that a heartbeat is of, and the heartbeat's age."""
    age = "which has no heartbeat yet"
    if "time" in beat:
        age = f"whose heartbeat is {format_duration(max(time.time() - beat['time'], 0))} old"
    return f"process {beat.get('pid')} on {beat.get('host')}, {age}"
