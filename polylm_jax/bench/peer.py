"""A peer program in a process of its own, which waits while others work."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from polylm_jax.errors import UserError
from polylm_jax.parallel.platform import malloc_tunables


class PeerProcess:
    """A script of this folder, told a dict at its start; it answers a line with a line of JSON.

    On a CPU its allocator is told what ours is. about: the line that it says first, of itself.
    """

    def __init__(self, python: str, script: str, told: dict[str, Any]) -> None:
        # modules beside the script are not its own
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        if told.get("device") == "cpu":
            tunables = [os.environ.get("GLIBC_TUNABLES"), malloc_tunables()]
            environment["GLIBC_TUNABLES"] = ":".join(filter(None, tunables))
        self._script = script
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [python, str(Path(__file__).with_name(script)), json.dumps(told)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                env=environment,
            )
        except OSError as error:
            raise UserError(
                f"--peer_python={python} does not start ({error.strerror}); name an interpreter."
            ) from error
        self.about = self._answer()

    def ask(self, *words: int) -> dict[str, Any]:
        """The answer to a line of words. UserError if the peer has ended, with its last words."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process and frees its memory."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            self._said.seek(0)
            last = (self._said.read().strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(
                f"the peer, {self._script}, ended early ({last}); mend that or leave it out."
            )
        return json.loads(line)


def peer_python(named: str) -> str:
    """The interpreter for a peer: the one named, or this one if it has torch."""
    if named:
        return named
    if all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return sys.executable
    raise UserError(
        "--vs=torch needs torch and transformers; install polylm_jax[peer], or name an "
        "interpreter that has them with --peer_python=PATH."
    )


def torch_device(platform: str) -> str:
    """What torch calls a platform of JAX."""
    return {"gpu": "cuda"}.get(platform, platform)
