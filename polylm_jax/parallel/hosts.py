"""The processes of a run: how they find each other, and what they tell each other once a step."""

import contextlib
import glob
import math
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from polylm_jax.errors import UserError
from polylm_jax.parallel.watch import watched

LOST_AFTER = 30  # seconds without a heartbeat after which a process counts as lost
MOMENT = 1.0  # seconds in which a second Ctrl-C is the first one, passed on by a launcher
AGAIN = "start all processes again with the same command: the run goes on from its last checkpoint"


class Launcher(NamedTuple):
    """What a launcher of processes tells each of them in its environment.

    needs: variables without which it has started nothing. count: how many processes there are.
    """

    name: str
    needs: tuple[str, ...]
    count: Callable[[Mapping[str, str]], int]


# SLURM names the nodes of a step only to what srun starts, not to a batch script of its own.
LAUNCHERS = (
    Launcher(
        "SLURM",
        ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS"),
        lambda variables: int(variables["SLURM_NTASKS"]),
    ),
    Launcher(
        "Open MPI",
        ("OMPI_COMM_WORLD_SIZE",),
        lambda variables: int(variables["OMPI_COMM_WORLD_SIZE"]),
    ),
    Launcher(
        "TPU slices",
        ("MEGASCALE_NUM_SLICES",),
        lambda variables: int(variables["MEGASCALE_NUM_SLICES"]),
    ),
    Launcher(
        "TPU pod on GKE",
        ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"),
        lambda variables: len(variables["TPU_WORKER_HOSTNAMES"].split(",")),
    ),
    Launcher("TPU pod", (), lambda variables: _tpu_hosts(variables)),
)


def launcher(variables: Mapping[str, str]) -> str | None:
    """Name of what has started this process together with others, None for one on its own.

    variables: the environment.
    """
    for name, needs, count in LAUNCHERS:
        if variables.keys() >= set(needs) and count(variables) > 1:
            return name
    return None


def _tpu_hosts(variables: Mapping[str, str]) -> int:
    """How many hosts this TPU VM's slices have, by Google's metadata server; 1 if this is none.

    Of slices that were asked for together each machine is told in `tpu-env`, where JAX looks too.
    """
    on_tpu = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    if not on_tpu or "TPU_SKIP_MDS_QUERY" in variables or variables.get("JAX_PLATFORMS") == "cpu":
        return 1
    workers = _told("worker-network-endpoints", variables).split(",")
    slices = re.search(r"^MEGASCALE_NUM_SLICES:\D*(\d+)", _told("tpu-env", variables), re.MULTILINE)
    return len(workers) * (int(slices[1]) if slices else 1)


def _told(attribute: str, variables: Mapping[str, str]) -> str:
    """What Google's metadata server tells this machine of itself; "" where it tells nothing."""
    server = variables.get("GCE_METADATA_IP", "metadata.google.internal")
    address = f"http://{server}/computeMetadata/v1/instance/attributes/{attribute}"
    request = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return ""


@contextlib.contextmanager
def joined(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    leave: Callable[[str, str], int],
    verb: str = "train",
    again: str = AGAIN,
) -> Iterator[None]:
    """Joins the other processes of the run, if there are any, for the length of the block.

    coordinator, processes, process: HOST:PORT of process 0, how many there are and which this
    is; all None to take them from what has started this process (`LAUNCHERS`).
    leave: function (word, reason) that tells the readers of the run how it ended, and returns the
    exit status. While the block runs it ends this process, with one sentence, as soon as another
    one is lost ("lost") or has ended by itself (with its word). verb: who says that. again: what
    mends a loss.
    Raises UserError if the flags are not whole or the others do not come.
    """
    given: dict[str, Any] = {
        "coordinator_address": coordinator,
        "num_processes": processes,
        "process_id": process,
    }
    found = None
    if any(value is not None for value in given.values()):
        _check_flags(coordinator, processes, process)
    else:
        found, given = launcher(os.environ), {}
        if found is None:
            yield
            return
    if found == "Open MPI" and "OMPI_MCA_orte_hnp_uri" not in os.environ:
        raise UserError(
            "this Open MPI does not say where process 0 is: give --coordinator=HOST:PORT "
            "--processes=$OMPI_COMM_WORLD_SIZE --process=$OMPI_COMM_WORLD_RANK."
        )
    # SIGTERM is for the loop to answer, and a loss for the watch to tell of
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_enable_recoverability", True)
    with _last_words(verb, again) as say:
        try:
            jax.distributed.initialize(**given, heartbeat_timeout_seconds=LOST_AFTER)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"the processes of the run did not find each other: {reason}") from None
        with watched(say, leave, again, LOST_AFTER):
            yield


def _check_flags(coordinator: str | None, processes: int | None, process: int | None) -> None:
    if coordinator is None or processes is None or process is None:
        raise UserError("--coordinator, --processes and --process go together: give all three.")
    host, port = re.fullmatch(r"(.*?)(?::(\d+))?", coordinator, re.DOTALL).groups()  # type: ignore[union-attr]
    if not host or not port or not 0 < int(port) < 65536:
        raise UserError(
            f"--coordinator={coordinator} is not HOST:PORT; give process 0's name or address and "
            "a free port there, as in --coordinator=localhost:8476."
        )
    if processes < 1 or not 0 <= process < processes:
        raise UserError(
            f"--process={process} is not one of --processes={processes}: they count from 0 to "
            f"{max(processes, 1) - 1}."
        )


@contextlib.contextmanager
def _last_words(verb: str = "train", again: str = AGAIN) -> Iterator[Callable[[str], None]]:
    """Function that leaves a sentence to a shell, which says it when this process has ended.

    Where nothing was left, the process was cut off, and the shell says that: JAX aborts all
    processes when it loses process 0, and no Python runs then.
    """
    sentence = f"lost: a process was cut off, or lost process 0; {again}."
    script = 'trap "" INT TERM HUP; read -r say || say="$0"; [ -z "$say" ] || echo "$say" >&2'
    command = ["sh", "-c", script, f"polylm {verb}: {sentence}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as shell:

        def say(words: str) -> None:
            assert shell.stdin
            shell.stdin.write(f"polylm {verb}: {words}\n" if words else "\n")
            shell.stdin.flush()

        try:
            yield say
        finally:
            say("")


class Notes(NamedTuple):
    """What each process tells the others once a step.

    stop: exit status with which it asks all to end after saving, 0 for none. busy: seconds of the
    last step that it did not wait for its devices. memory: GiB in use on its fullest device, 0
    where that is not known.
    """

    stop: float
    busy: float
    memory: float


def notes_of(stop: int, seconds: Mapping[str, float]) -> Notes:
    """This process's notes. seconds: of the last step, "step", and of it "devices" and others."""
    waited = sum(seconds.get(what, 0.0) for what in ("devices", "validation", "evaluation"))
    in_use = [(d.memory_stats() or {}).get("bytes_in_use", 0) for d in jax.local_devices()]
    return Notes(stop, seconds.get("step", 0.0) - waited, max(in_use) / 2**30)


def make_exchange(mesh: Mesh) -> Callable[[Notes], jax.Array]:
    """Function that gives all processes the notes of each: float32 [devices, notes].

    Nobody waits in it: it goes to the devices between two steps, as the steps themselves do, so
    that all processes see the same notes at the same step.
    """
    sharding = NamedSharding(mesh, P(mesh.axis_names))
    gather = jax.jit(lambda notes: notes, out_shardings=NamedSharding(mesh, P()))

    def exchange(notes: Notes) -> jax.Array:
        mine = np.array([notes], np.float32)
        shape = (mesh.size, len(notes))
        return gather(jax.make_array_from_callback(shape, sharding, lambda _: mine))

    return exchange


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a later Ctrl-C ends the process as usual.

    Another SIGTERM says nothing new: what ends a job sends it to all of its processes, and their
    launchers pass it on, while they save. Whoever cannot wait has SIGKILL.
    """
    event = threading.Event()
    former: dict[signal.Signals, Any] = {}
    asked = math.inf  # when it was asked for first

    def stop(number: int, frame: Any) -> None:
        nonlocal asked
        now = time.monotonic()
        if number == signal.SIGINT and now > asked + MOMENT:
            signal.signal(number, former[signal.SIGINT])
            signal.raise_signal(number)
        asked = min(asked, now)
        event.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        if threading.current_thread() is threading.main_thread():
            former[number] = signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
