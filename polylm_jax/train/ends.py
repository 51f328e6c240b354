"""How a run can end, and what else may be said of it: one table for all who speak of a run.

The exit status of `polylm train` and `polylm status`, the word in the heartbeat and in the log, and
what run.sh, GKE and SLURM do next are all taken from here; `docs/ends.md` is made from it. The
statuses are those of BSD's sysexits.h where one fits: no signal and no shell uses them.
"""

from typing import NamedTuple

from polylm_jax.errors import UserError

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
        End("unequal", 78, "person", "the processes do not have the same settings, data or code"),
    )
}

# What `polylm status` says of a run that has not ended, and its exit status.
UNENDED = {
    "running": 10,
    "never started": 11,
    "silent": 12,  # no heartbeat any more: its process or its machine is gone
    "still": 13,  # a heartbeat, but no step
}


class RunEnded(UserError):
    """A run's end that is no success. word: of ENDS."""

    def __init__(self, word: str, message: str) -> None:
        super().__init__(message)
        self.status = ENDS[word].status
        self.word = word
