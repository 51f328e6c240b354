"""Who writes: any endpoint that speaks OpenAI's chat completions, or a function of ours.

A writer is asked for many requests at once and hands over each answer as it comes, whole and
unread. An endpoint's refusals are of two kinds: what waiting mends (429, 5xx, a hang, a broken
connection) is tried again, and what it does not (a wrong key, an unknown model, no money left)
ends the run at once with one sentence.
"""

import email.utils
import http.client
import json
import math
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from socket import SHUT_RDWR
from typing import Annotated
from urllib.parse import urlsplit

from polylm_jax.console import visible
from polylm_jax.decode.sampling import TopP
from polylm_jax.errors import UserError
from polylm_jax.files import MaybePlace
from polylm_jax.ranges import OneOf, Range, check
from polylm_jax.train.ends import ENDS
from polylm_jax.tune.journal import Request, read_body, tokens_of

PROMPT_FRAME = 64  # tokens that a server's chat template may put around a prompt
LARGEST = 2**26  # bytes of an answer
NO_CAP = (0, "no cap")
PATIENT = (408, 409, 425, 429)  # and 5xx: the same request may go through later
# what says that no waiting brings money
NO_MONEY = re.compile(
    r"insufficient_quota|billing|exceeded your current quota|credit balance", re.I
)
# of a 429 its code alone: OpenAI's on too many requests a minute tell where to pay for more, and
# Gemini's say that the quota is exceeded
NO_MONEY_429 = re.compile(
    r"insufficient_(quota|balance|funds)|exceeded_current_quota|billing_(not_active|hard_limit)",
    re.I,
)
ANSWERS = (200, 201)
ADDRESS = re.compile(r"https?://([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?(/[!-~]*)?", re.ASCII)

Clock = Callable[[], float]


def is_address(url: str) -> bool:
    """Whether an endpoint may be there: by its form, its host and its port."""
    try:
        place = urlsplit(url)
        (place.hostname or "").encode("idna")  # as whoever connects will
        return bool(ADDRESS.fullmatch(url)) and place.port != 0
    except ValueError:
        return False


@dataclass(frozen=True)
class Writer:
    """Who writes the tasks, and how it is asked.

    url: an endpoint's, up to and with /v1, as vLLM, llama.cpp and hosted ones have it.
    run: folder of a run of ours that writes instead; url, model, key_variable and what follows
        new_tokens do not count then, but for batch.
    model: its name at the endpoint.
    key_variable: name of the environment variable that holds the key; empty for none. The key
        itself is never written anywhere.
    temperature, top_p, new_tokens: Alpaca's values; the paper's are not known.
    limit: what the endpoint calls the last; OpenAI's newer models want "max_completion_tokens".
    concurrency: requests under way at once.
    requests_a_minute, tokens_a_minute: caps. Tokens count as the most that a request
        can take until it is answered.
    timeout: seconds for one request from its first byte to its last.
    tries: how often a request is tried before the run ends.
    first_wait, longest_wait: seconds before it is tried again, doubled each time with jitter; the
        longest also limits what an endpoint asks for with Retry-After.
    usd_in, usd_out: US dollars for a million tokens; None where they are not known.
    batch: prompts that a run of ours continues at once.
    """

    url: str = "http://localhost:8000/v1"
    run: MaybePlace = ""
    model: str = ""
    key_variable: str = ""
    temperature: Annotated[float, Range(0, 2)] = 1.0
    top_p: TopP = 1.0
    new_tokens: Annotated[int, Range(1, 10**6)] = 3072
    limit: Annotated[str, OneOf("max_tokens", "max_completion_tokens")] = "max_tokens"
    concurrency: Annotated[int, Range(1, 1024)] = 8
    requests_a_minute: Annotated[int, Range(1, also=NO_CAP)] = 0
    tokens_a_minute: Annotated[int, Range(1, 10**12, also=NO_CAP)] = 0
    timeout: Annotated[float, Range(1e-3, 86_400)] = 300.0
    tries: Annotated[int, Range(1, 1000)] = 10
    first_wait: Annotated[float, Range(0, 3600)] = 1.0
    longest_wait: Annotated[float, Range(0, 86_400)] = 120.0
    usd_in: Annotated[float, Range(0, 10**6)] | None = None
    usd_out: Annotated[float, Range(0, 10**6)] | None = None
    batch: Annotated[int, Range(1, 1024)] = 8

    def __post_init__(self) -> None:
        check(self, "writer")
        # what may be a key is not shown
        if self.key_variable and not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", self.key_variable):
            raise UserError(
                "writer.key_variable is no name of an environment variable (capitals, digits and "
                "_); put the key in one and give its name here."
            )
        if re.search(r"@|\?", self.url):
            raise UserError(
                "writer.url holds a name, a password or a query; put the key in an environment "
                "variable and name that in writer.key_variable."
            )
        if not is_address(self.url):
            raise UserError(
                f'writer.url = "{self.url}" is no address of an endpoint; write it like '
                "http://localhost:8000/v1."
            )

    @property
    def made_with(self) -> str:
        """All of it that decides an answer."""
        return json.dumps([self.run or self.model, self.temperature, self.top_p, self.new_tokens])

    def usd(self, tokens: tuple[int, int]) -> float | None:
        """The price of tokens in and out, or None where prices are not known."""
        if self.usd_in is None or self.usd_out is None:
            return None
        return (tokens[0] * self.usd_in + tokens[1] * self.usd_out) / 1e6

    def most(self, prompt: str) -> tuple[int, int]:
        """Tokens in and out that a request takes at most: no token is shorter than a byte."""
        return len(prompt.encode()) + PROMPT_FRAME, self.new_tokens


@dataclass(frozen=True)
class Desk:
    """Where a writer leaves its work; its functions may be called from any thread.

    asked: before a request is sent; an exception from it (no money is left) ends the run.
    unpaid: the endpoint refused it. broke_off: it brought nothing, and may have been paid for.
    answered: takes an answer, whole and unread.
    say: shows a person why it waits. stop: set when no more may be sent.
    """

    asked: Callable[[Request], None]
    unpaid: Callable[[Request], None]
    broke_off: Callable[[Request], None]
    answered: Callable[[Request, str], None]
    say: Callable[[str], None]
    stop: threading.Event


class Stopped(Exception):
    """Nothing more is sent."""


class _Refused(Exception):
    """An attempt failed and may be made again. wait: seconds that the endpoint asks for. paid:
    whether it may have cost something."""

    def __init__(self, why: str, paid: bool, wait: float | None = None) -> None:
        super().__init__(why)
        self.paid, self.wait = paid, wait


class Pace:
    """When the next request may leave: evenly, under both caps, and not while all must wait."""

    def __init__(self, requests: int, tokens: int, clock: Clock = time.monotonic) -> None:
        self._seconds = (60 / requests if requests else 0.0, 60 / tokens if tokens else 0.0)
        self._clock = clock
        self._lock = threading.Lock()
        self._next = [-math.inf, -math.inf]
        self._pause = -math.inf

    def delay(self, tokens: int) -> float:
        """Takes the next place and returns the seconds until it comes."""
        with self._lock:
            now = self._clock()
            start = max(now, self._pause, *self._next)
            self._next = [start + self._seconds[0], start + self._seconds[1] * tokens]
            return start - now

    def used_less(self, tokens: int) -> None:
        """Gives back tokens that a request was counted with and did not take."""
        with self._lock:
            self._next[1] -= self._seconds[1] * tokens

    def pause(self, seconds: float) -> None:
        """Nothing leaves for so long."""
        with self._lock:
            self._pause = max(self._pause, self._clock() + seconds)


class Endpoint:
    """An OpenAI-style endpoint. UserError where its key is not to be had.

    seed: of the jitter.
    """

    def __init__(self, settings: Writer, seed: int) -> None:
        self._settings, self._seed = settings, seed
        self._url = urlsplit(settings.url.rstrip("/") + "/chat/completions")
        self._key = key_of(settings.key_variable)
        self._pace = Pace(settings.requests_a_minute, settings.tokens_a_minute)

    def write(self, requests: Sequence[Request], desk: Desk) -> None:
        """Has all requests answered, some at a time; Stopped, or the error of one that ended it.

        Those under way are waited for, since they are paid, unless it is interrupted again.
        """
        with ThreadPoolExecutor(self._settings.concurrency) as threads:
            futures = [threads.submit(self._answer, request, desk) for request in requests]
            try:
                while wait(futures, 1).not_done:
                    if desk.stop.is_set():
                        desk.say("Waiting for the requests under way, which are paid for.")
            except KeyboardInterrupt:
                # the second one: what is under way is given up, and threads cannot be ended alone
                os._exit(ENDS["stopped"].status)
        errors = [error for future in futures if (error := future.exception())]
        for error in sorted(errors, key=lambda error: isinstance(error, Stopped))[:1]:
            raise error

    def _answer(self, request: Request, desk: Desk) -> None:
        try:
            self._try(request, desk)
        except BaseException:
            desk.stop.set()  # before this thread takes the next request
            raise

    def _try(self, request: Request, desk: Desk) -> None:
        jitter = random.Random(f"{self._seed} {request.id}")
        most = sum(self._settings.most(request.prompt))
        why = ""
        for attempt in range(self._settings.tries):
            self._sleep(self._pace.delay(most), desk)
            desk.asked(request)
            try:
                body = self._post(request)
            except _Refused as refused:
                why = str(refused)
                if refused.paid:
                    desk.broke_off(request)
                else:
                    desk.unpaid(request)
                    self._pace.used_less(most)
                pause = self._pause(attempt, refused.wait, jitter)
            except UserError:
                desk.unpaid(request)
                raise
            else:
                desk.answered(request, body)
                self._pace.used_less(most - sum(tokens_of(body) or (most,)))
                if read_body(body) is not None:
                    return
                why, pause = "its answer holds no text", self._pause(attempt, None, jitter)
            if attempt + 1 < self._settings.tries:
                desk.say(f"{why}; trying again in {pause:.3g} s ({attempt + 1} failed).")
                self._sleep(pause, desk)
        raise UserError(
            f"request {request.number + 1} of round {request.round} in {request.language} failed "
            f"{self._settings.tries} times, at last because {why}; nothing is lost: see to the "
            "endpoint and run the same command again."
        )

    def _pause(self, attempt: int, asked: float | None, jitter: random.Random) -> float:
        """Seconds to wait; what the endpoint asks for holds for all requests."""
        settings = self._settings
        if asked is None:
            doubled = settings.first_wait * 2 ** min(attempt, 32)
            return min(doubled, settings.longest_wait) * jitter.uniform(0.5, 1)
        pause = min(asked, settings.longest_wait)
        self._pace.pause(pause)
        # not all at the same instant
        return pause + settings.first_wait * jitter.uniform(0, 0.5)

    def _sleep(self, seconds: float, desk: Desk) -> None:
        if desk.stop.wait(seconds) if seconds > 0 else desk.stop.is_set():
            raise Stopped

    def _post(self, request: Request) -> str:
        """One attempt: the answer's text, or _Refused, or a UserError that ends the run."""
        settings = self._settings
        content = {
            "model": settings.model,
            "messages": [{"role": "user", "content": request.prompt}],
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            settings.limit: settings.new_tokens,
        }
        # an endpoint that knows this header never bills a request again
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Connection": "close",
            "Idempotency-Key": request.id,
        }
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        sent = False
        try:
            with _connection(self._url.scheme, self._url.netloc, settings.timeout) as connection:
                sent = True
                connection.request("POST", self._url.path, json.dumps(content), headers)
                answer = connection.getresponse()
                body = answer.read(LARGEST + 1)
        except ssl.SSLCertVerificationError as error:
            raise UserError(
                f"{settings.url} has no certificate that can be trusted ({error.verify_message}); "
                "mend writer.url or the machine's certificates."
            ) from None
        except (OSError, HTTPException) as error:
            raise _Refused(self._broken(error), paid=sent) from None
        if len(body) > LARGEST:
            raise _Refused(f"its answer has over {LARGEST:,} bytes", paid=True)
        return self._accepted(answer, self._without_key(body.decode("utf-8", "replace")))

    def _accepted(self, answer: http.client.HTTPResponse, body: str) -> str:
        status = answer.status
        if status in ANSWERS or (400 <= status < 500 and read_body(body) is not None):
            return body  # the latter: a content filter that refuses the prompt
        said = _said(body)
        no_money = NO_MONEY_429 if status == 429 else NO_MONEY
        if status == 402 or (400 <= status < 500 and no_money.search(body)):
            raise UserError(
                f"{self._settings.url} says that the account has no money left ({said}); nothing "
                "is lost: run the same command again when it has."
            )
        if status in PATIENT or status >= 500:
            wait = retry_after(answer.headers.get("Retry-After"), time.time())
            raise _Refused(f"it answered {status}", paid=False, wait=wait)
        mend = {
            401: "see to the key in the variable that writer.key_variable names",
            403: "see to what the key may do, and to writer.model",
            404: "mend writer.url, which ends in /v1, or writer.model",
        }.get(status, "mend what it says")
        raise UserError(f"{self._settings.url} answered {status} ({said}); {mend}.")

    def _broken(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"no answer came within {self._settings.timeout:g} s"
        if isinstance(error, ConnectionRefusedError):
            return f"nothing listens at {self._settings.url}"
        return f"the connection broke ({self._without_key(str(error) or type(error).__name__)})"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def key_of(variable: str, setting: str = "writer.key_variable", needed: bool = True) -> str:
    """The key in an environment variable, or "" where no variable is named.

    setting: which names it. UserError where it holds none that a header can carry, and where it is
    needed and not set.
    """
    key = os.environ.get(variable, "").strip() if variable else ""
    if not key:
        if variable and needed:
            raise UserError(
                f"the environment variable {variable}, which {setting} names, is not set; "
                f"export {variable}=… with the key and run the same command again."
            )
        return ""
    if not re.fullmatch(r"[!-~]{1,4096}", key):
        raise UserError(
            f"what the environment variable {variable} holds is no key: it has spaces or letters "
            "that no header can carry; set it anew."
        )
    return key


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, 0 or more; None where it says nothing.

    now: seconds since 1970, for a header that is a date.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return None if math.isnan(seconds) else max(0.0, seconds)


@contextmanager
def _connection(scheme: str, host: str, seconds: float) -> Iterator[HTTPConnection]:
    """An open connection that ends after so many seconds, whatever the other side does."""
    kind = HTTPSConnection if scheme == "https" else HTTPConnection
    connection = kind(host, timeout=seconds)
    late = threading.Event()
    connection.connect()
    socket = connection.sock  # the connection lets go of it when the answer begins

    def end() -> None:
        late.set()
        with suppress(OSError):
            socket.shutdown(SHUT_RDWR)

    watch = threading.Timer(seconds, end)
    watch.daemon = True
    watch.start()
    try:
        yield connection
    except (OSError, HTTPException, ValueError):
        if not late.is_set():
            raise
    finally:
        watch.cancel()
        connection.close()
    # what was cut off here looks whole where its length was not told
    if late.is_set():
        raise TimeoutError


def _said(body: str) -> str:
    """What a refusal says of itself, on one line."""
    try:
        error = json.loads(body)["error"]
        text = f"{error.get('code') or ''} {error['message']}" if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError, AttributeError):
        text = body
    text = visible(" ".join(str(text).split()))
    return text[:200] or "it says no more"
