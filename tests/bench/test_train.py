"""The bench of the step: its figures agree with each other, its arithmetic with the compiler."""

import json
import math
import stat
import sys
from dataclasses import replace

import jax
import pytest

from polylm_jax import config
from polylm_jax.__main__ import main
from polylm_jax.bench import gpu, roofline, tracing, train
from polylm_jax.bench import peer as peers
from polylm_jax.bench.step import Work
from polylm_jax.data.schedule import Schedule
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Compute
from polylm_jax.model.parameters import Init, count
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.sizes import Size, flops_by_part, flops_per_token
from polylm_jax.train.optimizer import OptimizerSettings
from tests.conftest import TINY, gin_flags

SMALL = Size(vocabulary=512, context=64, layers=1, heads=2, d_model=256, d_ff=1024)
FLAT = Compute(dtype="float32", remat="none", loss_block=10**6)  # no loop, whose body counts once
ONE = {"data": 1, "fsdp": 1, "tensor": 1}

# What torch_peer.py says, from a peer without torch that keeps what it was asked.
PEER = """#!{python}
import json, pathlib, sys
assert sys.argv[1].endswith("torch_peer.py")
pathlib.Path("{asked}").write_text(sys.argv[2])
print(json.dumps({{"who": "stand-in", "dtype": "float32", "device": "cpu",
                  "compiled": False, "microbatches": 1}}))
sys.stdout.flush()
for line in sys.stdin:
    print(json.dumps({{"seconds": [2.0] * int(line), "peak_bytes": 7}}), flush=True)
"""


def script(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.rare
def test_every_figure_is_told_and_they_agree(tiny, tmp_path, capsys):
    asked = tmp_path / "asked.json"
    peer = script(tmp_path / "python", PEER.format(python=sys.executable, asked=asked))
    settings = tiny | {"train.folder": tmp_path / "run", "compute.loss_block": 32}
    file = tmp_path / "figures.json"
    flags = ["--steps=5", "--vs=torch", f"--peer_python={peer}", "--profile", "--roofline"]
    assert main(["bench", "train", f"--json={file}", *flags, *gin_flags(settings)]) == 0
    shown = capsys.readouterr().out
    result = json.loads(shown.splitlines()[-1])
    assert json.loads(file.read_text()) == result

    size = Size(1024, 32, 2, 2, 16, 32)
    tokens, pace = 16 * 16, result["pace"]
    assert (result["devices"], result["parameters"]) == (8, count(size))
    assert pace["steps"] == 5
    assert pace["p10"] <= pace["median"] <= pace["p90"]
    assert pace["tokens_per_second"] == pytest.approx(tokens / pace["median"])
    flops = pace["tokens_per_second"] * flops_per_token(size, 16) / 8
    assert result["flops_per_device"] == pytest.approx(flops)
    assert result["mfu"] is None  # no data sheet knows this CPU
    assert result["of_measured"] == pytest.approx(flops / result["limits"]["flops"])
    memory = result["memory"]
    assert memory["planned"] >= memory["arguments"] + memory["temporary"] > 0
    assert result["feed"]["steps"] == 5
    assert 0 <= result["feed"]["outside"] < 1

    peer = result["peer"]
    assert peer["pace"]["tokens_per_second"] == tokens / 2
    assert peer["ratio"] == pytest.approx(2 / pace["median"], rel=0.9)
    assert min(peer["ratios"]) <= peer["ratio"] <= max(peer["ratios"])
    told = json.loads(asked.read_text())
    same = {"vocabulary": 1024, "layers": 2, "heads": 2, "d_model": 16, "d_ff": 32, "context": 32}
    assert told.items() >= (same | {"batch": 16, "length": 16, "device": "cpu"}).items()
    assert (told["beta2"], told["dtype"], told["rows"]) == (0.95, "float32", 16)

    assert len(result["operations"]) == 10
    shares = [operation["share"] for operation in result["operations"]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))

    parts = {part["name"]: part for part in result["roofline"]}
    names = ["embedding", "attention", "mlp", "head + loss", "optimizer", "collectives", "rest"]
    assert list(parts) == names
    for part in parts.values():
        assert part["share"] == pytest.approx(part["measured_seconds"] / pace["median"])
    alone = sum(parts[name]["share"] for name in names if name != "collectives")
    assert alone == pytest.approx(1)
    assert parts["collectives"]["share"] > 0  # eight devices do talk
    figures = gpu.FIGURES["train"](result)
    assert figures[gpu.STEP] == pytest.approx(1e3 * pace["median"])
    assert sum(name.endswith(", ms") for name in figures) == 10
    for word in ("stand-in", "eager", "6N + 12·layers·d_model·length", "not halved", "Roofline"):
        assert word in " ".join(shown.split())


def test_the_peer_alone_begins_with_the_rows_that_it_is_told(tiny, tmp_path, capsys):
    asked = tmp_path / "asked.json"
    peer = script(tmp_path / "python", PEER.format(python=sys.executable, asked=asked))
    flags = ["--steps=3", "--peer_rows=4", f"--peer_python={peer}"]
    assert main(["bench", "torch", *flags, *gin_flags(tiny)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(asked.read_text())["rows"] == 4
    assert (result["pace"]["steps"], result["pace"]["tokens_per_second"]) == (3, 16 * 16 / 2)
    figures = gpu.FIGURES["torch"](result)
    assert figures == {
        gpu.STEP: 2000,
        "tokens/s": 128,
        "memory, GiB": 7 / 2**30,
        "parts of a batch": 1,
    }


def test_without_rows_of_this_length_there_is_no_feed_and_why_is_told(tiny, tmp_path):
    def work(rows, length):
        parts = (Size(), Init(), Compute(), MeshShape(), OptimizerSettings())
        return Work(*parts, 8, 1, length, Schedule(), str(rows))

    mesh = make_mesh(MeshShape())
    assert train.open_feed(work(tmp_path, 16), mesh) == (None, 1, f"no rows at {tmp_path}")
    why = f"the rows at {tiny['rows.path']} have 16 tokens, not 8"
    assert train.open_feed(work(tiny["rows.path"], 8), mesh) == (None, 1, why)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--vs=torch"], "needs torch and transformers; install polylm_jax[peer], or name"),
        (["--steps=0"], "--steps=0; it must lie between 1"),
        (["--gin.train.batch=6"], "train.batch = 6 is not a multiple of mesh data x fsdp x"),
        (["--gin.rows.length=64"], "rows.length = 64 is more than model.context = 32"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(flags, sentence, capsys, monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "train", *gin_flags(TINY), *flags]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_a_peer_that_ends_is_one_sentence_with_its_last_words(tmp_path):
    broken = script(tmp_path / "python", "#!/bin/sh\necho no module named torch >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"ended early \(no module named torch\)"):
        peers.PeerProcess(str(broken), "torch_peer.py", {})


def test_flops_by_part_by_hand():
    size = Size(vocabulary=10, context=8, layers=3, heads=2, d_model=4, d_ff=6)
    by_hand = {
        "embedding": 0,
        # qkv 4x12 + 12, out 4x4 + 4, norm 8 are 88 parameters; scores and mixing over 5 places
        "attention": 3 * (6 * 88 + 12 * 4 * 5),
        # 4x6 + 6, 6x4 + 4, norm 8 are 66
        "mlp": 3 * 6 * 66,
        "head": 6 * (10 * 4 + 8),
    }
    assert flops_by_part(size, 5) == by_hand
    assert flops_per_token(size, 5) == 6 * (count(size) - 8 * 4) + 12 * 3 * 4 * 5


def test_the_least_work_is_split_over_the_mesh():
    whole = roofline.work(SMALL, 8, 64, 4, 1e6, ONE)
    split = roofline.work(SMALL, 8, 64, 4, 1e6, {"data": 2, "fsdp": 2, "tensor": 2})
    for name, part in whole.items():
        assert split[name].flops == pytest.approx(part.flops / 8)
        assert split[name].bytes >= part.bytes / 8
    assert whole["collectives"] == roofline.Work()
    stream = 8 * 64 * 256 * 4 / 4
    float32 = 4 * count(SMALL)
    moved = float32 / 2 * 3 / 2 + 2 * float32 / 4 / 2 + 2 * 5 * stream / 2
    assert split["collectives"].moved == pytest.approx(moved)


def test_the_bound_is_the_slowest_of_the_three():
    limits = roofline.Limits(flops=10.0, bandwidth=5.0, links=1.0, measured=False)
    assert roofline.Work(100, 10, 1).bound(limits) == (10, "compute")
    assert roofline.Work(10, 100, 1).bound(limits) == (20, "bandwidth")
    assert roofline.Work(10, 10, 100).bound(limits) == (100, "links")


def test_a_limit_is_the_most_that_was_seen_of_it():
    seen = [roofline.Limits(5, 2, 1, measured=True), roofline.Limits(3, 4, 1, measured=True)]
    assert roofline.best(seen) == roofline.Limits(5, 4, 1, measured=True)


def test_work_equals_what_the_compiler_counts():
    mesh = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    settings = OptimizerSettings()
    with jax.set_mesh(mesh):
        made = roofline.compiled_parts(SMALL, FLAT, settings, mesh, 8, 64)
        counted = {}
        for name, make in made.items():
            function, arguments = make()
            counted[name] = function.lower(*arguments).compile().cost_analysis()
            if name == "optimizer":
                moments = sum(leaf.nbytes for leaf in jax.tree.leaves(arguments[1]))
    work = roofline.work(SMALL, 8, 64, 4, moments, ONE)
    flops = {name: cost.get("flops", 0) for name, cost in counted.items()}
    flops["mlp"] = (flops["layers"] - flops["layers with a quarter of the mlp"]) / 0.75
    flops["attention"] = flops["layers"] - flops["mlp"]
    for name in ("attention", "mlp", "head + loss", "optimizer"):
        assert flops[name] == pytest.approx(work[name].flops, rel=0.05), name
    for name in ("embedding", "head + loss", "optimizer"):
        assert work[name].bytes <= counted[name]["bytes accessed"], name
        assert work[name].bytes > 0.1 * counted[name]["bytes accessed"], name


def test_the_layers_are_timed_with_the_attention_of_the_step():
    mesh = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    size, flops = replace(SMALL, context=256), {}
    for attention in ("plain", "staircase"):
        compute = replace(FLAT, attention=attention)
        with jax.set_mesh(mesh):
            made = roofline.compiled_parts(size, compute, OptimizerSettings(), mesh, 1, 256)
            function, arguments = made["layers"]()
            flops[attention] = function.lower(*arguments).compile().cost_analysis()["flops"]
    # two steps leave out a quarter of the scores, forward and backward
    left_out = 12 * size.layers * size.d_model * 256**2 / 4
    assert flops["plain"] - flops["staircase"] == pytest.approx(left_out, rel=0.2)


def test_a_folder_without_a_trace_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="left no trace"):
        tracing.operations(str(tmp_path), "", 1, 1)


def test_the_run_for_a_cpu_has_the_size_it_says():
    config.parse(["gin_configs/runs/bench_cpu.gin"], [])
    size = config.get("model")
    assert 20e6 < count(size) < 22e6
    parts = flops_by_part(size, config.get("rows").length)
    assert parts["head"] / sum(parts.values()) == pytest.approx(0.27, abs=0.01)
    assert math.isclose(sum(parts.values()), flops_per_token(size, config.get("rows").length))
