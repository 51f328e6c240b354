"""How a run can end, and what else may be said of it: one table for all who speak of a run.

The exit status of `polylm train` and `polylm status`, the word in the heartbeat and in the log, and
what run.sh, GKE and SLURM do next are all taken from here; `docs/ends.md` is made from it. The
statuses are those of BSD's sysexits.h where one fits: no signal and no shell uses them.
`python -m polylm_jax.train.ends > docs/ends.md` makes the page anew.
"""

from typing import NamedTuple

from polylm_jax.data.curriculum import OutOfRows
from polylm_jax.data.feed import StalledRead
from polylm_jax.errors import FULL, UserError

ACTIONS = {
    "done": "nothing more: only here is a slice deleted or a job complete",
    "again": "start the same command again, as often as it takes",
    "retry": "start the same command again, a few times",
    "person": "start nothing, delete nothing, and say that a person must decide",
}


class End(NamedTuple):
    """word: in heartbeat, status and log. status: of the process. action: of the launchers, one of
    ACTIONS. meaning: for people, continuing "the run ended because …"."""

    word: str
    status: int
    action: str
    meaning: str


ENDS = {
    end.word: end
    for end in (
        End("finished", 0, "done", "all steps are done"),
        End("failed", 1, "retry", "something went wrong that has no word of its own"),
        End("stuck", 65, "person", "optimizer.spike_patience steps in a row were skipped"),
        End("out of data", 66, "person", 'a source has no unread rows (on_end = "refuse")'),
        End("busy", 69, "retry", "another process writes the folder; nothing was touched"),
        End("storage full", 73, "person", "there was no room to save"),
        End("data stalled", 74, "retry", "rows did not come within train.data_timeout"),
        End("stopped", 75, "again", "it was asked to stop, by SIGTERM or Ctrl-C"),
        End("lost", 76, "again", "another process of the run was lost"),
        End("unequal", 78, "person", "the processes differ in settings, folder, data or code"),
    )
}

# What `polylm status` says of a run that has not ended, and its exit status.
UNENDED = {"running": 10, "never started": 11, "silent": 12, "still": 13}


UNENDED_MEANING = {
    "running": "steps go by, or it compiles",
    "never started": "there is no heartbeat file",
    "silent": "no heartbeat any more: its process or its machine is gone",
    "still": "a heartbeat, but no step",
}


class RunEnded(UserError):
    """A run's end that is no success.

    word: of ENDS. reason: the sentence without the word. defect: what was raised, where that is no
    fault of the user's or of storage, whose trace must be shown.
    """

    def __init__(self, word: str, reason: str, defect: BaseException | None = None) -> None:
        super().__init__(f"{word}: {reason}")
        self.status = ENDS[word].status
        self.word, self.reason, self.defect = word, reason, defect


def end_of(error: BaseException) -> RunEnded:
    """The end of a run in which this was raised: the one place that tells errors apart."""
    if isinstance(error, RunEnded):
        return error
    word, reason = "failed", f"{error}".strip() or type(error).__name__
    if isinstance(error, OSError) and error.strerror and type(error).__module__ == "builtins":
        word = "storage full" if error.errno in FULL else "failed"
        reason = error.strerror + (f" ({error.filename})" if error.filename else "")
        reason += "; free some space and run the same command again." if word != "failed" else "."
    elif isinstance(error, StalledRead):
        word = "data stalled"
    elif isinstance(error, OutOfRows):
        word = "out of data"
    elif not isinstance(error, UserError | OSError):
        reason = f"{type(error).__name__}: {reason.splitlines()[0]}"
        return RunEnded(word, reason, error)
    return RunEnded(word, reason)


def page() -> str:
    """docs/ends.md: each end and each state, for those who write launchers."""
    rows = [
        (f"`{end.word}`", end.status, end.meaning, ACTIONS[end.action]) for end in ENDS.values()
    ]
    states = [(f"`{word}`", status, UNENDED_MEANING[word]) for word, status in UNENDED.items()]
    return f"""# How a run ends

Made from `polylm_jax/train/ends.py` by `python -m polylm_jax.train.ends`; a test compares the two.

`polylm train` ends with one of these exit statuses. The word is also the state in the run's
`heartbeat.json`, what `polylm status` says (and exits with), and stands in the last line of the
log: `polylm train: WORD: what happened and what mends it`. With several processes each ends with
the same word and status; one that is killed itself, or dies of a signal, has the signal's.

{_table(("word", "status", "the run ended because", "what run.sh, GKE and SLURM do"), rows)}

Whatever ends a run whose state is sound saves it first. The exceptions are said in the last line:
where there is no room, and where processes that save together are not all there any more.

`polylm status` exits with the same numbers, and with these where a run has not ended:

{_table(("word", "status", "meaning"), states)}
"""


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


if __name__ == "__main__":
    print(page(), end="")
