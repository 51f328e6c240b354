"""Prints what was tried, and what came of it, at the end."""

import pytest

OUTCOMES = []


@pytest.fixture
def outcome():
    """Function (fault, times, what came of it) that adds a line to the table."""
    return lambda *line: OUTCOMES.append(line)


def pytest_terminal_summary(terminalreporter):
    if OUTCOMES:
        terminalreporter.write_line("| fault | times | outcome |\n|---|---|---|")
        for fault, times, what in OUTCOMES:
            terminalreporter.write_line(f"| {fault} | {times} | {what} |")
