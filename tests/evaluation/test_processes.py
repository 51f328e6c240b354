"""`polylm evaluate` in processes of its own: killed at random, several together, one lost."""

import base64
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from polylm_jax.evaluation.results import ANSWERS
from tests import scripted
from tests.evaluation import BENCHMARKS
from tests.evaluation.test_evaluate import GOLDEN, samples

LENGTH, LIMIT = 192, 20


class Forks:
    """Starts `polylm` in processes that share what they import."""

    def __init__(self):
        command = [sys.executable, "-m", "tests.evaluation.forks"]
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line):
        print(json.dumps(line), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def start(self, out, *arguments):
        return self.ask({"out": str(out), "arguments": [*map(str, arguments)]})

    def wait(self, number):
        return self.ask(number)


@pytest.fixture(scope="module")
def forks():
    found = Forks()
    yield found
    found.server.stdin.close()
    found.server.wait(60)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    return scripted.babbles(folder, base64.b64decode(GOLDEN["tokenizer"]), 384)


def arguments(run, folder, *more):
    settings = {
        "tasks": "('xcopa',)",
        "folder": BENCHMARKS,
        "limit": LIMIT,
        "rows": 1,
        "row_length": LENGTH,
        "dtype": "float32",
    }
    flags = [f"--gin.evaluation.{name}={value}" for name, value in settings.items()]
    return ["evaluate", f"--run={run}", f"--out={folder}", *flags, *more]


@pytest.fixture(scope="module")
def whole(forks, run, tmp_path_factory):
    """The results of a process that nobody disturbed, and the seconds in which it answered."""
    folder = tmp_path_factory.mktemp("whole")
    log = folder.with_name("whole.txt")
    number = forks.start(log, *arguments(run, folder))
    begun = when_there_are(folder, 1)
    assert forks.wait(number) == 0, log.read_text()
    return folder, time.monotonic() - begun


def when_there_are(folder, lines):
    """Waits until so many batches are answered; the time then."""
    end = time.monotonic() + 300
    while batches(folder) < lines and time.monotonic() < end:
        time.sleep(0.002)
    return time.monotonic()


def batches(folder):
    path = folder / ANSWERS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.json*")}


def kill_and_go_on(forks, run, whole, folder, kills, draw):
    """Kills it so often at random moments; then lets it end."""
    expected, seconds = whole
    log = folder.with_name(f"{folder.name}.txt")
    for _ in range(kills):
        before = batches(folder)
        number = forks.start(log, *arguments(run, folder))
        if draw.random() < 0.8:
            when_there_are(folder, min(before + 1, batches(expected)))
        time.sleep(draw.random() * seconds / 2)
        os.kill(number, signal.SIGKILL)
        assert forks.wait(number) in (-signal.SIGKILL, 0)
        kept = (folder / ANSWERS).read_bytes() if batches(folder) else b""
        assert (expected / ANSWERS).read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    number = forks.start(log, *arguments(run, folder))
    assert forks.wait(number) == 0, log.read_text()
    assert files(folder) == files(expected)
    computed = Path(f"{log}.batches").read_text().count("\n")
    assert computed <= batches(expected) + kills  # none but that which was about to be kept


def test_killed_at_random_it_goes_on_and_ends_bit_by_bit_the_same(forks, run, whole, tmp_path):
    draw = random.Random(time.time_ns())
    kill_and_go_on(forks, run, whole, tmp_path / "run", 3, draw)


@pytest.mark.rare
def test_killed_twenty_times_too(forks, run, whole, tmp_path):
    kill_and_go_on(forks, run, whole, tmp_path / "run", 20, random.Random(time.time_ns()))


def together(forks, run, folder, count, *more):
    """Processes that evaluate together: their numbers and logs."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    logs = [folder.with_name(f"{folder.name}-{i}.txt") for i in range(count)]
    flags = [f"--coordinator=localhost:{port}", f"--processes={count}"]
    flags.append("--gin.mesh.cpu_devices=2")
    flags += more
    numbers = [
        forks.start(log, *arguments(run, folder, *flags, f"--process={i}"))
        for i, log in enumerate(logs)
    ]
    return numbers, logs


def assert_same(folder, expected):
    names = [path.name for path in expected.glob("samples_*")]
    assert len(names) == 4
    for name in names:
        name = name.removeprefix("samples_").removesuffix(".jsonl")
        for one, other in zip(samples(folder, name), samples(expected, name), strict=True):
            sums = [[pair[0] for pair in of["filtered_resps"]] for of in (one, other)]
            np.testing.assert_allclose(*sums, atol=1e-4)
            assert one["acc"] == other["acc"]


@pytest.mark.rare
def test_two_processes_say_what_one_does(forks, run, whole, tmp_path):
    numbers, logs = together(forks, run, tmp_path / "run", 2)
    assert [forks.wait(number) for number in numbers] == [0, 0], logs[0].read_text()
    assert_same(tmp_path / "run", whole[0])
    assert "xcopa" in logs[0].read_text()
    assert "xcopa" not in logs[1].read_text()
    # what the two have answered serves one alone, and the other way round
    answers = tmp_path / "run" / ANSWERS
    kept = answers.read_bytes()
    number = forks.start(logs[0], *arguments(run, tmp_path / "run"))
    assert forks.wait(number) == 0
    assert " 0 tokens to compute" in logs[0].read_text()
    assert answers.read_bytes() == kept


@pytest.mark.rare
def test_four_do_and_a_lost_one_ends_the_others_within_a_minute(forks, run, whole, tmp_path):
    folder = tmp_path / "run"
    for victim in (2, 0):
        shutil.rmtree(folder, ignore_errors=True)
        numbers, logs = together(forks, run, folder, 4)
        when_there_are(folder, 2)
        os.kill(numbers[victim], signal.SIGKILL)
        lost = time.monotonic()
        codes = [forks.wait(number) for number in numbers]
        assert time.monotonic() - lost < 60
        assert codes == [-9 if i == victim else 76 for i in range(4)], logs[1].read_text()
        for i, log in enumerate(logs):
            if i != victim:
                said = Path(log).read_text()
                assert "polylm evaluate: lost: " in said
                assert "what is answered is kept" in said
    numbers, logs = together(forks, run, folder, 4)
    assert [forks.wait(number) for number in numbers] == [0] * 4, logs[0].read_text()
    assert_same(folder, whole[0])


@pytest.mark.rare
def test_four_write_what_one_does(forks, run, tmp_path):
    (tmp_path / "wmt20").mkdir()
    lines = [
        "Eins und zwei.\tOne and two.",
        "Der Zug kam spät.\tThe train was late.",
        "Gut.\tGood.",
    ]
    (tmp_path / "wmt20/wmt20.de-en.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    flags = ["--gin.evaluation.tasks=('wmt20',)", f"--gin.evaluation.folder={tmp_path}"]
    numbers, logs = together(forks, run, tmp_path / "four", 4, *flags)
    assert [forks.wait(number) for number in numbers] == [0] * 4, logs[0].read_text()
    number = forks.start(logs[0], *arguments(run, tmp_path / "one", *flags))
    assert forks.wait(number) == 0, logs[0].read_text()
    texts = [
        [one["filtered_resps"] for one in samples(tmp_path / folder, "wmt20-de-en")]
        for folder in ("four", "one")
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 3
