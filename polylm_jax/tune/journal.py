"""What was asked and answered, on disk before anything reads it: nothing is lost or paid for twice.

A journal is a file of lines, each synced when it is written:

    {"asked": ID, "place": [ROUND, NUMBER], "tokens": [IN, OUT]}   before a request is sent
    {"unpaid": ID}                   it was refused (429, 500 and so on), or never left
    {"answered": ID, "body": TEXT}   a whole answer, as it came

tokens: the most that it can take. A request that was asked and has neither of the others broke off:
it may have been paid for, and what it can have cost at most counts where money is limited. What
stands behind the last line's end was being written when the machine went down; it is cut off.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polylm_jax.errors import UserError
from polylm_jax.files import held
from polylm_jax.train.ends import RunEnded

# So many answers without a text in them, and a request counts as answered with nothing.
MOST_VOID = 8


@dataclass(frozen=True)
class Request:
    """One prompt. round 0 translates seeds; number: within language and round, from 0."""

    language: str
    round: int
    number: int
    prompt: str
    made_with: str  # model and sampling

    @property
    def id(self) -> str:
        """Of all that decides the answer."""
        parts = [self.language, self.round, self.number, self.prompt, self.made_with]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Reply:
    """An answer as it was read. tokens: (in, out), or None where the endpoint does not say."""

    text: str
    finished: bool
    tokens: tuple[int, int] | None


@dataclass
class Spent:
    """Tokens (in, out) of what was, or may have been, paid for.

    known: what the endpoint says of its answers. unsure: the most that answers of which it says
    nothing, and requests that are under way or broke off, can have taken.
    answers: how many came; silent: how many of them say nothing of their tokens; open: requests
    that are under way or broke off.
    """

    known: tuple[int, int] = (0, 0)
    unsure: tuple[int, int] = (0, 0)
    answers: int = 0
    silent: int = 0
    open: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            plus(self.known, other.known),
            plus(self.unsure, other.unsure),
            self.answers + other.answers,
            self.silent + other.silent,
            self.open + other.open,
        )


def plus(a: tuple[int, int], b: tuple[int, int], sign: int = 1) -> tuple[int, int]:
    """Tokens in and out, added one by one."""
    return a[0] + sign * b[0], a[1] + sign * b[1]


@dataclass
class _Entry:
    reply: Reply | None = None
    void: int = 0  # answers without a text
    open: list[tuple[int, int]] = field(default_factory=list)


def read_body(body: str) -> Reply | None:
    """What an OpenAI-style answer says; None where there is no text in it, or half of one."""
    try:
        answer = json.loads(body)
        if answer.get("error"):
            return _refused(answer["error"])
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        finish = choice.get("finish_reason")
        if not isinstance(text, str | None) or (text is None and finish is None):
            return None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    finished = finish in ("stop", "eos", "end_turn", None)
    return Reply(_whole(text or ""), finished, tokens_of(body))


def _refused(error: Any) -> Reply | None:
    """A content filter may refuse the prompt itself: an answer with nothing in it."""
    filtered = isinstance(error, dict) and error.get("code") == "content_filter"
    return Reply("", False, None) if filtered else None


def tokens_of(body: str) -> tuple[int, int] | None:
    """Tokens in and out that an answer says it took, or None."""
    try:
        usage = json.loads(body)["usage"]
        counts = usage["prompt_tokens"], usage["completion_tokens"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return counts if all(type(count) is int and count >= 0 for count in counts) else None


def _whole(text: str) -> str:
    """JSON can spell half a character, which no UTF-8 can."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Journal:
    """One language's. Its methods may be called from any thread."""

    def __init__(self, path: Path, writing: bool = True) -> None:
        """Opens or begins one; UserError names a line that is broken, unless it is the last.

        writing: False only reads, while another process may write.
        """
        self.path = path
        self._entries: dict[str, _Entry] = {}
        self._places: dict[tuple[int, int], str] = {}
        self._spent = Spent()
        self._lock = threading.Lock()
        way = os.O_RDWR | os.O_CREAT | os.O_APPEND if writing else os.O_RDONLY
        self._file = os.open(path, way | os.O_CLOEXEC, 0o644)
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if writing and whole < len(content):
            os.ftruncate(self._file, whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                os.close(self._file)
                raise UserError(
                    f"{path}:{number} is no line of a journal; put back what stood there, or take "
                    "it out: what it answered is then asked again."
                ) from None

    def close(self) -> None:
        """No more is written."""
        os.close(self._file)

    def asked(self, request: Request, most: tuple[int, int]) -> None:
        """Notes that a request is about to be sent. most: tokens in and out at most."""
        place = request.round, request.number
        self._write({"asked": request.id, "place": place, "tokens": most})

    def unpaid(self, request: Request) -> None:
        """Notes that it was refused."""
        self._write({"unpaid": request.id})

    def answered(self, request: Request, body: str) -> None:
        """Keeps an answer."""
        self._write({"answered": request.id, "body": body})

    def reply(self, request: Request) -> Reply | None:
        """What answers a request, or None where it is still to be asked."""
        entry = self._entries.get(request.id, _Entry())
        if entry.reply is None and entry.void >= MOST_VOID:
            return Reply("", False, None)
        return entry.reply

    def asked_before(self, request: Request) -> bool:
        """Whether another request was asked in its place."""
        return self._places.get((request.round, request.number), request.id) != request.id

    def spent(self) -> Spent:
        """What its requests have cost, in tokens."""
        return self._spent

    def _write(self, record: dict) -> None:
        data = (json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
        # held no longer than this: an answer that waits for another's sync dies with the process
        with self._lock:
            size = os.fstat(self._file).st_size
            try:
                while data:
                    data = data[os.write(self._file, data) :]
            except OSError:
                os.ftruncate(self._file, size)
                raise
        os.fsync(self._file)
        with self._lock:
            self._take(record)

    def _take(self, record: dict) -> None:
        if "asked" in record:
            most = (int(record["tokens"][0]), int(record["tokens"][1]))
            self._places[int(record["place"][0]), int(record["place"][1])] = record["asked"]
            self._entries.setdefault(record["asked"], _Entry()).open.append(most)
            self._spent += Spent(unsure=most, open=1)
        elif "unpaid" in record:
            most = self._entries[record["unpaid"]].open.pop()
            self._spent += Spent(unsure=plus((0, 0), most, -1), open=-1)
        else:
            entry = self._entries[record["answered"]]
            reply, tokens = read_body(record["body"]), tokens_of(record["body"])
            entry.reply = entry.reply or reply
            entry.void += reply is None
            most = entry.open.pop()
            # without its tokens it goes on counting as the most that it can have taken
            less = plus((0, 0), most, -1) if tokens else (0, 0)
            self._spent += Spent(tokens or (0, 0), less, 1, not tokens, -1)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder; a RunEnded where another process does."""

    def busy(process: str, host: str) -> RunEnded:
        return RunEnded(
            "busy",
            f"process {process} on {host} is at {folder}; wait for it, stop it or set "
            "self_instruct.folder to another folder.",
        )

    with held(folder, busy):
        yield
