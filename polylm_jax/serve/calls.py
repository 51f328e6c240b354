"""What the engine is asked and what it tells: the one language between it and whoever serves."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

MOST_LIKELIEST = 20  # of the likeliest tokens that are told with one


class Busy(Exception):
    """More calls wait than may, or the engine takes no new ones. seconds: when to ask again."""

    def __init__(self, message: str, seconds: int):
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True)
class Call:
    """One prompt and how it is continued.

    prompt: ids, at least one; with new_tokens they fit into the engine's context.
    new_tokens: most that are added; 0 only reads the prompt.
    temperature, top_k, top_p, repetition_penalty: as in `Sampling`; presence_penalty and
        frequency_penalty are OpenAI's, taken off the scores of tokens said in the answer.
    seed: with the prompt decides the draw; whoever calls draws one where none was given.
    likeliest: None, or how many of the likeliest tokens, up to MOST_LIKELIEST, are told with each
        token's log-probability.
    read: whether the log-probabilities of the prompt's own tokens are told, too.
    """

    prompt: tuple[int, ...]
    new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    likeliest: int | None = None
    read: bool = False


@dataclass(frozen=True)
class Said:
    """A token and how likely it was.

    logprob: natural, of the scores as they are without temperature and penalties; nan where it
        was not asked for, and for a prompt's first token.
    likeliest: (id, logprob) of the likeliest, best first.
    """

    token: int
    logprob: float = float("nan")
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class News:
    """What has become of a call since the last news of it.

    new: tokens that were added, without </s>. prompt: the prompt's own, once, where asked for.
    reused, waited: tokens of the prompt that were in a slot already, and seconds until the call had
        a slot of its own; told with the first news, else 0 and None.
    ended: "" while it goes on; then once, as the last news, "stop" (</s>), "length", "cancelled"
        or "failed". fault: one sentence where it failed.
    """

    new: tuple[Said, ...] = ()
    prompt: tuple[Said, ...] = ()
    reused: int = 0
    waited: float | None = None
    ended: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Counts:
    """How an engine stands, and what it has done since it began.

    compiled: programs that this process has compiled since then, those of the start among them.
    room: tokens that all bursts had room for; used: those that belonged to a text.
    """

    slots: int
    running: int
    waiting: int
    prompt_tokens: int
    new_tokens: int
    reused_tokens: int
    cancelled: int
    failed: int
    compiled: int
    room: int = 0
    used: int = 0


class Engine(Protocol):
    """What whoever serves sees of an engine. All may be called from any thread.

    broken: set when the engine has failed by itself, for good: every call has been told so, and no
        more are taken. fault: then, one sentence of why.
    """

    context: int
    slots: int
    broken: threading.Event
    fault: str

    def submit(self, call: Call, tell: Callable[[News], None]) -> int:
        """Queues a call; its number. `tell` is called from the engine's thread and must be quick.

        Every call that was taken gets exactly one `ended`. A `tell` that raises an exception is not
        called again, as if the call was cancelled. Raises Busy.
        """

    def cancel(self, number: int) -> None:
        """Leaves a call where it is; nothing if it has ended. Its end is told as "cancelled"."""

    def counts(self) -> Counts: ...

    def close(self, seconds: float) -> None:
        """Takes no more calls, finishes what runs within so many seconds, then ends the rest."""
