"""WARC archives, of crawled pages (.warc) and of their text (.wet), read on past broken records.

A record that is cut, or whose Content-Length is not its length, is told, and reading goes on at
the next line that begins a record: in a .gz at the next member, where a record should begin.
Format: ISO 28500, WARC 1.0 and 1.1.
"""

import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from typing import NamedTuple

from polylm_jax.data.clean import html
from polylm_jax.data.compressed import Content, Damaged
from polylm_jax.data.documents import not_utf8

LONGEST = 2**26  # bytes of a record that is read

_BEGIN = b"WARC/1."
_LINE = 2**16  # bytes of a header's line
_LINES = 1000  # of a header
_HTML = ("text/html", "application/xhtml+xml")
_BLANK = (b"\r\n", b"\n")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")
_GZIP = b"\x1f\x8b"
_NO_TEXT = re.compile(rb"[\0-\x08\x0e-\x1f]")
_END_OF_HEADERS = re.compile(rb"\r?\n\r?\n")


class Page(NamedTuple):
    """A page's text, or the fault that hinders its reading. at: the record's first byte."""

    at: int
    url: str
    text: str
    fault: str = ""


class _Wrong(Exception):
    """What is wrong with a record."""


def pages(content: Content) -> Iterator[Page]:
    """The pages of an archive: text of WET records, and the main text of HTML and plain text of
    responses with status 200. Other records are none."""
    lost = False
    while True:
        at, url = content.at, ""
        try:
            if lost:
                _to_record(content)
            lost = True
            if _is_over(content):
                return
            at = content.at
            headers = _headers(content)
            url = headers.get("warc-target-uri", "").strip("<>")
            body = _body(content, headers)
            lost = False
        except (Damaged, _Wrong) as error:
            yield Page(at, url, "", str(error))
            continue
        try:
            text = _text(headers, body)
        except (html.Unreadable, _Wrong) as error:
            yield Page(at, url, "", str(error))
            continue
        if text is not None:
            yield Page(at, url, text)


def _is_over(content: Content) -> bool:
    """Whether nothing follows but the ends of lines, which are passed."""
    while content.onward():
        line = content.readline(2)
        if line not in _BLANK:
            content.unread(line)
            return False
    return True


def _to_record(content: Content) -> None:
    """Moves on to the next line that begins a record, or to the end."""
    while content.onward():
        line = content.readline(_LINE)
        if line.startswith(_BEGIN):
            content.unread(line)
            return


def _headers(content: Content) -> dict[str, str]:
    """The record's headers, by names in small letters."""
    if not content.readline(_LINE).startswith(_BEGIN):
        raise _Wrong("begins no WARC record")
    headers: dict[str, str] = {}
    for _ in range(_LINES):
        line = content.readline(_LINE)
        if line in _BLANK:
            return headers
        name, colon, value = line.decode("utf-8", "replace").partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    raise _Wrong("has a header without end")


def _body(content: Content, headers: dict[str, str]) -> bytes:
    """What a record holds, if it ends where its Content-Length says."""
    said = headers.get("content-length", "")
    if not (said.isascii() and said.isdigit()):
        raise _Wrong("has no Content-Length that is a number")
    if int(said) > LONGEST:
        raise _Wrong(f"says that it has {int(said):,} bytes, more than {LONGEST:,}")
    body = content.read(int(said))
    if len(body) < int(said):
        content.unread(body)
        raise _Wrong(f"says that it has {int(said):,} bytes and has {len(body):,}")
    after = content.read(4 + len(_BEGIN))
    if after:
        content.unread(after)
    rest = after.lstrip(b"\r\n")
    if rest and not _BEGIN.startswith(rest) and not rest.startswith(_BEGIN):
        content.unread(body)
        raise _Wrong(f"goes on after the {int(said):,} bytes that it says it has")
    return body


def _text(headers: dict[str, str], body: bytes) -> str | None:
    """The text of a record; None if it is no page."""
    kind, what = headers.get("warc-type"), headers.get("content-type", "").lower()
    if kind == "conversion":
        try:
            return body.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _Wrong(not_utf8(error)) from None
    if kind == "response" and what.startswith("application/http"):
        return _of_response(body)
    if kind == "resource":
        return _of_kind(body, what)
    return None


def _of_response(body: bytes) -> str | None:
    end = _END_OF_HEADERS.search(body)
    head, content = (body[: end.start()], body[end.end() :]) if end else (body, b"")
    status, *lines = head.decode("latin-1").splitlines() or [""]
    if status.split(" ")[1:2] != ["200"]:
        return None
    headers = {
        name.strip().lower(): value.strip().lower()
        for name, _, value in (line.partition(":") for line in lines)
    }
    if "chunked" in headers.get("transfer-encoding", ""):
        content = _unchunked(content)
    return _of_kind(
        _unpacked(content, headers.get("content-encoding", "")), headers.get("content-type", "")
    )


def _of_kind(content: bytes, kind: str) -> str | None:
    if kind.startswith(_HTML):
        return html.extract(content, kind)
    if kind.startswith("text/plain"):
        return html.decoded(content, kind)
    return None


def _unchunked(content: bytes) -> bytes:
    """A body that was sent in chunks; as it is where it is not chunked, as crawlers may undo it."""
    parts: list[bytes] = []
    at = 0
    while match := _CHUNK.match(content, at):
        size = int(match[1], 16)
        if not size:
            return b"".join(parts)
        end = match.end() + size
        if content[end : end + 2] not in (b"\r\n", b"\r", b""):
            break
        parts.append(content[match.end() : end])
        at = end + 2
    if parts and at < len(content):
        raise _Wrong("has a body whose chunks do not fit together")
    return b"".join(parts) if parts else content


def _unpacked(content: bytes, packing: str) -> bytes:
    """A body that was sent compressed; as it is where it is not, as crawlers may undo it."""
    if packing and content.startswith(_GZIP):
        try:
            return Content(BytesIO(content), "body.gz").read(LONGEST)
        except Damaged as error:
            raise _Wrong(f"has a body that {error}") from None
    if packing == "deflate":
        for form in (15, -15):  # as the standard has it, and as some servers send it
            with suppress(zlib.error):
                return zlib.decompressobj(form).decompress(content, LONGEST)
    elif packing and _NO_TEXT.search(content[:1000]):
        raise _Wrong(f"has a body that is packed as {packing}, which is not read here")
    return content
