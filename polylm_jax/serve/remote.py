"""Asking a server of OpenAI's chat completions, ours or another, and reading its stream."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from polylm_jax.errors import UserError
from polylm_jax.tune.writer import is_address

SILENCE = 600.0  # seconds without a byte after which a server counts as gone
LONGEST = 2**24  # bytes of a line, or of an answer without a stream

Messages = list[dict[str, str]]


class Refused(Exception):
    """A server's no. code: its word for programs."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


def check_url(url: str, name: str) -> str:
    """An endpoint's address up to and with /v1; UserError for another thing."""
    if not is_address(url):
        raise UserError(f"{name}={url} is no endpoint; write it like http://127.0.0.1:8000/v1.")
    return url.rstrip("/")


def first_model(url: str, key: str) -> str:
    """The name of the first model that a server lists."""
    with _asked("GET", f"{url}/models", key) as response:
        try:
            return str(json.loads(response.read(LONGEST))["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{url}/models lists no model; name one with --model.") from None


def stream(url: str, key: str, fields: dict[str, Any]) -> Iterator[str]:
    """The answer to a chat, in parts as they come. fields: of the request, but for the stream.

    Refused where the server says no; UserError where it cannot be reached.
    """
    said = fields | {"stream": True}
    with _asked("POST", f"{url}/chat/completions", key, said) as response:
        while line := response.readline(LONGEST):
            if not line.startswith(b"data:"):
                continue  # a sign of life, or the end of an event
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            try:
                told = json.loads(data)
                if told.get("error"):
                    raise _refused(told)
                choices = told["choices"]
                part = choices[0]["delta"].get("content") if choices else ""
            except (ValueError, LookupError, TypeError, AttributeError):
                raise Refused("The server said what is no part of a chat.") from None
            if isinstance(part, str) and part:
                yield part


def stream_of_what_fits(
    url: str, key: str, fields: dict[str, Any], messages: Messages
) -> Iterator[str]:
    """As `stream`; the oldest turns of the messages go until the rest fits the context."""
    while True:
        try:
            yield from stream(url, key, fields | {"messages": messages})
            return
        except Refused as refused:
            if refused.code != "context_length_exceeded" or len(messages) < 3:
                raise
            messages = messages[2:]


@contextmanager
def _asked(method: str, url: str, key: str, fields: Any = None) -> Iterator[HTTPResponse]:
    """The response to a request; closing it tells the server to leave the answer."""
    place = urlsplit(url)
    kind = HTTPSConnection if place.scheme == "https" else HTTPConnection
    connection = kind(place.netloc, timeout=SILENCE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if fields is not None:
        headers["Content-Type"] = "application/json"
    body = None if fields is None else json.dumps(fields)
    try:
        connection.request(method, place.path, body, headers)
        response = connection.getresponse()
        if response.status != 200:
            told = None
            with suppress(ValueError):
                told = json.loads(response.read(LONGEST))
            raise _refused(told, f"The server answered {response.status}.")
        yield response
    except (OSError, HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{url} cannot be reached: {reason}; see whether it serves.") from None
    finally:
        connection.close()


def _refused(told: Any, otherwise: str = "The server failed.") -> Refused:
    error = told.get("error") if isinstance(told, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return Refused(error["message"], str(error.get("code")))
    return Refused(error if isinstance(error, str) else otherwise)
