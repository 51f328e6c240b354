"""Work on many pieces by Apache Beam: each piece alone, or what pieces say, grouped by its key.

What is made goes to files, never back through Beam, so every runner will do. What goes through
it is small: names of pieces, and bytes that pack thousands of numbers; text never does.
"""

import logging
import random
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import numpy as np

from polylm_jax.errors import UserError, first_line, of_storage
from polylm_jax.ranges import Range, check

LOCAL = "FnApiRunner"
# Beam's own worker, which else logs every step of its life, and a UserError with all its traces
_WORKER = shlex.join(
    [
        sys.executable,
        "-c",
        "import logging, os, sys; logging.disable(); "
        "from apache_beam.runners.worker.sdk_worker_main import main; "
        "sys.stderr = open(os.devnull, 'w'); main([])",
    ]
)


@dataclass(frozen=True)
class Beam:
    """What runs `polylm clean`, and `polylm rows` where it has --runner.

    runner: a runner of Apache Beam, by name or by module and name; FnApiRunner is this machine.
    workers: processes of this machine, for FnApiRunner.
    options: Beam's flags for another runner, such as "--project=mine", "--region=europe-west4".
    """

    runner: str = LOCAL
    workers: Annotated[int, Range(1, 4096)] = 1
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self, "beam")


def each(beam: Beam, function: Callable[[Any], object], pieces: Sequence[Any]) -> None:
    """Calls function(piece) for every piece, in any order and any process."""
    if len(pieces) == 1 and beam.runner == LOCAL:  # nobody has to share it
        _Each(function)(pieces[0])
    elif pieces:
        with _pipeline(beam) as (pipeline, b):
            _ = (
                pipeline
                | b.Create(_dealt(beam, pieces), reshuffle=_spread(beam))
                | "each" >> b.Map(_Each(function))
            )


def grouped(
    beam: Beam,
    emit: Callable[[Any], Iterable[tuple[int, bytes]]],
    pieces: Sequence[Any],
    reduce: Callable[[int, list[bytes]], None],
) -> None:
    """Calls reduce(key, values) for every key of all that emit(piece) gives, values in any order.

    A value should pack much: it is the number of values that costs, not their size.
    """
    if pieces:
        with _pipeline(beam) as (pipeline, b):
            _ = (
                pipeline
                | b.Create(_dealt(beam, pieces), reshuffle=_spread(beam))
                | "emit" >> b.FlatMap(_Emit(emit))
                | b.GroupByKey()
                | "reduce" >> b.MapTuple(_Reduce(reduce))
            )


def looped(
    emit: Callable[[Any], Iterable[tuple[int, bytes]]],
    pieces: Sequence[Any],
    reduce: Callable[[int, list[bytes]], None],
) -> None:
    """As `grouped`, by this process alone: for what takes less time than to tell others of it."""
    values: dict[int, list[bytes]] = {}
    with _told():
        for piece in pieces:
            for key, value in emit(piece):
                values.setdefault(key, []).append(value)
        for key, some in values.items():
            reduce(key, some)


def _dealt(beam: Beam, pieces: Sequence[Any]) -> Sequence[Any]:
    """The pieces, for several processes in an order of chance, the same each time.

    Beam deals them out to processes in turn, before it begins: where every second one is large,
    as train and valid follow one another, one process would have all that are.
    """
    return random.Random(0).sample(pieces, len(pieces)) if _spread(beam) else pieces


def _spread(beam: Beam) -> bool:
    """Whether there are several who could share the pieces."""
    return beam.runner != LOCAL or beam.workers > 1


@contextmanager
def _told() -> Iterator[None]:
    """What hinders a worker comes out as a UserError: a runner hands on no more than its words."""
    try:
        yield
    except Exception as error:
        if not (isinstance(error, OSError | MemoryError | ImportError) or of_storage(error)):
            raise
        reason = first_line(error).rstrip(".")
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        raise UserError(
            f"a worker could not go on ({reason}); mend that and run the same command again: what "
            "is finished is kept."
        ) from error


@dataclass(frozen=True)
class _Each:
    function: Callable[[Any], object]

    def __call__(self, piece: Any) -> None:
        with _told():
            self.function(piece)


@dataclass(frozen=True)
class _Emit:
    function: Callable[[Any], Iterable[tuple[int, bytes]]]

    def __call__(self, piece: Any) -> Iterator[tuple[int, bytes]]:
        with _told():
            yield from self.function(piece)


@dataclass(frozen=True)
class _Reduce:
    """Values come as an iterable of Beam's own, that may be read from elsewhere."""

    function: Callable[[int, list[bytes]], None]

    def __call__(self, key: int, values: Iterable[bytes]) -> None:
        with _told():
            self.function(key, list(values))


class _pipeline:
    """A pipeline that runs at the block's end; a UserError of a worker comes out as one."""

    def __init__(self, beam: Beam) -> None:
        logging.disable(logging.WARNING)  # of what it misses for Google's services
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions

        logging.disable(logging.NOTSET)
        flags = list(beam.options)
        runner: Any = beam.runner
        if runner == LOCAL:
            from apache_beam.runners.portability.fn_api_runner import FnApiRunner
            from apache_beam.transforms.environments import SubprocessSDKEnvironment

            flags += [f"--direct_num_workers={beam.workers}"]
            processes = SubprocessSDKEnvironment.from_command_string(_WORKER)
            runner = FnApiRunner(processes if beam.workers > 1 else None)
        # what it logs with a trace it also raises
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
        try:
            self._pipeline = apache_beam.Pipeline(runner, PipelineOptions(flags))
        except (ValueError, ImportError, AttributeError) as error:
            reason = first_line(error).rstrip(".")
            raise UserError(f"beam.runner={beam.runner} cannot be started: {reason}.") from error
        self._beam = apache_beam

    def __enter__(self) -> tuple[Any, Any]:
        return self._pipeline, self._beam

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if error:
            return
        try:
            self._pipeline.run().wait_until_finish()
        except Exception as failed:
            said = _user_error(failed)
            if said is None:
                raise
            raise UserError(said) from failed


def _user_error(failed: BaseException) -> str | None:
    """What a UserError in a worker said: Beam hands on the text of its trace."""
    text = f"UserError: {failed}" if isinstance(failed, UserError) else str(failed)
    said = re.findall(r"UserError: (.+?)(?: \[while running|\n|$)", text)
    return said[-1] if said else None


def packed(keys: np.ndarray, rows: np.ndarray, parts: int) -> Iterator[tuple[int, bytes]]:
    """Rows [n, …] by the part of their keys, uint64 [n]: a part and its rows as bytes."""
    part = (keys % np.uint64(parts)).astype(np.int64)
    order = np.argsort(part, kind="stable")
    part, rows = part[order], rows[order]
    for start, end in runs(part):
        yield int(part[start]), rows[start:end].tobytes()


def runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where each run of equal values begins and ends."""
    if len(values):
        changes = np.flatnonzero(np.diff(values)) + 1
        yield from pairwise([0, *changes.tolist(), len(values)])
