"""The bench of a GPU: each stage's outcome is kept at once, whatever becomes of the others."""

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from polylm_jax import config
from polylm_jax.__main__ import main
from polylm_jax.bench import gpu
from polylm_jax.bench.gpu import Outcome, Stage
from polylm_jax.errors import UserError
from polylm_jax.verbs import module_of
from tests.conftest import TINY, gin_flags

DOCUMENT = Path(__file__).parents[2] / "docs" / "gpu.md"
ALONE = {name: value for name, value in TINY.items() if not name.startswith("mesh")}

# In the place of Python: what a part of the bench would do, by its name.
STAND_IN = """#!{python}
import json, os, pathlib, sys, time
part, flags = sys.argv[4], sys.argv[5:]
if part == "torch":
    print("polylm bench: --vs=torch needs torch and transformers; install them.")
    sys.exit(1)
if part == "decode":
    pathlib.Path("{folder}/asleep").write_text(str(os.getpid()))
    time.sleep(600)
[file] = [flag.partition("=")[2] for flag in flags if flag.startswith("--json=")]
results = json.loads(pathlib.Path("{folder}/results").read_text())
pathlib.Path(file).write_text(json.dumps(results[part]))
"""
STEP = {
    "device": "a card",
    "pace": {"median": 0.5, "tokens_per_second": 2000.0},
    "mfu": 0.61,
    "memory": {"planned": 2**30},
    "compile_seconds": 9.0,
    "operations": None,
}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Children are the stand-in above, which says what is in the file "results"."""
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable, folder=tmp_path))
    python.chmod(0o755)
    (tmp_path / "results").write_text(json.dumps({"train": STEP}))
    monkeypatch.setattr(gpu.sys, "executable", str(python))
    return tmp_path


def gone(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_a_stage_in_a_process_of_its_own_and_one_that_fails(tmp_path, capsys, monkeypatch):
    table = [
        Stage("a step", "train", 900, ("--gin.train.microbatches=7",)),
        Stage("shapes", "ceilings", 900, predicted={"copy, TB/s": (1e-9, 3)}),
    ]
    monkeypatch.setattr(gpu, "stages", lambda batch: table)
    out = tmp_path / "out"
    assert main(["bench", "gpu", "--minutes=30", f"--out={out}", *gin_flags(ALONE)]) == 0
    shown = capsys.readouterr().out
    kept = json.loads((out / "results.json").read_text())
    failed, done = kept["outcomes"]
    why = "train.microbatches = 7 does not divide train.batch = 16"
    assert failed["why"].startswith(f"ended with status 1: {why}")
    assert done["why"] == ""
    assert done["figures"].keys() >= {"copy, TB/s", "attention with its gradient, TFLOP/s"}
    assert all(rate > 0 for rate in done["figures"].values())
    report = (out / "report.md").read_text()
    assert report in shown
    assert "on cpu" in report
    assert "| | copy, TB/s | 1e-09 to 3 | " in report
    assert why in (out / "log.txt").read_text()
    assert "model.d_model = 16" in (out / "settings.gin").read_text()


def test_a_stage_that_hangs_or_lacks_a_package_costs_no_other(stand_in):
    table = [
        Stage("hangs", "decode", 0.5, vs=True),
        Stage("lacks", "torch", 600),
        Stage("step", "train", 600, predicted={gpu.STEP: (400, 600)}),
        Stage("late", "train", 600),
    ]
    seen = []
    for outcome in gpu.run(table, "", 3000, stand_in, "/named/python"):
        seen.append(outcome)
        kept = json.loads((stand_in / "results.json").read_text())["outcomes"]
        assert [one["stage"] for one in kept] == [one.stage for one in seen]
        assert (stand_in / "report.md").read_text().count("not begun") == 4 - len(seen)
    hangs, lacks, step, late = seen
    assert hangs.why.startswith("stopped after ")
    assert lacks.why.endswith("--vs=torch needs torch and transformers; install them.")
    assert step.figures["tokens/s"] == late.figures["tokens/s"] == 2000
    report = (stand_in / "report.md").read_text()
    assert "| | ms a step | 400 to 600 | 500 |" in report
    assert "| the fastest step, MFU, % | 60 | 61 |" in report
    assert "--peer_python=/named/python" in (stand_in / "log.txt").read_text()


def test_without_transformers_decoding_goes_alone_and_the_report_says_so(stand_in, monkeypatch):
    monkeypatch.setattr("polylm_jax.bench.peer.importlib.util.find_spec", lambda name: None)
    for _ in gpu.run([Stage("decode", "decode", 0.3, vs=True)], "", 60, stand_in, ""):
        pass
    assert "needs torch and transformers; install" in (stand_in / "report.md").read_text()
    assert "--vs" not in (stand_in / "log.txt").read_text()


def test_no_stage_begins_when_the_time_is_over(stand_in):
    [outcome] = gpu.run([Stage("step", "train", 60)], "", 0, stand_in, "")
    assert outcome == Outcome("step", "no time was left", 0.0, {})


def test_sigterm_leaves_no_child_behind(stand_in):
    def end():
        while not (stand_in / "asleep").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    former = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=end).start()
    with pytest.raises(KeyboardInterrupt):
        list(gpu.run([Stage("hangs", "decode", 600)], "", 600, stand_in, ""))
    assert gone(int((stand_in / "asleep").read_text()))
    assert signal.getsignal(signal.SIGTERM) is former


def test_every_stage_of_the_table_is_a_command_that_the_bench_takes():
    table = gpu.stages(16)
    assert len({stage.name for stage in table}) == len(table)
    for stage in table:
        parser = argparse.ArgumentParser()
        module_of("bench").flags(parser)
        gin = [flag for flag in stage.flags if flag.startswith("--gin.")]
        parser.parse_args([stage.part, *(flag for flag in stage.flags if flag not in gin)])
        config.parse([], [flag.removeprefix("--gin.") for flag in gin], gpu.START)
        training = config.get("train")
        assert training.batch % 16 == 0
        assert config.get("compute").remat in ("dots", "full")
        assert stage.part in gpu.FIGURES
    config.parse([], [])


def test_the_document_has_the_table():
    text = DOCUMENT.read_text(encoding="utf-8")
    for number, stage in enumerate(gpu.stages(16), 1):
        assert f"| {number} | {stage.name} | {stage.limit:.0f} s |" in text
        for least, most in stage.predicted.values():
            assert f"{least:,.4g} to {most:,.4g}" in text


def test_stages_are_chosen_by_number():
    table = gpu.stages(16)
    assert gpu.chosen(table, "") == table
    assert gpu.chosen(table, "6,2") == [table[5], table[1]]
    with pytest.raises(UserError, match="--stages=2,x: 'x' is none of them: 1 ceilings, 2 step, l"):
        gpu.chosen(table, "2,x")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "name it with --out=DIR"),
        (["--out=.", "--minutes=2"], "already exists"),
        (["--out=new", "--minutes=0"], "--minutes=0; it must lie between 0.01 and 1,440"),
        (["--out=new", "--stages=99"], "--stages=99: '99' is none of them"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(flags, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    assert main(["bench", "gpu", *flags]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()
