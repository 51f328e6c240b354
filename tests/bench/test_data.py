import json
import math

import pytest

from polylm_jax.__main__ import main
from polylm_jax.bench import data
from tests.conftest import gin_flags


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(data, "ROUNDS", 1)
    monkeypatch.setattr(data, "WARM", 0)
    monkeypatch.setattr(data, "SECONDS", 0.1)
    monkeypatch.setattr(data, "TURNS", 1)
    monkeypatch.setattr(data, "TEXT", 300_000)
    monkeypatch.setattr(data, "RUN_LENGTH", 24)
    monkeypatch.setattr(data, "BATCH", 32)
    monkeypatch.setattr(data, "SEEKS", (10**3,))


def test_the_bench_tells_every_figure(tiny, tmp_path, capsys, brief):
    file = tmp_path / "figures.json"
    assert main(["bench", "data", f"--json={file}", *gin_flags(tiny)]) == 0
    shown = capsys.readouterr().out
    result = json.loads(shown.splitlines()[-1])
    assert json.loads(file.read_text()) == result
    assert set(result["tokenizing"]) == {"polylm_jax", "sentencepiece"}
    assert set(result["seeking"]["1000"]) == {"seconds", "megabytes"}
    short, long = result["feeding"].values()
    assert list(result["feeding"])[1] == "24"
    assert set(long) == {"polylm_jax", "memory map", "datasets"}
    assert set(short) == {*long, "seqio"}
    numbers = [
        *result["tokenizing"].values(),
        *(speed for fed in (short, long) for speed in fed.values() if speed is not None),
        result["seeking"]["1000"]["seconds"],
    ]
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    for who in ("sentencepiece", "memory map", "seqio", "datasets", "seeking row 1,000"):
        assert who in shown
