"""Whole runs: what they log, and that stopping, resuming and other meshes change nothing."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback

import jax
import numpy as np
import pytest
from jax._src.array import ArrayImpl

from polylm_jax import config
from polylm_jax.__main__ import main
from polylm_jax.data.rows import open_store
from polylm_jax.errors import UserError
from polylm_jax.parallel import hosts
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.runs.log import counts_of, deviation, of_kind, read_metrics
from polylm_jax.runs.status import status_of
from polylm_jax.train import checkpoint, exam, loop, validation
from polylm_jax.train.restore import restore_state
from polylm_jax.train.step import abstract_state
from tests.conftest import gin_flags
from tests.evaluation import BENCHMARKS
from tests.train.test_metrics import scalars


def train(settings, folder, **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return main(["train", *gin_flags(settings | {"train.folder": folder} | changes)])


def records(folder, kind="train"):
    return of_kind(read_metrics(folder), kind)


def losses(folder):
    return [record["loss"] for record in records(folder)]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run of 12 steps that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(tiny, folder) == 0
    return folder


def test_a_run_learns_and_logs_every_step(whole):
    train, valid = records(whole), records(whole, "valid")
    assert [record["step"] for record in train] == list(range(1, 13))
    assert [record["step"] for record in valid] == [0, 6, 12]
    before, after = valid[0]["bits_per_byte"], valid[-1]["bits_per_byte"]
    assert len(after) == 18
    assert np.mean(list(after.values())) < np.mean(list(before.values()))
    assert train[-1]["tokens"] == 12 * 16 * 16
    # the untrained model is near a uniform guess over 1,024 pieces
    assert train[0]["loss"] == pytest.approx(np.log(1024), abs=0.2)
    assert list((whole / "tensorboard").glob("events*"))


def test_the_batches_follow_the_schedule_within_one_row(whole):
    assert 0 < max(map(deviation, records(whole))) < 1
    shares = [record["non_english"] for record in records(whole)]
    assert np.mean(shares[:4]) == pytest.approx(0.3, abs=0.03)
    assert np.mean(shares[8:]) == pytest.approx(0.6, abs=0.03)


def test_a_resumed_run_is_bitwise_the_undisturbed_one(whole, tiny, tmp_path):
    assert train(tiny, tmp_path / "run", train__steps=7) == 0
    assert train(tiny, tmp_path / "run") == 0
    assert losses(tmp_path / "run") == losses(whole)
    assert records(tmp_path / "run", "valid")[-1] == records(whole, "valid")[-1]


EVALUATION = {
    "evaluation.folder": BENCHMARKS,
    "evaluation.limit": 2,
    "evaluation.row_length": 64,
    "evaluation.languages": ("th", "zh", "fr"),
}


def test_evaluations_are_seen_and_change_nothing(whole, tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    assert train(tiny | EVALUATION, folder, train__evaluate_every=5) == 0
    said = capsys.readouterr().err
    assert "missing: ntrex fr: no ntrex/fr.txt in" in said
    assert "missing: xcopa" not in said
    assert losses(folder) == losses(whole)
    assert records(folder, "valid")[-1] == records(whole, "valid")[-1]
    found = records(folder, "evaluation")
    assert [record["step"] for record in found] == [0, 5, 10, 12]
    last = found[-1]
    assert list(last["score"]) == ["ntrex", "word_order", "held_out_order", "xcopa"]
    assert f"Step 12: {exam.told(last)}." in said
    assert f"Step 12: {exam.told(last)}." in status_of(str(folder)).lines[1]
    assert ("evaluation/score/ntrex", 12, np.float32(last["score"]["ntrex"])) in scalars(
        folder / "tensorboard"
    )
    assert any("evaluation" in record["seconds"] for record in counts_of(records(folder)))
    # of so few steps it takes far more than its share, and that is said once
    assert said.count("of the time; train.evaluate_every = ") == 1
    # what a run says of itself is what is said of it afterwards
    flags = gin_flags(EVALUATION | {"corpus.path": tiny["corpus.path"]})
    small = "--gin_file=gin_configs/evaluation/small.gin"
    assert main(["evaluate", f"--run={folder}", small, *flags]) == 0
    results = json.loads((folder / "evaluation/12/results.json").read_text())["results"]
    names = {"xcopa_th": "acc", "ntrex_zh": "bits_per_byte", "held_out_order_fr": "acc"}
    for name, measure in names.items():
        task, _, language = name.rpartition("_")
        after = results[name][f"{measure},none"]
        np.testing.assert_allclose(last["by_language"][f"{task}/{language}"], after, 1e-5)


def test_an_evaluation_without_any_file_is_one_sentence(tiny, tmp_path, capsys):
    nothing = {"evaluation.folder": tmp_path, "corpus.path": tmp_path / "none"}
    assert train(tiny | nothing, tmp_path / "run", train__evaluate_every=5) == 1
    assert "train.evaluate_every asks for scores, but there is no" in capsys.readouterr().err


def test_a_finished_run_says_so_and_changes_nothing(whole, tiny, capsys):
    before = (whole / "metrics.jsonl").read_text()
    assert train(tiny, whole) == 0
    assert "Step 12 of 12 is done" in capsys.readouterr().err
    assert (whole / "metrics.jsonl").read_text() == before


def test_whole_records_say_where_the_time_went(whole):
    for record in counts_of(records(whole)):
        seconds = record["seconds"]
        assert {"step", "devices", "data"} <= seconds.keys()
        assert sum(seconds.values()) <= 2 * seconds["step"]
        assert record["slowest_host"] == 0
        assert record["slowest_host_seconds"] >= 0
        assert record["memory_gib"] is None  # a CPU does not say
        # in the seconds of the step after; the last step has none
        assert ("checkpoint" in seconds) == (record["step"] in (10, 12))
        assert ("validation" in seconds) == (record["step"] in (5, 10))


def test_records_are_whole_at_saves_every_so_many_steps_and_at_the_end(whole, tiny, tmp_path):
    assert [record["step"] for record in counts_of(records(whole))] == [5, 10, 12]
    once = {"train__checkpoint_every": 100, "train__validate_every": 100}
    assert train(tiny, tmp_path / "each", train__log_every=1, **once) == 0
    assert train(tiny, tmp_path / "few", train__log_every=7, **once) == 0
    each, few = records(tmp_path / "each"), records(tmp_path / "few")
    assert counts_of(each) == each
    assert [record["step"] for record in counts_of(few)] == [7, 12]
    assert sum(len(json.dumps(r)) for r in few if r not in counts_of(few)) < 10 * 260
    for record, (start, end) in zip(counts_of(few), [(0, 7), (7, 12)], strict=True):
        same = [each[end - 1][name] for name in ("row_counts", "schedule_counts", "rows")]
        assert [record[name] for name in ("row_counts", "schedule_counts", "rows")] == same
        # the mean of a source's losses since the last such record, each row weighing the same
        total, rows = dict.fromkeys(record["row_counts"], 0.0), dict.fromkeys(same[0], 0)
        for before, one in zip([{}, *each][start:end], each[start:end], strict=True):
            for source, count in one["row_counts"].items():
                new = count - before.get("row_counts", {}).get(source, 0)
                rows[source] += new
                total[source] += new and new * one["loss_by_source"][source]
        assert record["loss_by_source"] == {
            source: pytest.approx(total[source] / rows[source], rel=1e-4)
            for source in rows
            if rows[source]
        }
    # the deviation is that of each step, though rows are counted now and then
    assert [deviation(r) for r in few] == [deviation(r) for r in each]
    for record in each:
        read, due = record["row_counts"], record["schedule_counts"]
        off = max(abs(read[source] - due[source]) for source in read)
        assert deviation(record) == pytest.approx(off, abs=1e-3)


def test_a_run_that_goes_back_shows_the_branch_that_is_alive(whole, tiny, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step in (10, 12):
        shutil.rmtree(run / "checkpoints" / str(step))
    assert train(tiny, run, train__steps=5) == 0
    assert "Step 5 of 5 is done" in capsys.readouterr().err
    assert losses(run) == losses(whole)[:5]
    assert train(tiny, run, train__steps=9) == 0
    assert [record["step"] for record in records(run)] == list(range(1, 10))
    assert [record["step"] for record in records(run, "valid")] == [0, 6, 9]
    assert losses(run) == losses(whole)[:9]
    shown = [(tag, step) for tag, step, _ in scalars(run / "tensorboard")]
    assert len(shown) == len(set(shown))
    assert [step for tag, step in shown if tag == "train/loss"] == list(range(1, 10))
    assert [step for tag, step in shown if tag == "valid/loss/en"] == [0, 6, 9]
    assert main(["report", f"--run={run}"]) == 0
    said = capsys.readouterr().out
    after = records(run, "valid")[-1]["bits_per_byte"]["en"]
    assert f"{after:.3f}" in next(line for line in said.splitlines() if "English (en)" in line)
    assert "over all sources and steps" in said


def test_no_held_out_rows_are_said_once_and_trained_without(tiny, tmp_path, capsys):
    paths = {"rows.path": tmp_path / "rows", "corpus.path": tmp_path / "corpus"}
    shutil.copytree(tiny["corpus.path"], tmp_path / "corpus")
    for path in (tmp_path / "corpus").glob("*/valid.jsonl"):
        path.write_text('{"text": "too short"}\n')
    assert main(["rows", *gin_flags(tiny | paths)]) == 0
    assert not validation.held_out(open_store(str(tmp_path / "rows")), 8)
    capsys.readouterr()
    assert train(tiny | paths, tmp_path / "run", train__steps=3, train__validate_every=1) == 0
    assert capsys.readouterr().err.count("no held-out rows") == 1
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2, 3]
    assert main(["report", f"--run={tmp_path / 'run'}"]) == 0
    assert "No validation of the trained model yet." in capsys.readouterr().out


def test_a_loss_that_is_no_number_is_said_by_all(tiny, tmp_path, capsys, monkeypatch):
    """As after a step that no rule refuses: the parameters are huge, the losses NaN."""
    run, make_update, make_evaluate = tmp_path / "run", loop.make_update, loop.make_evaluate

    def breaking_update(*arguments):
        update, calls = make_update(*arguments), itertools.count(1)

        def step(state, batch):
            state, values = update(state, batch)
            factor = np.float32(np.nan if next(calls) > 3 else 1)
            return state, {n: v * factor if "loss" in n else v for n, v in values.items()}

        return step

    monkeypatch.setattr(loop, "make_update", breaking_update)
    monkeypatch.setattr(
        loop, "make_evaluate", lambda *a: lambda *b: make_evaluate(*a)(*b) * np.float32(np.nan)
    )
    assert train(tiny, run, train__log_every=4) == 0
    assert "the loss is not a number" in capsys.readouterr().err
    for name in ("metrics.jsonl", "heartbeat.json"):
        for line in (run / name).read_text().splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [loss is None for loss in losses(run)] == [False] * 3 + [True] * 9
    assert counts_of(records(run))[0]["loss_by_source"]  # of the steps before it went wrong
    status = status_of(str(run))
    assert not status.healthy
    assert "Loss: not a number." in status.lines
    assert main(["report", f"--run={run}"]) == 0
    said = capsys.readouterr().out
    assert "The loss was not a number in 9 of 12 steps." in said
    assert "not a number │" in said


def test_no_step_waits_for_a_copy_to_the_host(tiny, tmp_path, monkeypatch):
    """Whatever the loop reads of a device, the next step is on its way already."""
    made, reads, calls, value = {}, [], [0], ArrayImpl._value.fget
    make_update, make_exchange = loop.make_update, hosts.make_exchange

    def remember(tree, call):
        made.update((id(leaf), (call, leaf)) for leaf in jax.tree.leaves(tree))
        return tree

    def counting_update(*arguments):
        update = make_update(*arguments)

        def step(state, batch):
            calls[0] += 1
            # the state's buffers are donated on, so hold no hope of reading it in the loop
            state, values = update(state, batch)
            return state, remember(values, calls[0])

        return step

    def counting_exchange(mesh):
        exchange = make_exchange(mesh)
        # notes go out before the step of the same round
        return lambda notes: remember(exchange(notes), calls[0])

    def spy(array):
        names = {frame.name for frame in traceback.extract_stack()}
        if array._npy_value is None and not names & {"save", "validate"} and calls[0]:
            reads.append((calls[0], made.get(id(array), (None,))[0]))
        return value(array)

    monkeypatch.setattr(loop, "make_update", counting_update)
    monkeypatch.setattr(hosts, "make_exchange", counting_exchange)
    monkeypatch.setattr(ArrayImpl, "_value", property(spy))
    # a checkpoint and a validation wait for their own step: both only at the end here
    once = {"train__validate_every": 100, "train__checkpoint_every": 100}
    assert train(tiny, tmp_path / "run", **once) == 0
    assert {call for call, _ in reads} == set(range(2, 13))
    early = [(call, of) for call, of in reads if of is None or of >= call]
    # at the end of a run there is no next step: its own metrics are read and its checkpoint made
    assert {call for call, _ in early} <= {12}, early


def test_microbatches_equal_the_whole_batch(whole, tiny, tmp_path):
    assert train(tiny, tmp_path / "run", train__microbatches=4) == 0
    # float32 sums in another order, carried through 12 steps of Adam
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole), atol=2e-4)


def test_meshes_train_alike(whole, tiny, tmp_path):
    shape = {"mesh__data": 1, "mesh__fsdp": 8, "mesh__tensor": 1}
    assert train(tiny, tmp_path / "run", **shape) == 0
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole), atol=2e-4)


def settings_of(tiny):
    config.parse([], [flag.removeprefix("--gin.") for flag in gin_flags(tiny)])
    return config.get("model"), config.get("init"), config.get("optimizer")


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 2, 1)])
def test_a_checkpoint_restores_on_another_mesh(whole, tiny, shape):
    settings = settings_of(tiny)

    def restored(shape):
        mesh = make_mesh(MeshShape(*shape), jax.devices()[: int(np.prod(shape))])
        manager = checkpoint.open_existing(str(whole))
        state = checkpoint.restore(manager, 12, abstract_state(*settings, mesh))
        manager.close()
        assert state["params"]["embedding"].sharding.mesh == mesh
        return jax.device_get(state)

    one, other = restored((2, 2, 2)), restored(shape)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    "name", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.rare)]
)
def test_a_signal_saves_and_the_same_command_goes_on_bitwise(whole, tiny, tmp_path, name):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "polylm_jax", "train", *gin_flags(tiny)]
    command += [f"--gin.train.folder={folder}", "--gin.mesh.cpu_devices=8"]
    environment = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    log = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count('"train"') >= 2):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(name)
    _, said = process.communicate(timeout=120)
    assert len(losses(folder)) < 12, "the signal came too late to show anything"
    assert process.returncode == 75, said
    assert "polylm train: stopped: " in said.splitlines()[-1]
    assert "the same command goes on from there" in said
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert losses(folder) == losses(whole)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model.d_ff": 64}, "model.d_ff = 32 (now 64)"),
        ({"curriculum.seed": 5}, "another curriculum"),
        ({"train.batch": 15}, "train.batch = 15 cannot be split"),
        ({"model.context": 8}, "rows of 16 tokens do not fit model.context = 8"),
        ({"model.vocabulary": 512}, "the tokenizer has 1024 pieces but model.vocabulary is 512"),
        ({"mesh.data": 3}, "does not make up the 8 devices here"),
        ({"rows.path": "nowhere"}, "no rows at nowhere"),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_one_sentence(whole, tiny, capsys, change, sentence):
    before = (whole / "metrics.jsonl").read_text()
    assert main(["train", *gin_flags(tiny | {"train.folder": whole} | change)]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert (whole / "metrics.jsonl").read_text() == before


def test_other_rows_and_another_tokenizer_are_named(whole, tiny, tmp_path, capsys):
    other = tiny | {"rows.path": tmp_path / "rows", "rows.length": 8, "train.folder": whole}
    assert main(["rows", *gin_flags(other)]) == 0
    assert main(["train", *gin_flags(other)]) == 1
    assert "another row store" in capsys.readouterr().err
    bpe = {"tokenizer.path": tmp_path / "bpe", "tokenizer.algorithm": "bpe"}
    assert main(["tokenizer", *gin_flags(tiny | bpe)]) == 0
    assert main(["train", *gin_flags(tiny | bpe | {"train.folder": whole})]) == 1
    assert "were made with another tokenizer" in capsys.readouterr().err


def test_every_checkpoint_holds_the_gin_that_made_it(whole):
    manager = checkpoint.open_existing(str(whole))
    meta = checkpoint.read_meta(manager, 12)
    assert manager.all_steps() == [5, 10, 12]
    manager.close()
    assert meta["rows"] == 12 * 16
    assert "train.batch = 16" in meta["gin"]
    config.parse([], [], meta["gin"])
    assert config.resolved() == meta["gin"]
    assert json.dumps(meta["fingerprints"])


@pytest.mark.rare
def test_another_type_of_moments_is_told_and_no_damage(whole, tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    narrow = {"optimizer__moments": "bfloat16", "train__steps": 14}
    assert train(tiny, folder, **narrow) == 0
    said = capsys.readouterr().err
    assert "Going on from step 12" in said
    assert "optimizer.moments was float32 and is bfloat16 now" in said
    assert not (folder / "damaged").exists()
    assert len(losses(folder)) == 14


def test_a_state_of_another_form_is_told_and_no_damage(whole, tiny):
    mesh = make_mesh(MeshShape(2, 2, 2))
    abstract = abstract_state(*settings_of(tiny), mesh)
    more = {"extra": abstract["step"]}
    manager = checkpoint.open_existing(str(whole))

    def restored(abstract):
        begun = []

        def begin(parts):
            begun.extend(parts)
            return {part: jax.numpy.ones(3) for part in parts}

        with jax.set_mesh(mesh):
            meta = checkpoint.read_meta(manager, 12)
            return *restore_state(manager, 12, meta, abstract, begin), begun

    state, remarks, begun = restored(abstract)
    assert not remarks + begun
    # what a later version wants besides, or in another form, begins anew
    for wanted in (abstract | more, abstract | {"usual": more}):
        other, remarks, begun = restored(wanted)
        (part,) = begun
        assert remarks == [f"{part} begins anew: the checkpoint has none of its form."]
        assert other.keys() == wanted.keys()
        jax.tree.map(np.testing.assert_array_equal, other["params"], state["params"])
    with pytest.raises(UserError, match="has the part optimizer in another form"):
        restored(abstract | {"optimizer": more})
    manager.close()


def test_a_reader_that_wants_another_size_is_told_the_runs(whole, capsys):
    command = ["generate", f"--run={whole}", "--prompt=a", "--gin.model.context=16"]
    assert main(command) == 1
    assert "model.context = 32 (now 16)" in capsys.readouterr().err


def test_where_rows_had_an_end_the_run_may_go_on_and_read_them_again(tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    rows = {"train__steps": 400, "train__validate_every": 0, "train__checkpoint_every": 0}
    assert train(tiny, folder, curriculum__on_end="refuse", **rows) == 66
    said = capsys.readouterr().err
    (last,) = (int(path.name) for path in (folder / "checkpoints").iterdir())
    assert f"Only {last} of 400 steps can be done: then all" in said
    assert len(losses(folder)) == last
    assert train(tiny, folder, curriculum__on_end="refuse", **rows) == 66
    assert train(tiny, folder, **rows | {"train__steps": last + 1}) == 0
    assert len(losses(folder)) == last + 1


def test_text_is_never_made_of_altered_parameters(whole, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    command = ["generate", f"--run={run}", "--prompt=a", "--gin.sampling.new_tokens=1"]
    for path in (run / "checkpoints" / "12" / "state").rglob("d/*"):
        content = bytearray(path.read_bytes())
        content[::1001] = bytes(byte ^ 1 for byte in content[::1001])
        path.write_bytes(content)
    assert main(command) == 1
    assert "the checkpoint of step 12 in" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints" / "12")
    assert main(command) == 0
