"""Rounds against a stand-in endpoint: whatever happens, the files are those of a calm run."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter

import pytest

from polylm_jax.__main__ import main
from tests.conftest import gin_flags
from tests.tune import child
from tests.tune.stand_in import KEY, endpoint

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.tune.child"])

FILES = ("es/seeds.jsonl", "es/es.jsonl", "es/rejected.jsonl", "es/report.md", "report.md")
SETTINGS = {
    "self_instruct.languages": ("es",),
    "self_instruct.rounds": 3,
    "self_instruct.first_requests": 4,
    "self_instruct.requests": 10,
    "writer.model": "stand-in",
    "writer.key_variable": "STAND_IN_KEY",
    "writer.timeout": 2.0,
    "writer.first_wait": 0.01,
    "writer.longest_wait": 0.05,
    "writer.usd_in": 1.0,
    "writer.usd_out": 2.0,
}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("STAND_IN_KEY", KEY)


def flags_of(server, folder, **more):
    where = {"self_instruct.folder": folder, "writer.url": server.url}
    return gin_flags(SETTINGS | where | {k.replace("__", "."): v for k, v in more.items()})


def self_instruct(part, server, folder, **more):
    return main(["self-instruct", part, *flags_of(server, folder, **more)])


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def journaled(folder):
    """Requests whose answer, with a text in it, is on disk."""
    lines = (folder / "es" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return {one["answered"] for one in records if "finish_reason" in one.get("body", "")}


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The files of a run to which nothing happened."""
    folder = tmp_path_factory.mktemp("calm")
    with pytest.MonkeyPatch.context() as patch, endpoint(delay=0) as server:
        patch.setenv("STAND_IN_KEY", KEY)
        assert self_instruct("seeds", server, folder) == 0
        assert self_instruct("run", server, folder) == 0
    assert max(Counter(server.answered).values()) == 1
    return contents(folder)


def test_a_run_keeps_tasks_of_every_round_and_says_why_it_rejects(calm):
    kept = [json.loads(line) for line in calm["es/es.jsonl"].splitlines()]
    rejected = [json.loads(line) for line in calm["es/rejected.jsonl"].splitlines()]
    assert len(kept) > 150
    assert all(list(task) == ["instruction", "input", "output"] for task in kept)
    assert not any(text == "None" for task in kept for text in task.values())
    reasons = Counter(task["reason"] for task in rejected)
    assert set(reasons) == {
        *("cut", "format", "empty", "link", "keyword", "language", "similar", "input")
    }
    assert {task["round"] for task in rejected} == {1, 2, 3}
    assert any(task["output"] == "18.\n19.\n20.\n### fin\nya" for task in kept)
    report = calm["es/report.md"].decode()
    assert f"Kept {len(kept):,} of {len(kept) + len(rejected):,} tasks" in report
    assert "| all | 24 | 24 |" in report


@pytest.mark.parametrize("concurrency", [1, 16])
def test_faults_change_nothing_and_each_request_is_answered_once(
    concurrency, calm, tmp_path, capsys
):
    with endpoint(faults=True) as server:
        for part in ("seeds", "run"):
            assert self_instruct(part, server, tmp_path, writer__concurrency=concurrency) == 0
    assert contents(tmp_path) == calm
    assert set(Counter(server.answered).values()) == {1}
    assert {"429", "500", "reset", "half", "empty"} <= set(server.played)
    said = capsys.readouterr()
    told = [*calm.values(), (tmp_path / "es" / "journal.jsonl").read_bytes()]
    assert KEY not in said.out + said.err
    assert not any(KEY.encode() in one for one in told)


@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_a_run_that_is_killed_ten_times_ends_with_the_files_of_a_calm_one(
    concurrency, calm, tmp_path
):
    draw = random.Random(concurrency)
    with endpoint(faults=True) as server:
        kills = []
        for part in ("seeds", "run"):
            arguments = ["self-instruct", part, *flags_of(server, tmp_path)]
            arguments.append(f"--gin.writer.concurrency={concurrency}")
            for _ in range(5):
                process = processes.Process(target=child.run, args=(arguments,))
                process.start()
                wanted = server.seen + draw.randint(1, 5)
                while server.seen < wanted and process.is_alive():
                    time.sleep(0.001)
                time.sleep(draw.uniform(0, 0.03))
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                kills.append((len(server.answered), journaled(tmp_path)))
            assert main(arguments) == 0
    assert contents(tmp_path) == calm
    for answers, known in kills:
        assert not known & set(server.answered[answers + concurrency :])
    again = Counter(server.answered).total() - len(server.bills)
    # what was between the network and the disk when the process died, and no more
    assert again <= len(kills) * concurrency
    assert set(server.answered) == set(server.bills)
