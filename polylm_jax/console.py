"""What is said in the terminal: any text on any terminal, and the line that says how far we are."""

import codecs
import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from rich.cells import cell_len, set_cell_size

from polylm_jax.errors import UserError

# what our own words have for letters that a terminal may lack
PLAIN = str.maketrans({"→": "->", "…": "...", "–": "-", "·": "|", "×": "x", "“": '"', "”": '"'})


def ready() -> None:
    """Lets stdout and stderr take every text, and stdin give one, whatever their encoding.

    What a stream cannot show comes out in plain letters or as an escape; bytes of stdin that are
    no text come in as U+FFFD.
    """
    codecs.register_error("polylm", _plain)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # a shell has closed it: a file of ours would get its number
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream, how in ((sys.stdout, "polylm"), (sys.stderr, "polylm"), (sys.stdin, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=how)


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end].translate(PLAIN)
    return lost.encode("ascii", "backslashreplace").decode(), error.end


def text_of_flag(text: str) -> str:
    """Text that a user gave as a flag; UserError for bytes that are none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{text!r} holds bytes that are no text; give it in UTF-8.") from None
    return text


def visible(text: str, stream: TextIO | None = None) -> str:
    """Text that is not ours as it may go to a stream, stdout by default.

    On a terminal its control characters, but for newlines and tabs, become escapes to be read,
    so that no text, name or message from elsewhere can move the cursor or set the title. Else it
    is the text itself.
    """
    stream = stream or sys.stdout
    if not stream.isatty():
        return text
    return "".join(c if c in "\n\t" or not _controls(c) else f"\\x{ord(c):02x}" for c in text)


def _controls(character: str) -> bool:
    return character < " " or "\x7f" <= character <= "\x9f"


def _of_one_line(text: str) -> str:
    """As much of a text as the terminal has room for: of two lines only the lower is redrawn."""
    try:
        width = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return text
    return set_cell_size(text, width) if 0 < width < cell_len(text) else text


def format_duration(seconds: float) -> str:
    """Seconds as "1 h 02 min", "3 min 05 s" or "12 s"."""
    if not seconds < 1e11:  # nor is it a number
        return "thousands of years"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keeps what libraries below Python say away from stderr while the block runs."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class LiveLine:
    """One line, redrawn in place on a terminal; elsewhere plain lines, `seconds` apart or more.

    live: whether stderr is a terminal.
    """

    def __init__(self, seconds: float = 0) -> None:
        self.live = sys.stderr.isatty()
        self._seconds = seconds
        self._next = time.monotonic() + seconds
        self._shown = False

    def show(self, text: str, last: bool = False) -> None:
        """Puts `text` in the line's place; the last one stays."""
        text = visible(text, sys.stderr)
        if self.live:
            shown = f"{text}\n" if last else _of_one_line(text)
            sys.stderr.write(f"\r\033[K{shown}")
        elif last or time.monotonic() >= self._next:
            sys.stderr.write(text + "\n")
            self._next = time.monotonic() + self._seconds
        sys.stderr.flush()
        self._shown = self.live and not last

    def say(self, text: str) -> None:
        """Prints a line that stays, above the live one."""
        text = visible(text, sys.stderr)
        sys.stderr.write(("\r\033[K" if self._shown else "") + text + "\n")
        self._shown = False

    def close(self) -> None:
        """Leaves what is shown where it is."""
        if self._shown:
            sys.stderr.write("\n")
            self._shown = False
