"""The one exception that a user is meant to read, and what it says of others' exceptions."""

import errno
import traceback

# Packages that reach storage elsewhere, whose errors are often no OSError.
STORAGE = ("fsspec.implementations", "adlfs", "gcsfs", "s3fs", "huggingface_hub")
# What storage without room answers: a full disk, a quota, a limit on a file's size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Bad input. The message is one sentence that names the file, line or flag and the mend.

    The command line prints it without a stack trace and exits with `status`; everything else that
    is raised is a defect of ours and keeps its trace.
    """

    status = 1


def first_line(error: BaseException | None) -> str:
    """What an error of a library says, in one line; its class where it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def of_storage(error: BaseException) -> bool:
    """Whether it came up inside a package that reaches storage elsewhere."""
    modules = (
        frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)
    )
    return any(name.startswith(STORAGE) and not name.endswith(".local") for name in modules)


def out_of_reach(what: str, reason: str) -> str:
    """The sentence on storage elsewhere that does not give what is asked of it."""
    return (
        f"{what} cannot be reached ({reason.rstrip('.')}); mend its name, or see to the network "
        "and to what you may do there, and run the same command again."
    )
