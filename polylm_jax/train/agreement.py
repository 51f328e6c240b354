"""All processes of a run are the same run: what must be equal is compared before the first step."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import orbax.checkpoint as ocp

import polylm_jax
from polylm_jax.parallel import together
from polylm_jax.train.ends import RunEnded
from polylm_jax.train.heartbeat import read_heartbeat

# Where things lie may differ from host to host; what lies there is compared by its fingerprint.
PLACES = (
    "compute.compile_cache",
    "corpus.path",
    "corpus.text",
    "tokenizer.path",
    "rows.path",
    "evaluation.folder",
)
SHOWN = 3  # differences that are named
# A disk that is shared over a network shows what another host wrote within a minute (NFS).
LOOKS, PAUSE = 19, 5.0  # and seconds between two


def check_settings(gin: str) -> None:
    """RunEnded("unequal"), in every process, where one has other settings or other code.

    gin: the resolved configuration, one setting a line.
    """
    settings = dict(line.split(" = ", 1) for line in gin.splitlines() if line)
    _check("settings", {n: v for n, v in settings.items() if n not in PLACES} | _code())


def check_data(fingerprints: dict[str, str]) -> None:
    """RunEnded("unequal"), in every process, where one reads another tokenizer, rows or order."""
    _check("data", {name: value[:16] for name, value in fingerprints.items()})


def check_folder(folder: str) -> None:
    """RunEnded("unequal"), in every process, where one does not see what process 0 writes there.

    folder: the run's, with a heartbeat of process 0. Where each has a disk of its own, the first
    save would wait for ever for the parts of the others, which lie elsewhere.
    """

    def writer() -> str:
        beat = {}
        with contextlib.suppress(Exception):  # whether it can be read is what is asked
            beat = read_heartbeat(folder) or {}
        return f"{beat.get('host')} {beat.get('pid')}"

    _agreed(
        "writer",
        writer,
        lambda number: f"process {number} does not see in {folder} what process 0 writes there",
        "give a train.folder that all of them share, on a disk or in a bucket (one without / at "
        "its beginning lies below the folder that each was started in)",
    )


def check_checkpoints(manager: ocp.CheckpointManager) -> None:
    """RunEnded("unequal"), in every process, where one sees other checkpoints than process 0.

    Each lists them by itself, and goes on from the newest that it sees.
    """

    def listed() -> str:
        manager.reload()
        return " ".join(map(str, sorted(manager.all_steps())))

    _agreed(
        "checkpoints",
        listed,
        lambda number: (
            f"process {number} sees other checkpoints in {manager.directory} than process 0"
        ),
        "give a train.folder that all of them share",
    )


def _agreed(name: str, look: Callable[[], str], said: Callable[[int], str], mend: str) -> None:
    """RunEnded("unequal") where a process, after LOOKS, does not see what process 0 sees.

    look: what this one sees. said: the sentence on a process that sees something else.
    """

    def judge(told: list[str]) -> str:
        return next((said(i) for i, one in enumerate(told) if one != told[0]), "")

    for number in range(LOOKS):
        difference = together.verdict(f"{name} {number}", look(), judge)
        if not difference:
            return
        time.sleep(PAUSE)
    raise RunEnded("unequal", f"{difference}; {mend}.")


def _check(name: str, mine: dict[str, str]) -> None:
    if difference := together.verdict(name, json.dumps(mine), _difference):
        raise RunEnded(
            "unequal",
            f"{difference}; start all processes with the same settings, data and code.",
        )


def _difference(told: list[str]) -> str:
    """What the processes do not have in common, "" where all are equal to process 0."""
    first, *others = map(json.loads, told)
    found = [
        f"process {number} has {name} = {_short(other.get(name))} where process 0 has "
        f"{_short(first.get(name))}"
        for number, other in enumerate(others, 1)
        for name in {**first, **other}
        if other.get(name) != first.get(name)
    ]
    more = [f"and {len(found) - SHOWN} more differences"] if len(found) > SHOWN else []
    return ", ".join([*found[:SHOWN], *more])


def _short(value: str | None) -> str:
    return "nothing" if value is None else value if len(value) <= 60 else f"{value[:57]}..."


def _code() -> dict[str, str]:
    """Versions, and a hash of this package's files: a stale checkout has the same version."""
    root = Path(polylm_jax.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    versions = {f"the version of {name}": version(name) for name in ("jax", "jaxlib", "flax")}
    return {"the code of polylm_jax": digest.hexdigest()[:16]} | versions
