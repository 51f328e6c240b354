"""The table of ends: its page, and which error is which end."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from polylm_jax.data.curriculum import OutOfRows
from polylm_jax.data.feed import StalledRead
from polylm_jax.errors import UserError
from polylm_jax.runs.status import STATUSES
from polylm_jax.train import checkpoint
from polylm_jax.train.ends import ACTIONS, ENDS, UNENDED, RunEnded, end_of, page

PAGE = Path(__file__).parents[2] / "docs" / "ends.md"


def test_the_page_in_the_docs_is_what_the_table_makes():
    assert PAGE.read_text() == page()


def test_no_two_ends_look_alike_and_only_finished_is_done():
    assert len(set(STATUSES.values())) == len(ENDS) + len(UNENDED)
    assert [end.word for end in ENDS.values() if end.action == "done"] == ["finished"]
    assert {end.action for end in ENDS.values()} <= ACTIONS.keys()
    # shells and signals have these: 2, and 126 and above
    assert all(0 <= status < 126 and status != 2 for status in STATUSES.values())


FREE = "; free some space and run the same command again."


@pytest.mark.parametrize(
    ("error", "word", "reason"),
    [
        (RunEnded("lost", "it is."), "lost", "it is."),
        (OutOfRows("no rows."), "out of data", "no rows."),
        (StalledRead("no rows."), "data stalled", "no rows."),
        (UserError("bad."), "failed", "bad."),
        (OSError(errno.ENOSPC, "No space left", "/x"), "storage full", f"No space left (/x){FREE}"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "storage full", f"Quota exceeded{FREE}"),
        (PermissionError(errno.EACCES, "Permission denied"), "failed", "Permission denied."),
        (ZeroDivisionError("a\nb"), "failed", "ZeroDivisionError: a"),
    ],
)
def test_each_error_is_one_end(error, word, reason):
    end = end_of(error)
    assert (end.word, end.reason, end.status) == (word, reason, ENDS[word].status)
    assert str(end) == f"{word}: {reason}"
    assert (end.defect is error) == isinstance(error, ZeroDivisionError)


class NoConnection(OSError):
    """What a package for buckets raises, which says more than its number does."""

    def __str__(self):
        return "cannot connect to host b"


SAID = 'Error writing "params/.zarray" at gs://b/run: HTTP response code: 503'


@pytest.mark.parametrize("error", [ValueError(SAID), OSError(errno.EIO, "Input/output error")])
def test_storage_that_fails_is_named_and_no_defect(error):
    def fail():
        raise error

    manager = SimpleNamespace(
        directory="gs://b/run/checkpoints",
        latest_step=lambda: 3,
        wait_until_finished=fail,
        all_steps=lambda: [3],
    )
    words = r"failed: the checkpoint of step 3 could not be written to gs://b/run/checkpoints"
    with pytest.raises(RunEnded, match=words) as raised:
        checkpoint.finish(manager)
    assert str(error) in str(raised.value)
    assert raised.value.defect is None
    assert end_of(NoConnection(1, "no")).reason == "cannot connect to host b"
    unreachable = checkpoint.damaged(manager, 3, ValueError("UNAVAILABLE: try again"))
    assert "cannot be reached (UNAVAILABLE: try again)" in str(unreachable)


def test_a_defect_keeps_its_trace():
    def fail():
        raise ValueError("shapes do not match")

    manager = SimpleNamespace(latest_step=lambda: 3, wait_until_finished=fail)
    with pytest.raises(ValueError, match="shapes"):
        checkpoint.finish(manager)
