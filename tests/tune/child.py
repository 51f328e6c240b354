"""The command line in a process of its own; a fork server imports this once."""

import os
import sys

from polylm_jax.__main__ import main
from polylm_jax.verbs import self_instruct  # noqa: F401


def run(arguments, variables):
    """Runs the command line in silence. variables: of the environment; the server has its own."""
    os.environ |= variables
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sys.exit(main(arguments))
