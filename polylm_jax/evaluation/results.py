"""Answers on disk batch by batch, so that whoever is killed goes on where it was.

`answers.jsonl` is only ever added to: a line for each batch, {key: answer}. A key is of the model
(run, step, tokenizer, dtype) and of the ids that were asked, so that one file serves all tasks
and nothing is asked twice; what a killed process wrote half is dropped.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from polylm_jax.errors import UserError
from polylm_jax.files import lock
from polylm_jax.parallel import together

ANSWERS = "answers.jsonl"


class Store:
    """The answers of one model. identity: what makes it another model."""

    def __init__(self, file: BinaryIO, identity: dict[str, Any]) -> None:
        self._file = file
        self._salt = json.dumps(identity, sort_keys=True).encode()
        self._answers: dict[str, Any] = {}
        end = 0
        for line in file:
            if not line.endswith(b"\n"):  # it was killed while it wrote this one
                break
            end += len(line)
            try:
                answers = json.loads(line)
            except ValueError:  # damaged: what it answered is asked again, what follows is not
                continue
            for key, answer in answers.items() if isinstance(answers, dict) else ():
                self._answers.setdefault(key, answer)  # a figure never changes
        file.seek(end)
        file.truncate()

    def key(self, kind: str, *ids: np.ndarray) -> str:
        """The name of a question. ids: int32 arrays that are all of it."""
        parts = [self._salt, kind.encode()]
        parts += [part for x in ids for part in (len(x).to_bytes(8, "big"), x.tobytes())]
        return sha256(b"".join(parts)).hexdigest()[:32]

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Any:
        return self._answers[key]

    def add(self, answers: dict[str, Any]) -> None:
        """Keeps a batch's answers, values of JSON; all of them are on disk, or none."""
        self._file.write((json.dumps(answers, ensure_ascii=False) + "\n").encode())
        self._file.flush()
        for key, answer in answers.items():
            self._answers.setdefault(key, answer)


@contextlib.contextmanager
def store(folder: Path, identity: dict[str, Any]) -> Iterator[Store]:
    """The answers in a folder, which is made, held so that no other process adds to them.

    Of several processes that ask together only the first has the folder; what the others keep is
    in memory.
    """
    with contextlib.ExitStack() as held:
        refusal = ""
        file: BinaryIO = BytesIO()
        if together.process() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            number = os.open(folder / ANSWERS, os.O_RDWR | os.O_CREAT, 0o666)
            file = held.enter_context(os.fdopen(number, "r+b"))
            try:
                lock(file)
            except BlockingIOError:
                refusal = f"another process is evaluating into {folder}; wait for it."
        if refusal := together.verdict("evaluation/store", refusal, lambda told: told[0]):
            raise UserError(refusal)
        yield Store(file, identity)
