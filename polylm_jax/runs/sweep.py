"""Sweeps: every combination of some settings' values as a run of its own, one after another.

Each run is a process, so that neither its failure nor its memory is another's.
"""

import contextlib
import hashlib
import itertools
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fsspec.implementations.local import LocalFileSystem

from polylm_jax.errors import UserError
from polylm_jax.files import held, opened
from polylm_jax.train.ends import ENDS, End, RunEnded

FAILURES = 3  # after which a run that fails is left, as run.sh leaves it
PAUSE = 10.0  # seconds before it is tried again
LONGEST = 60  # letters of a value in a name; a file's name may have 255 bytes in all
LOCK = "sweep.lock"
CLOSING = {"(": ")", "[": "]", "{": "}"}


class Over(NamedTuple):
    """A setting, or a macro, and the values that it takes, each as gin has it."""

    setting: str
    values: tuple[str, ...]


class Member(NamedTuple):
    """A run of a sweep. name: of its folder. values: "setting=value", one of each Over."""

    name: str
    values: tuple[str, ...]


def read_over(text: str) -> Over:
    """--over's SETTING=VALUE,VALUE: a comma in brackets or quotes belongs to its value."""
    setting, equals, values = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", setting.strip()):
        raise UserError(f"--over={text}: write --over='SETTING=VALUE,VALUE'.")
    if setting.strip() == "train.folder":
        raise UserError("--over=train.folder: each run gets a folder of its own, in that of --out.")
    found = tuple(value.strip() for value in _split(values, text))
    for value in found:
        if not value:
            raise UserError(f"--over={text} has an empty value; take out a comma, or write ''.")
        if found.count(value) > 1:
            raise UserError(f"--over={text} has the value {value} twice; take one out.")
    return Over(setting.strip(), found)


def _split(values: str, text: str) -> Iterator[str]:
    start, quote, open_ = 0, "", list[str]()
    for at, letter in enumerate(values):
        if quote:
            quote = "" if letter == quote and values[at - 1] != "\\" else quote
        elif letter in "'\"" and (open_ or not values[start:at].strip()):
            quote = letter
        elif letter in CLOSING:
            open_.append(CLOSING[letter])
        elif letter in CLOSING.values():
            if not open_ or open_.pop() != letter:
                raise UserError(f'--over={text} closes a "{letter}" that is not open; mend that.')
        elif letter == "," and not open_:
            yield values[start:at]
            start = at + 1
    if quote or open_:
        raise UserError(f"--over={text} does not close {quote or open_[-1]}; mend that.")
    yield values[start:]


def members(overs: Sequence[Over]) -> list[Member]:
    """The product of all values, the last Over's the fastest, with names that tell them apart."""
    settings = [over.setting for over in overs]
    for setting in settings:
        if settings.count(setting) > 1:
            raise UserError(f"--over={setting} is given twice; put all its values in one.")
    last = [setting.rpartition(".")[2] for setting in settings]
    labels = [
        short if last.count(short) == 1 else setting
        for short, setting in zip(last, settings, strict=True)
    ]
    named = [
        [(f"{label}={word}", f"{over.setting}={value}") for value, word in _words(over.values)]
        for label, over in zip(labels, overs, strict=True)
    ]
    found = [
        Member(",".join(name for name, _ in chosen), tuple(value for _, value in chosen))
        for chosen in itertools.product(*named)
    ]
    if longest := max((one.name for one in found if len(one.name.encode()) > 240), default=""):
        raise UserError(f"a folder cannot be called {longest}, which is too long; sweep over less.")
    return found


def _words(values: Sequence[str]) -> list[tuple[str, str]]:
    """Each value with what it is called in a folder's name."""
    plain = [re.sub(r"[^\w.+-]+", " ", value).strip().replace(" ", "-") for value in values]
    return [
        (value, word)
        if plain.count(word) == 1 and 0 < len(word) <= LONGEST
        else (value, f"{word[: LONGEST - 9]}-{hashlib.sha256(value.encode()).hexdigest()[:8]}")
        for value, word in zip(values, plain, strict=True)
    ]


@contextlib.contextmanager
def alone(folder: str) -> Iterator[None]:
    """Holds a sweep's folder; RunEnded("busy") where another sweep does.

    Only on a disk: elsewhere each run's own claim keeps two from one folder.
    """
    files, place = opened(folder)
    if not isinstance(files, LocalFileSystem):
        yield
        return

    def busy(process: str, host: str) -> RunEnded:
        return RunEnded(
            "busy",
            f"another sweep, process {process} on {host}, is at work in {folder}; wait for it or "
            "stop it, or give another --out. Nothing was touched.",
        )

    with held(Path(place), busy, LOCK):
        yield


def see_through(
    command: Sequence[str], stopped: threading.Event, say: Callable[[str], None]
) -> End:
    """Starts a run as often as the table of ends has it, and returns how it ended at last.

    stopped: set where the sweep is asked to stop; the run under way then saves and ends.
    """
    failures = 0
    while True:
        status = _follow(command, stopped)
        end = _end_of(status)
        failures += end.action == "retry"
        if stopped.is_set() or end.action in ("done", "person") or failures == FAILURES:
            return end
        say(f"It ended with status {status} ({end.word}: {end.meaning}); it is started again.")
        if end.action == "retry":
            stopped.wait(PAUSE)


def _follow(command: Sequence[str], stopped: threading.Event) -> int:
    """The exit status of a process, as a shell has it. It is told once if `stopped` is set."""
    # a session of its own: Ctrl-C reaches it through us, once
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    told = False
    try:
        while process.poll() is None:
            if stopped.is_set() and not told:
                process.send_signal(signal.SIGTERM)
                told = True
            time.sleep(0.1)
    except BaseException:
        process.terminate()
        raise
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _end_of(status: int) -> End:
    return next((end for end in ENDS.values() if end.status == status), ENDS["failed"])


def gravest(ends: Sequence[End]) -> End:
    """Of several ends the one to act on, as ends.sh has it."""
    order = ("person", "retry", "again", "done")
    return min(ends, key=lambda end: order.index(end.action))
