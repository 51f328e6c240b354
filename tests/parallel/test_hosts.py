"""When a process looks for others, and what processes tell each other."""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from polylm_jax.__main__ import main
from polylm_jax.parallel import hosts
from polylm_jax.parallel.mesh import MeshShape, make_mesh

SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "16"}


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, None),
        (SRUN, "SLURM"),
        (SRUN | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}, None),  # in the batch script, not by srun
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}, "TPU pod on GKE"),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ({"MEGASCALE_NUM_SLICES": "2"}, "TPU slices"),
    ],
)
def test_the_environment_tells_who_started_the_process(variables, name):
    assert hosts.launcher(variables) == name


# as Google writes it; the slices of one machine each are told apart from one alone only here
SLICES = "ACCELERATOR_TYPE: 'v5p-8'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '0'\n"


@pytest.mark.parametrize(
    ("workers", "env", "name"),
    [
        ("a,b,c", None, "TPU pod"),
        ("a", None, None),
        (None, None, None),
        ("a", SLICES, "TPU pod"),
        ("a,b,c", SLICES, "TPU pod"),
        ("a", SLICES.replace("'2'", "'1'"), None),
        ("a", "ACCELERATOR_TYPE: 'v5p-8'\n", None),
    ],
)
def test_a_tpu_vm_asks_the_metadata_server_how_many_it_is(monkeypatch, workers, env, name):
    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
            told = {"worker-network-endpoints": workers, "tpu-env": env}[asked]
            assert self.headers["Metadata-Flavor"] == "Google"
            self.send_response(404 if told is None else 200)
            self.end_headers()
            self.wfile.write((told or "").encode())

        def log_message(self, *_):
            pass

    monkeypatch.setattr(hosts.glob, "glob", lambda pattern: ["/dev/accel0"])
    with http.server.HTTPServer(("localhost", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = {"GCE_METADATA_IP": f"localhost:{server.server_port}"}
        assert hosts.launcher(there) == name
        assert hosts.launcher(there | {"JAX_PLATFORMS": "cpu"}) is None
        server.shutdown()


def test_flags_that_are_not_whole_are_one_sentence(capsys):
    assert main(["train", "--coordinator=localhost:1"]) == 1
    assert "give all three" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "processes", "process", "sentence"),
    [
        ("localhost", 2, 0, "--coordinator=localhost is not HOST:PORT"),
        ("localhost:", 2, 0, "is not HOST:PORT"),
        (":8476", 2, 0, "is not HOST:PORT"),
        ("localhost:0", 2, 0, "a free port"),
        ("localhost:65536", 2, 0, "a free port"),
        ("localhost:port", 2, 0, "a free port"),
        ("localhost:8476", 2, 2, "count from 0 to 1"),
    ],
)
def test_flags_that_find_nobody_are_one_sentence(capsys, where, processes, process, sentence):
    flags = [f"--coordinator={where}", f"--processes={processes}", f"--process={process}"]
    assert main(["train", *flags]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_an_open_mpi_that_hides_process_0_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert main(["train"]) == 1
    assert "--processes=$OMPI_COMM_WORLD_SIZE" in capsys.readouterr().err


def test_every_device_gets_the_notes_of_all():
    mesh = make_mesh(MeshShape(2, 2, 2))
    told = hosts.make_exchange(mesh)(hosts.Notes(stop=True, busy=0.5, memory=3.0))
    np.testing.assert_array_equal(told, [[1.0, 0.5, 3.0]] * 8)
    assert told.is_fully_replicated


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os.abort()", "a process was cut off, or lost process 0"),
        ("say('so it is')", "so it is"),
        ("pass", None),
    ],
)
def test_a_process_that_is_cut_off_leaves_one_sentence(code, said):
    script = (
        f"import os\nfrom polylm_jax.parallel import hosts\nwith hosts._last_words() as say: {code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, timeout=120
    )
    told = [line for line in done.stderr.splitlines() if line.startswith("polylm train:")]
    assert len(told) == (said is not None)
    assert said is None or said in told[0]


def test_a_signal_that_a_launcher_passes_on_ends_nothing_that_saves(monkeypatch):
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with hosts.stop_signals() as stopped:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            signal.raise_signal(number)
            assert stopped.is_set()
        now = time.monotonic()
        monkeypatch.setattr(hosts.time, "monotonic", lambda: now + 60)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    signal.signal(signal.SIGINT, ours)
