"""What Weights & Biases shows of a run. All its work is done in a thread that training never waits
for, and what fails there is said once and ends only the thread.

A run that goes on does so in the same run there, whose name is kept in FOLDER/wandb.json. There
nothing can be taken back: a step that was sent is not sent again when the run went back and made it
once more, which gives the same numbers unless settings were changed in between.
"""

import ast
import importlib.util
import json
import os
import queue
import secrets
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from polylm_jax.errors import UserError, first_line
from polylm_jax.files import opened, put
from polylm_jax.jsonl import dumps, has_form
from polylm_jax.train.log import LARGEST, alive
from polylm_jax.train.remarks import values_of

NOTE = "wandb.json"
FORM = {"id": str, "step": range(-1, LARGEST)}
MOST = 10_000  # records that wait to be sent, before it is given up
WAIT = 20.0  # seconds that the end of a run waits for what was not sent yet


def check_installed() -> None:
    """UserError where the package is missing."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            'train.trackers names "wandb", which is not installed here; `pip install wandb`, or '
            "take it out."
        )


class WeightsAndBiases:
    """A run there. say: what is told to the user. gin: the resolved configuration.

    What the package reads from the environment, such as WANDB_PROJECT and WANDB_MODE=offline,
    holds.
    """

    def __init__(self, folder: str, gin: str, say: Callable[[str], None]) -> None:
        self._folder, self._gin, self._say = folder, gin, say
        self._id, self._sent = _noted(folder)
        self._last = self._sent
        put(f"{folder}/{NOTE}", dumps({"id": self._id, "step": self._sent}).encode())
        self._waiting: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self._failed = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="wandb")
        self._thread.start()

    def start(self, step: int) -> None:
        """What was sent stays, so that only later steps are sent from here on."""
        self._sent = self._last

    def log(self, step: int, values: Sequence[tuple[str, float]]) -> None:
        """Hands numbers over to be sent; TimeoutError where that has come to a halt."""
        if step <= self._sent or self._failed.is_set():
            return
        if self._waiting.qsize() >= MOST:
            self._failed.set()
            raise TimeoutError(f"{MOST:,} records wait and none is taken")
        self._last = step
        self._waiting.put((step, dict(values)))

    def flush(self) -> None:
        """Nothing is to be done: it is sent as soon as it can be."""

    def close(self) -> None:
        """Waits, but not for ever, until all is sent."""
        self._waiting.put(None)
        self._thread.join(WAIT)
        if self._thread.is_alive():
            self._failed.set()
            self._say(
                f"wandb has not taken all in {WAIT:.0f} s and is not waited for; `wandb sync` "
                "sends the rest, and the log has all."
            )

    def _work(self) -> None:
        try:
            run = self._opened()
            self._say(f"wandb shows the run: {run.dir if run.offline else run.url}.")
            while (one := self._waiting.get()) is not None:
                step, values = one
                run.log(values, step=step)
            run.finish()
        except BaseException as error:  # the package ends processes, too
            if not self._failed.is_set():
                self._failed.set()
                self._say(failed("wandb", error))

    def _opened(self) -> Any:
        # else it asks a terminal for a key where there is none, and talks between our lines
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        files, place = opened(self._folder)
        local = isinstance(files, LocalFileSystem)
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "polylm_jax"),
            name=os.environ.get("WANDB_NAME", Path(place).name),
            id=self._id,
            resume="allow",
            dir=place if local else tempfile.mkdtemp(prefix="polylm-wandb-"),
            config={name: _value(text) for name, text in values_of(self._gin).items()},
            allow_val_change=True,
            settings=wandb.Settings(console="off", disable_git=True, init_timeout=30.0),
        )


def failed(name: str, error: BaseException) -> str:
    """The sentence on a tracker, by its name in gin, that gets no more."""
    reason = first_line(error).rstrip(".")
    return f"{name} gets no more ({reason}); the run goes on, and its log has all."


def _noted(folder: str) -> tuple[str, int]:
    """The run's name there, and the last step that was sent, or -1."""
    files, place = opened(folder)
    try:
        note = json.loads(files.cat_file(f"{place}/{NOTE}"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        note = None
    if not has_form(note, FORM):
        return secrets.token_hex(4), -1
    # what is sent was logged before, and the start that is to come has logged nothing
    return note["id"], max(note["step"], next(alive(folder), {"step": -1})["step"])


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
