"""Prints what was tried, and what came of it, at the end; FAULT_TABLE=FILE keeps it there."""

import os
from pathlib import Path

import pytest

OUTCOMES = []
MARKS = ("<!-- made by make faults -->", "<!-- end of faults -->")


@pytest.fixture
def outcome():
    """Function (fault, times, what came of it) that adds a line to the table."""
    return lambda *line: OUTCOMES.append(line)


def table(outcomes):
    lines = [("fault", "times", "outcome"), ("---", "---", "---"), *outcomes]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def keep(file, outcomes):
    """Puts the table between the marks of a file."""
    before, _, rest = file.read_text(encoding="utf-8").partition(MARKS[0])
    _, found, after = rest.partition(MARKS[1])
    assert found, f"{file} has no marks {MARKS}"
    text = f"{before}{MARKS[0]}\n{table(outcomes)}\n{MARKS[1]}{after}"
    file.write_text(text, encoding="utf-8")


def pytest_terminal_summary(terminalreporter, exitstatus):
    if OUTCOMES:
        terminalreporter.write_line(table(OUTCOMES))
    # only what was seen whole goes into the page
    if OUTCOMES and exitstatus == 0 and (file := os.environ.get("FAULT_TABLE")):
        keep(Path(file), OUTCOMES)
