"""`polylm sweep`: which runs there are, what each end leads to, and how a sweep is finished."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading

import pytest

from polylm_jax.__main__ import main
from polylm_jax.errors import UserError
from polylm_jax.runs import sweep
from polylm_jax.runs.sweep import alone, members, read_over, see_through
from polylm_jax.train import heartbeat
from polylm_jax.train.ends import ENDS, RunEnded
from tests.conftest import gin_flags
from tests.runs.test_compare import make


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=5e-4,1e-3", ["5e-4", "1e-3"]),
        ("a.b=((0, 0.3),),((0, 0.3), (9, 0.6))", ["((0, 0.3),)", "((0, 0.3), (9, 0.6))"]),
        ("a.b='x,y',\"it's, (\",z", ["'x,y'", '"it\'s, ("', "z"]),
        ("a.b={'k': ((0, 1),)}, {}", ["{'k': ((0, 1),)}", "{}"]),
        ("SEED=1", ["1"]),
        ("a.b=%ONE,%TWO", ["%ONE", "%TWO"]),
        (r"a.b='don\'t, so',b", [r"'don\'t, so'", "b"]),
    ],
)
def test_a_comma_in_brackets_or_quotes_belongs_to_its_value(text, values):
    assert list(read_over(text).values) == values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.b", "write --over='SETTING=VALUE,VALUE'"),
        ("=1", "write --over='SETTING=VALUE,VALUE'"),
        ("a.b=1,,2", "has an empty value"),
        ("a.b=", "has an empty value"),
        ("a.b=1,2,1", "has the value 1 twice"),
        ("a.b=((0,1)", "does not close )"),
        ("a.b=0,1)", 'closes a ")" that is not open'),
        ("a.b='x", "does not close '"),
        ("train.folder=a,b", "a folder of its own"),
    ],
)
def test_what_is_no_over_is_one_sentence(text, words):
    with pytest.raises(UserError) as raised:
        read_over(text)
    assert words in str(raised.value)


def test_the_product_is_in_order_and_each_name_is_a_folder_s():
    found = members([read_over("optimizer.clip=1,2"), read_over("train.seed=1,2,3")])
    assert [one.name for one in found][:4] == [
        *("clip=1,seed=1", "clip=1,seed=2", "clip=1,seed=3", "clip=2,seed=1")
    ]
    assert found[4].values == ("optimizer.clip=2", "train.seed=2")
    both = members([read_over("train.seed=1"), read_over("curriculum.seed=2")])
    assert both[0].name == "train.seed=1,curriculum.seed=2"
    odd = members([read_over("a.b='x/y','x y',%M,((0, 0.3),),''," + "9" * 300)])
    names = [one.name for one in odd]
    assert names[2:4] == ["b=M", "b=0-0.3"]
    assert len(set(names)) == 6
    assert all("/" not in name and len(name) < 80 for name in names)
    with pytest.raises(UserError, match="too long"):
        members([read_over(f"a.b{i}={'9' * 59}") for i in range(5)])
    with pytest.raises(UserError, match="given twice"):
        members([read_over("a.b=1"), read_over("a.b=2")])


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(sweep, "PAUSE", 0.0)


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_run_is_started_as_often_as_the_table_says(end, quick, tmp_path):
    """Each start ends so, but for the sixth, which finishes."""
    log = tmp_path / "log"
    script = f'echo x >>{log}; [ "$(wc -l <{log})" -lt 6 ] || exit 0; exit {end.status}'
    last = see_through(["sh", "-c", script], threading.Event(), lambda _: None)
    starts = log.read_text().count("x")
    times = {"done": 1, "person": 1, "retry": 3, "again": 6}
    assert starts == times[end.action]
    assert last.word == ("finished" if end.action == "again" else end.word)


def test_a_killed_process_has_failed_and_is_tried_again(quick):
    said = []
    end = see_through(["sh", "-c", "kill -9 $$"], threading.Event(), said.append)
    assert end.word == "failed"
    assert len(said) == 2
    assert "status 137" in said[0]


def test_a_stop_reaches_the_run_once_and_it_is_not_started_again(tmp_path):
    log, stopped = tmp_path / "log", threading.Event()
    script = (
        f'trap "echo told >>{log}; exit 75" TERM; echo up >>{log}; while :; do sleep 0.05; done'
    )
    timer = threading.Timer(0.5, stopped.set)
    timer.start()
    assert see_through(["sh", "-c", script], stopped, print).word == "stopped"
    assert log.read_text() == "up\ntold\n"


def test_of_two_sweeps_the_second_says_so(tmp_path):
    with alone(str(tmp_path)):
        with pytest.raises(RunEnded, match=f"process {os.getpid()} on .*give another --out") as one:
            alone(str(tmp_path)).__enter__()
        assert one.value.word == "busy"
    with alone(str(tmp_path)):
        pass


@pytest.fixture
def here(monkeypatch):
    """Runs of a sweep are made in this process; returns what was started."""
    started = []

    def follow(command, stopped):
        started.append(command[2:])
        return main(list(command[3:]))

    monkeypatch.setattr(sweep, "_follow", follow)
    monkeypatch.setattr(sweep, "PAUSE", 0.0)
    return started


def test_a_sweep_ends_with_a_comparison_and_is_finished_by_the_same_command(
    tiny, tmp_path, here, capsys
):
    out = tmp_path / "out"
    settings = tiny | {"train.steps": 2, "train.validate_rows": 1, "train.folder": tmp_path / "x"}
    flags = ["sweep", *gin_flags(settings), f"--out={out}", "--over=optimizer.clip=0.5,1.0"]
    assert main([*flags, "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert not out.exists()
    first = shlex.split(lines[0])
    assert first[:2] == ["polylm", "train"]
    assert first[-2:] == ["--gin.optimizer.clip=0.5", f"--gin.train.folder={out}/clip=0.5"]
    # the first by hand, as a pod would
    assert main(first[1:]) == 0
    assert main(flags) == 0
    assert [command[-1] for command in here] == [f"--gin.train.folder={out}/clip=1.0"]
    assert "| validation text | clip=0.5 | clip=1.0 |" in (out / "compare.md").read_text()
    assert (out / "compare.png").is_file()
    assert "1 are finished" in capsys.readouterr().out
    # all are finished
    assert main([*flags, "--dry_run"]) == 0
    assert capsys.readouterr().out == ""
    # more steps go on; another model is no finished run
    assert main([*flags, "--gin.train.steps=3", "--gin.train.keep=9", "--dry_run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main([*flags, "--gin.optimizer.beta1=0.8", "--dry_run"]) == 1
    assert "finished, but with other settings (optimizer.beta1: 0.9 -> 0.8)" in (
        capsys.readouterr().err
    )


def test_what_tuning_sets_by_itself_is_no_other_setting(tmp_path, capsys):
    folder = make(tmp_path / "clip=1.0")
    finished = {"state": "finished", "step": 40, "steps": 40, "pid": 1, "host": "h", "processes": 1}
    heartbeat.write(folder, finished | {"time": 1.0, "moved": 1.0})
    flags = ["sweep", f"--out={tmp_path}", "--over=optimizer.clip=1.0", "--dry_run"]
    flags += ["--gin.train.seed=1", "--gin.train.steps=30"]
    assert main([*flags, "--gin.tune.data=('de.jsonl',)"]) == 0
    assert capsys.readouterr().out == ""
    assert main(flags) == 1
    assert "(train.steps: 40 -> 30)" in capsys.readouterr().err


def test_what_breaks_one_run_stops_no_other_and_is_the_status(tmp_path, monkeypatch, capsys):
    ends = iter([65, 1, 1, 1, 0])
    monkeypatch.setattr(sweep, "_follow", lambda command, stopped: next(ends))
    monkeypatch.setattr(sweep, "PAUSE", 0.0)
    flags = ["sweep", f"--out={tmp_path}", "--over=train.seed=1,2,3"]
    assert main(flags) == ENDS["stuck"].status
    said = capsys.readouterr()
    assert "2 of 3 runs did not finish: seed=1 (stuck), seed=2 (failed)." in said.err
    assert "Fewer than two runs are finished" in said.out


def test_a_value_that_no_setting_takes_is_refused_before_any_run(tmp_path, here, capsys):
    flags = ["sweep", f"--out={tmp_path}/out", "--over=optimizer.clip=1,no"]
    assert main(flags) == 1
    assert "optimizer.clip = 'no' is of the wrong type" in capsys.readouterr().err
    assert not here
    assert not (tmp_path / "out").exists()


@pytest.mark.rare
def test_a_sweep_that_is_told_to_stop_saves_and_goes_on(tiny, tmp_path):
    settings = tiny | {"train.steps": 400, "train.checkpoint_every": 0}
    out = tmp_path / "out"
    command = [sys.executable, "-m", "polylm_jax", "sweep", *gin_flags(settings)]
    command += ["--over=train.seed=1,2", f"--out={out}", "--gin.mesh.cpu_devices=8"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    beat = out / "seed=1" / "heartbeat.json"
    while not beat.is_file() or json.loads(beat.read_text())["step"] < 10:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120)[1].endswith("The same command goes on.\n")
    assert process.returncode == ENDS["stopped"].status
    saved = json.loads(beat.read_text())
    assert saved["state"] == "stopped"
    assert 10 <= saved["step"] < 400
    done = subprocess.run([*command, "--gin.train.steps=402"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "is finished" not in done.stderr
    assert (out / "compare.md").is_file()
