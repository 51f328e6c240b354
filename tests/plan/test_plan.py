"""Plans agree with the compiler where it says the same, and say clearly what does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from polylm_jax import config
from polylm_jax.__main__ import main
from polylm_jax.errors import UserError
from polylm_jax.model.lora import Lora
from polylm_jax.model.parameters import count
from polylm_jax.plan import certified, estimate
from polylm_jax.plan.compile import check, parts_here, too_large
from polylm_jax.plan.report import make_plan
from polylm_jax.plan.search import candidates, cheaper
from polylm_jax.plan.slices import slice_of
from polylm_jax.plan.text import whole
from polylm_jax.sizes import Size, flops_per_token
from polylm_jax.verbs.plan import SLICE, settings, slice_in
from tests.conftest import gin_flags

RUNS = Path(__file__).parents[2] / "gin_configs" / "runs"
# The parts of a 1.7B run that make its compilation long, made small; mesh and batch stay.
SMALL = {
    "model.vocabulary": 4096,
    "model.context": 128,
    "model.layers": 2,
    "model.heads": 2,
    "model.d_model": 128,
    "model.d_ff": 256,
    "rows.length": 128,
}


def parsed(name, changes):
    config.parse(
        [str(RUNS / f"{name}.gin")], [f"{key} = {value!r}" for key, value in changes.items()]
    )
    return settings()


# Each family, small; v5e on its whole slice, the others on four chips: 64 take thrice as long.
FAMILIES = {"v4_128": "v4-8", "v5e_256": "v5e-256", "v5p_128": "v5p-8", "v6e_64": "v6e-4"}
SPARSE = ("v5p", "v6e")  # families with SparseCores that sums may go through


@pytest.mark.parametrize(
    ("ending", "slice_name"),
    [
        pytest.param(*family, marks=pytest.mark.rare if family[1] != "v5p-8" else ())
        for family in FAMILIES.items()
    ],
)
def test_the_1b7_run_of_each_tpu_family_compiles_at_small_size(
    ending, slice_name, tmp_path, capsys
):
    file, record = RUNS / f"polylm_1b7_{ending}.gin", tmp_path / "plan.json"
    command = ["plan", f"--gin_file={file}", f"--json={record}", f"--out={tmp_path}"]
    chips = slice_of(slice_name).chips
    flags = gin_flags(SMALL | {"train.batch": 2 * chips, "mesh.fsdp": min(chips, 32)})
    assert main([*command, f"--slice={slice_name}", *flags]) == 0
    plan, words = json.loads(record.read_text()), capsys.readouterr().out
    assert plan["slice"]["name"] == slice_name
    assert plan["fits"]
    assert "It fits" in words
    assert "an assumption" in words
    sent = plan["compiled"]["collectives"]
    assert {one["axes"] for one in sent} >= {"fsdp"}
    # the run's flags send gathers beside work, and sums where a chip has SparseCores for them
    beside = {
        kind: sum(one["overlapped"] for one in sent if one["kind"] == kind)
        / sum(one["bytes"] for one in sent if one["kind"] == kind)
        for kind in ("all-gather", "reduce-scatter")
    }
    assert beside["all-gather"] > 1 / 5
    if ending.startswith(SPARSE):
        assert beside["reduce-scatter"] > 0.9
    assert (tmp_path / f"{file.stem}_{slice_name}.png").stat().st_size > 10_000
    # the products in the program's text are those of arithmetic, but for what is masked or padded
    counted = sum(part["flops"] for part in plan["compiled"]["parts"])
    assert counted == pytest.approx(sum(plan["flops"].values()), rel=0.25)
    # what arithmetic says of the state is what the compiler says of its arguments, but padding
    state = plan["bytes_by_kind"]["parameters"] + plan["bytes_by_kind"]["optimizer"]
    batch = 2 * 129 * 4
    assert plan["compiled"]["arguments"] == pytest.approx(state + batch, rel=0.25)


def test_over_two_slices_only_gradients_are_sent_and_the_network_is_in_the_bound(tmp_path, capsys):
    file, record = RUNS / "polylm_1b7_v5e_256.gin", tmp_path / "plan.json"
    flags = gin_flags(SMALL | {"train.batch": 16, "mesh.data": 2, "mesh.fsdp": 2})
    command = ["plan", f"--gin_file={file}", f"--json={record}", f"--out={tmp_path}", *flags]
    assert main([*command, "--slice=2xv5e-4"]) == 0
    plan, words = json.loads(record.read_text()), capsys.readouterr().out
    assert plan["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1}
    sent = {one["axes"]: one for one in plan["compiled"]["collectives"]}
    size = Size(**{name[6:]: n for name, n in SMALL.items() if name.startswith("model.")})
    # each of a slice's four chips sends its part of the gradient
    part = count(size) * 4 / 4
    assert part / 2 < sent["slices"]["bytes"] < 2 * part
    network = plan["bound_seconds"]["network"]
    assert network == pytest.approx(sent["slices"]["bytes"] / 3.125e9)
    assert "bytes/s between slices" in words


def test_a_batch_too_large_gets_a_verdict_and_not_a_trace(tmp_path, capsys):
    more = {"train.batch": 2**17, "mesh.fsdp": 4, "compute.loss_block": 2**24}
    flags = gin_flags(SMALL | more | {"compute.remat": "full"})
    file = RUNS / "polylm_1b7_v5e_256.gin"
    assert main(["plan", f"--gin_file={file}", "--slice=v5e-4", f"--out={tmp_path}", *flags]) == 1
    said = capsys.readouterr()
    assert "It does not fit: the compiler needs" in said.out
    assert "too few. What would help: train.microbatches = " in said.out
    assert "does not fit v5e-4" in said.err
    assert "Traceback" not in said.out + said.err


def test_both_ways_in_which_the_compiler_refuses_are_understood():
    temporaries = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (38.36G) exceeds available HBM (15.75G)."
    )
    used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.72G of 15.75G hbm."
    assert too_large(temporaries) == (38.36 * 2**30, 15.75 * 2**30)
    assert too_large(used) == (20.72 * 2**30, 15.75 * 2**30)
    assert too_large("INVALID_ARGUMENT: no such thing") is None


def test_layers_keep_what_their_policy_says():
    size, length = Size(layers=3, heads=4, d_model=64, d_ff=256, vocabulary=512, context=128), 128
    compute = config.BLOCKS["compute"]
    stream = 3 * length * 64 * 4
    assert estimate.kept_by_layers(size, compute(remat="full"), length, 1) == stream
    assert estimate.kept_by_layers(size, compute(remat="full"), length, 2) == stream
    every = estimate.kept_by_layers(size, compute(remat="none"), length, 1)
    some = estimate.kept_by_layers(size, compute(remat="dots"), length, 1)
    assert stream < some < every


def test_recomputation_costs_no_more_than_a_forward_pass():
    size, length = Size(layers=3, heads=4, d_model=64, d_ff=256, vocabulary=512, context=128), 128
    compute = config.BLOCKS["compute"]
    again = estimate.recomputed_flops(size, compute(remat="full"), length)
    layers = flops_per_token(size, length) - 6 * size.vocabulary * size.d_model
    assert 0.6 * layers / 3 < again <= layers / 3
    assert estimate.recomputed_flops(size, compute(remat="none"), length) == 0


def test_parameters_by_kind_are_twelve_bytes_each_over_all_chips():
    one_copy = {"mesh.data": 1, "mesh.fsdp": 64}
    run, where = parsed("polylm_13b_v5p_128", one_copy), slice_of("v5p-128")
    kinds = estimate.memory_by_kind(run, where)
    state = (kinds["parameters"] + kinds["optimizer"]) * where.chips
    assert state == pytest.approx(12 * 13_906_790_400, rel=0.02)  # norms are whole on each


def test_frozen_weights_are_narrow_and_have_no_gradient_and_no_moments():
    run, where = parsed("polylm_13b_lora_h100_1", {}), slice_of("h100-1")
    assert run.training.batch // run.training.microbatches == 8
    kinds = estimate.memory_by_kind(run, where)
    weights, adapters = 13_906_790_400, 40 * 16 * 16 * 5120
    assert kinds["parameters"] == 2 * weights + 4 * adapters
    assert kinds["optimizer"] == pytest.approx(8 * adapters, abs=64)
    assert kinds["gradients"] == 4 * adapters
    assert kinds["activations"] == 8 * 40 * 2048 * 5120 * 4
    assert kinds["logits and head"] == 1024 * 256_000 * 4 + 256_000 * 5120 * 2
    model, _ = estimate.flops_on_chip(run, where)
    whole, _ = estimate.flops_on_chip(replace(run, lora=Lora()), where)
    tokens = run.training.batch * run.length
    multiplied = weights - 2048 * 5120  # all but the table of positions
    assert whole - model == pytest.approx(tokens * (2 * multiplied - 6 * adapters))
    row = next(one for one in certified.rows(RUNS.parents[1]) if one.name.endswith("lora_h100_1"))
    assert row.compiles == "yes"
    assert float(row.memory.split()[0]) <= 70


def test_a_step_of_adapters_is_compiled_with_what_it_takes(tmp_path, capsys):
    file, record = RUNS / "polylm_13b_lora_h100_1.gin", tmp_path / "plan.json"
    changes = SMALL | {"train.batch": 8, "train.microbatches": 2, "mesh.fsdp": 4}
    command = ["plan", f"--gin_file={file}", f"--json={record}", f"--out={tmp_path}"]
    assert main([*command, "--slice=v5e-4", *gin_flags(changes)]) == 0
    plan, words = json.loads(record.read_text()), capsys.readouterr().out
    size = Size(**{name[6:]: n for name, n in SMALL.items() if name.startswith("model.")})
    d, ff = size.d_model, size.d_ff
    adapters = size.layers * 16 * (4 * d + 2 * d + 2 * (d + ff))
    assert f"{count(size):,} parameters, frozen beside {adapters:,} of adapters" in words
    # the frozen weights in bfloat16, adapters and two moments in float32, tokens and marks; what is
    # so narrow is padded, but not to the twelve bytes of a weight that is trained
    least = (2 * count(size) + 12 * adapters) / 4 + 2 * 129 * 5
    assert least <= plan["compiled"]["arguments"] < 0.6 * 12 * count(size) / 4


def test_a_slice_is_named_as_its_cloud_names_it():
    assert slice_of("v5p-128").chips == slice_of("v4-128").chips == 64
    assert slice_of("v5p-128").topology == "4x4x4"
    assert (slice_of("v5e-256").chips, slice_of("v5e-256").topology) == (256, "16x16")
    assert slice_of("h100-64").topology == "1x8x8"
    assert (slice_of("2xv5p-512").chips, slice_of("2xv5p-512").slices) == (512, 2)
    assert slice_of("4xv5e-256").topology == "16x16"
    assert slice_in("polylm_13b_4xv5e_256") == "4xv5e-256"
    with pytest.raises(UserError, match="GPUs come in no slices"):
        slice_of("2xh100-64")
    with pytest.raises(UserError, match=r'no slice "v5p-100"; the nearest is v5p-128'):
        slice_of("v5p-100")


def test_every_run_named_after_a_slice_suits_it_and_stands_in_the_table():
    table = (RUNS.parents[1] / "docs/plans.md").read_text()
    for file in filter(lambda file: SLICE.search(file.stem), RUNS.glob("*.gin")):
        run, where = parsed(file.stem, {}), slice_of(slice_in(file.stem))
        check(run, where)
        assert make_plan(file.stem, run, where, None, 0.5).fits, file.stem
        cells = table.split(f"| `{file.stem}` |")[1].splitlines()[0].split("|")
        memory, bound = cells[3].strip(), cells[4].partition(",")[0].strip()
        head = file.read_text()
        assert f"it compiles; {memory} GiB" in head, file.stem
        assert f"a step takes {bound} or more" in head, file.stem
        # no compiled program sends less than its mesh needs
        least = sum(one.bytes for one in estimate.least_sent(run, where))
        assert float(cells[6].strip() or "inf") >= round(0.95 * least / 1e9, 1), file.stem


def test_no_certified_run_waits_for_all_that_its_flags_promise_to_send_beside_work():
    """A GPU's flags promise it of both, a TPU's of gathers and, with SparseCores, of sums.

    Not of sums over tensor, which the next product waits for, or between slices.
    """
    table = (RUNS.parents[1] / "docs/plans.md").read_text()
    head, _, *rows = (
        [cell.strip(" `") for cell in line.split("|")[1:-1]]
        for line in table.split(certified.MARKS[0])[1].split(certified.MARKS[1])[0].splitlines()
    )
    assert any(row[head.index("gathers beside work")] for row in rows)
    for row in rows:
        where = slice_of(slice_in(row[0]))
        for column in ("gathers beside work", "sums beside work"):
            beside, _, count = row[head.index(column)].replace(",", "").partition(" of ")
            if not count:
                continue  # one chip sends nothing; a former certification did not count
            sparse = where.family in SPARSE and where.slices == 1 and row[1].endswith(" x 1")
            if where.gpu or (sparse and "sums" in column):
                assert int(beside) > int(count) / 2, row[0]
            elif "gathers" in column:
                assert int(beside) > int(count) / 10, row[0]


def test_a_batch_that_the_mesh_cannot_split_is_refused_before_any_compilation():
    run = parsed("polylm_1b7_v5e_256", {"train.batch": 100})
    with pytest.raises(UserError, match=r"train.batch = 100 cannot be split"):
        check(run, slice_of("v5e-256"))


def test_without_its_compiler_a_gpu_is_planned_by_arithmetic_and_says_so(
    monkeypatch, tmp_path, capsys
):
    sentence = "The compiler for h100 is not installed."
    for module in ("compile", "report"):
        monkeypatch.setattr(f"polylm_jax.plan.{module}.missing_compiler", lambda _: sentence)
    file = RUNS / "polylm_13b_h100_64.gin"
    assert main(["plan", f"--gin_file={file}", f"--out={tmp_path}"]) == 0
    words = capsys.readouterr().out
    assert sentence in words
    assert "not of a compiled program" in words


def test_a_search_proposes_only_what_divides_and_fits_the_fastest_first():
    run, where = parsed("polylm_13b_v4_128", {}), slice_of("v4-128")
    found = candidates(run, where)
    bounds = [estimate.bound(one, where, estimate.least_sent(one, where)).seconds for one in found]
    assert len(found) > 10
    assert bounds == sorted(bounds)
    for one in found:
        check(one, where)
        assert make_plan("x", one, where, None, 0.5).fits


def test_a_step_on_this_cpu_has_the_flops_of_arithmetic_in_its_text(capsys, monkeypatch):
    small = SMALL | {"train.batch": 2, "train.microbatches": 1, "compute.loss_block": 64}
    run = parsed("polylm_1b7", small | {"compute.remat": "dots"})
    found = {part.name: part for part in parts_here(run)}
    again = estimate.recomputed_flops(run.size, run.compute, run.length)
    expected = 2 * run.length * (flops_per_token(run.size, run.length) + again)
    assert whole(list(found.values())).flops == pytest.approx(expected, rel=0.1)
    assert found["loss"].flops == pytest.approx(
        6 * 2 * run.length * run.size.vocabulary * run.size.d_model
    )
    size = 2 * run.length * run.size.d_model * 3 * run.size.d_model * run.size.layers
    assert found["qkv, forward"].flops == 2 * size
    # what a policy keeps is not made again
    assert "qkv, again" not in found or not found["qkv, again"].flops
    monkeypatch.setattr("polylm_jax.verbs.plan.parts_here", lambda run: list(found.values()))
    assert main(["plan", "--text", "--slice=cpu", f"--gin_file={RUNS}/polylm_1b7.gin"]) == 0
    words = capsys.readouterr().out
    assert "A step on one device of this CPU, at 0.829 TFLOP/s" in words
    assert "optimizer" in words


@pytest.mark.rare
def test_certify_asks_for_the_cheapest_policy_that_fits():
    where = slice_of("v5p-128")
    run = parsed("polylm_1b7_v5p_128", {"compute.remat": "full"})
    found = cheaper(run, where)
    assert found
    bounds = [
        estimate.bound(one, where, estimate.least_sent(one, where)).seconds for one in (*found, run)
    ]
    assert bounds == sorted(bounds)
    for one in found:
        assert cheaper(one, where) == [
            other for other in found if bounds[found.index(other)] < 0.99 * bounds[found.index(one)]
        ]
    # a chip of 16 GiB has no room for more than "full" keeps of 32 rows
    small = parsed("polylm_1b7_v5e_256", {"mesh.fsdp": 4, "train.batch": 128})
    assert not cheaper(small, slice_of("v5e-4"))


@pytest.mark.rare
def test_a_search_writes_the_winner_as_a_gin_file_and_asks_the_compiler_once(tmp_path, capsys):
    file = RUNS / "polylm_1b7_v5e_256.gin"
    command = ["plan", "--search", "--best=1", "--slice=v5e-4", f"--gin_file={file}"]
    command += [f"--out={tmp_path}", *gin_flags(SMALL | {"train.batch": 16, "mesh.fsdp": 4})]
    assert main(command) == 0
    found = tmp_path / "polylm_1b7_v5e_256_v5e-4_found.gin"
    config.parse([str(found)], [])
    winner = settings()
    assert winner.mesh.data * winner.mesh.fsdp * winner.mesh.tensor == 4
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(kept) == 1
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == kept


def test_decoding_on_one_chip_is_compiled_and_compared(tmp_path, capsys):
    record = tmp_path / "decode.json"
    command = ["plan", "--decode=int8", f"--gin_file={RUNS}/polylm_1b7.gin", "--slice=v6e-4"]
    command += [f"--json={record}", *gin_flags(SMALL)]
    assert main(command) == 0
    plan, words = json.loads(record.read_text()), capsys.readouterr().out
    size = Size(**{name[6:]: n for name, n in SMALL.items() if name.startswith("model.")})
    # a byte for each kernel's and table's weight, four for the few others and the scales
    assert 1 < plan["weights"] / count(size) < 1.2
    assert plan["cache"] == 2 * size.layers * size.context * size.d_model * 2
    for part in ("reading", "adding"):
        assert plan["weights"] + plan["cache"] < plan[part] < 3 * plan["weights"]
    assert "It fits" in words
    token = sum(part["bytes"] for part in plan["token"])
    assert plan["cache"] < token < 3 * (plan["weights"] + plan["cache"])
    assert f"A token: {sum(part['kernels'] for part in plan['token']):,} kernels" in words
    assert main([*command, "--memory=0.001"]) == 1
    assert "It does not fit" in capsys.readouterr().out
