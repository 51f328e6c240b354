"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input. The message is one sentence that names the file, line or flag and the mend.

    The command line prints it without a stack trace and exits with `status`; everything else that
    is raised is a defect of ours and keeps its trace.
    """

    status = 1


def first_line(error: BaseException | None) -> str:
    """What an error of a library says, in one line; its class where it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__
