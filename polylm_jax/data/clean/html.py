"""The main text of a page of HTML, made in a child process that has a clock and a memory limit.

Libraries that read HTML hang, leak and crash on pages that some site serves. So a child does it,
and serves pages until one kills it; that page's fate is a verdict, and a new child goes on. The
clock counts the child's own processor time, so that a busy machine gives the same verdicts.
"""

import codecs
import os
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from polylm_jax.data.compressed import missing
from polylm_jax.errors import first_line

SECONDS = 5  # of processor time for a page; one of a megabyte takes 0.1
MEMORY = 2**30  # bytes of address space, of which Python and the library take a quarter
_PATIENCE = 120  # seconds on the wall after which a child is taken for dead

# of the Content-Type and of the page; of an answer, whether it is the text, and its size
_SIZES = struct.Struct("<II")
_META = re.compile(rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_HEADER = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# what WHATWG's standard means by a name for which Python's codec knows fewer characters
_WIDER = {
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
}
_OF_SEVERAL_BYTES = {"cp932", "cp949", "gb18030", "big5hkscs", "euc_jp", "iso2022_jp"}

_ROOT = Path(__file__).parents[3]


class Unreadable(Exception):
    """Why a page has no text."""


def extract(page: bytes, content_type: str = "") -> str:
    """The main text of a page, which may be "", with \\n between its lines.

    content_type: of its HTTP headers. Unreadable is raised for a page that takes too much time or
    memory, or crashes the library; UserError where the library is missing.
    """
    with _one_at_a_time:
        child = _child()
        begun = child.pages
        try:
            return child.extract(page, content_type)
        except Unreadable:
            if not begun:
                raise
        # what the pages before it have left behind is not this one's fault
        return _child().extract(page, content_type)


def decoded(page: bytes, content_type: str = "") -> str:
    """A page's characters, by its BOM, HTTP header, <meta> or, failing these, its bytes.

    UTF-8 is believed where all bytes are so, before a header or <meta> that names a code of
    single bytes, for such a code takes any bytes. What is no character becomes U+FFFD.
    """
    try:
        from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5
    except ImportError as error:
        raise missing("resiliparse", "HTML") from error
    for bom, name in _BOMS.items():
        if page.startswith(bom):
            return page[len(bom) :].decode(name, "replace")
    header, meta = _HEADER.search(content_type), _META.search(page[:4096])
    said = [header[1]] if header else []
    said += [meta[1].decode("ascii", "replace")] if meta else []
    known = [map_encoding_to_html5(name, fallback_utf8=False) for name in said]
    names = [_WIDER.get(name, name) for name in known if name]
    certain = [name for name in names if name in _OF_SEVERAL_BYTES]
    for name in [*certain, "utf-8", *(name for name in names if name not in certain)]:
        with suppress(UnicodeError):
            return page.decode(name)
    found = detect_encoding(page) or "utf-8"
    return page.decode(_WIDER.get(found, found), "replace")


class _Child:
    """A process that extracts text. pages: how many it was given."""

    def __init__(self) -> None:
        self.pages = 0
        code = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from {__name__} import _serve; "
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{code}_serve({SECONDS}, {MEMORY})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._to, self._from = self._process.stdin, self._process.stdout

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def extract(self, page: bytes, content_type: str) -> str:
        self.pages += 1
        kind = content_type.encode("utf-8", "replace")
        try:
            _write(self._to.fileno(), _SIZES.pack(len(kind), len(page)) + kind + page)
            done, size = _SIZES.unpack(self._read(_SIZES.size))
            answer = self._read(size).decode()
        except (BrokenPipeError, EOFError):
            raise Unreadable(self._fate()) from None
        if done:
            return answer
        self._end()
        raise Unreadable(answer)

    def _read(self, size: int) -> bytes:
        content = bytearray()
        waiting = select.poll()  # select knows no file numbers over 1023
        waiting.register(self._from, select.POLLIN)
        while len(content) < size:
            if not waiting.poll(_PATIENCE * 1000):
                self._process.kill()
                raise EOFError
            more = os.read(self._from.fileno(), size - len(content))
            if not more:
                raise EOFError
            content += more
        return bytes(content)

    def _fate(self) -> str:
        """Why the process has ended."""
        signalled = -self._end()
        if signalled in (signal.SIGPROF, signal.SIGKILL):
            return f"takes more than {SECONDS} s to read"
        return f"crashes the reader of HTML (signal {signalled})"

    def _end(self) -> int:
        with suppress(OSError):
            self._to.close()
        self._from.close()
        return self._process.wait()


_one_at_a_time = threading.Lock()
_children: dict[int, _Child] = {}  # by the process that started it: a fork gets its own


def _child() -> _Child:
    child = _children.get(os.getpid())
    if child is None or not child.lives:
        child = _children[os.getpid()] = _Child()
    return child


def _write(file: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]


def _serve(seconds: float, memory: int) -> None:
    """What the child does: answers page after page until its input ends."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLParserException

    with suppress(ValueError, OSError):  # no limit can be set where there is a lower one
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = sys.stdin.buffer
    while sizes := pages.read(_SIZES.size):
        kind, size = _SIZES.unpack(sizes)
        content_type = pages.read(kind).decode()
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends us, wherever we are
        try:
            text = decoded(pages.read(size), content_type)
            text = extract_plain_text(text, main_content=True)
            done, answer = 1, text.encode("utf-8", "replace")
        except (MemoryError, HTMLParserException):  # any bytes parse, while there is memory
            done, answer = 0, f"takes more than {memory / 2**30:g} GiB to read".encode()
        except Exception as error:
            done, answer = 0, f"breaks the reader of HTML ({first_line(error)})".encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(1, _SIZES.pack(done, len(answer)) + answer)
