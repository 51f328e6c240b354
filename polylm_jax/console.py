"""What is shown on a terminal: text that is not ours, and the line that says how far a job is."""

import re
import sys
import time
from typing import TextIO


def format_duration(seconds: float) -> str:
    """Seconds as "1 h 02 min", "3 min 05 s" or "12 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def visible(text: str, stream: TextIO | None = None) -> str:
    """Text that is not ours as it may go to a stream, stdout by default.

    On a terminal its control characters, but for newlines and tabs, become escapes to be read.
    """
    if not (stream or sys.stdout).isatty():
        return text
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda c: f"\\x{ord(c[0]):02x}", text)


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
        if self.live:
            sys.stderr.write(f"\r\033[K{text}" + ("\n" if last else ""))
        elif last or time.monotonic() >= self._next:
            sys.stderr.write(text + "\n")
            self._next = time.monotonic() + self._seconds
        sys.stderr.flush()
        self._shown = self.live and not last

    def say(self, text: str) -> None:
        """Prints a line that stays, above the live one."""
        sys.stderr.write(("\r\033[K" if self._shown else "") + text + "\n")
        self._shown = False

    def close(self) -> None:
        """Leaves what is shown where it is."""
        if self._shown:
            sys.stderr.write("\n")
            self._shown = False
