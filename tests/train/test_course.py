"""Starts from another run, and going on with another schedule or more rows, deliberately."""

import json

import jax
import numpy as np
import pytest

from polylm_jax.__main__ import main
from polylm_jax.data.curriculum import integral, locate
from polylm_jax.data.rows import open_store
from polylm_jax.data.schedule import Schedule, make_curriculum
from polylm_jax.runs.log import counts_of, deviation, of_kind, read_metrics
from polylm_jax.runs.status import status_of
from polylm_jax.train import checkpoint
from polylm_jax.train.course import going_on
from tests.conftest import gin_flags
from tests.data.sentences import SENTENCES

# one step is 16 rows of 16 tokens; the second stage begins after step 5 and is full after step 7
ONE, TWO = ((0, 0.3),), ((0, 0.3), (1280, 0.3), (1792, 0.6))
FAST = {"train.log_every": 1, "train.validate_every": 0}


def train(settings, folder, **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return main(["train", *gin_flags(settings | {"train.folder": folder} | changes)])


def records(folder, kind="train"):
    return of_kind(read_metrics(folder), kind)


def meta_of(folder, step):
    manager = checkpoint.open_existing(str(folder))
    meta = checkpoint.read_meta(manager, step)
    manager.close()
    return meta


def _asked(tiny):
    schedule = Schedule(non_english=TWO, smoothing=0.0)
    return schedule, open_store(str(tiny["rows.path"]))


@pytest.fixture(scope="module")
def staged(tiny, tmp_path_factory):
    """A run of stage one to step 5, that goes on with stage two, decided there, to step 12."""
    settings, folder = tiny | FAST, tmp_path_factory.mktemp("staged") / "run"
    assert train(settings, folder, train__steps=5, curriculum__non_english=ONE) == 0
    later = {"curriculum__non_english": TWO, "train__accept_changes": 5}
    assert train(settings, folder, **later) == 0
    return folder


def test_another_schedule_is_refused_until_it_is_accepted_at_its_step(staged, tiny, capsys):
    other = {"curriculum__non_english": ((0, 0.4),)}
    assert train(tiny, staged, **other) == 1
    assert "another curriculum" in (said := capsys.readouterr().err)
    assert "train.accept_changes = 12" in said
    assert train(tiny, staged, train__accept_changes=5, **other) == 1
    assert "train.accept_changes = 12" in capsys.readouterr().err


def test_the_second_stage_decided_late_is_exact_from_there_on(staged, tiny):
    counted = counts_of(records(staged))
    assert [record["step"] for record in counted] == list(range(1, 13))
    assert max(map(deviation, counted)) < 1
    schedule, store = _asked(tiny)
    plan = make_curriculum(schedule, {s: store.rows(s) for s in store.sources}, 16)
    at = counted[4]["row_counts"]
    for record in counted[5:]:
        new = integral(plan, record["rows"]) - integral(plan, 80)
        due = {source: at[source] + rows for source, rows in zip(plan.sources, new, strict=True)}
        for source in plan.sources:
            assert abs(record["row_counts"][source] - due[source]) < 1
            assert record["schedule_counts"][source] == pytest.approx(due[source], abs=2e-3)
    shares = [record["non_english"] for record in counted]
    assert np.mean(shares[:5]) == pytest.approx(0.3, abs=0.02)
    assert np.mean(shares[7:]) == pytest.approx(0.6, abs=0.02)


def test_a_change_is_noted_shown_and_goes_on_bitwise(staged, tiny, tmp_path, capsys):
    stages = meta_of(staged, 12)["stages"]
    assert [(stage["step"], stage["row"]) for stage in stages] == [(0, 0), (5, 80)]
    assert stages[1]["changed"] == ["curriculum"]
    assert "another curriculum from step 5 on" in status_of(str(staged)).lines[3]
    capsys.readouterr()
    assert main(["report", f"--run={staged}"]) == 0
    assert "The run has another curriculum from step 5 on." in capsys.readouterr().out
    # a row of the run is shown as the run has read it, and its plan counts what it has read
    settings = tiny | {"train.folder": staged, "curriculum.non_english": TWO}
    assert main(["rows", "show", "170", *gin_flags(settings)]) == 0
    course = going_on(meta_of(staged, 12), 12, 0, *_asked(tiny), "run")[0]
    source, row = locate(course.curriculum, 170, 171)
    words = f"Row 170 of the run is row {row[0]:,} of the "
    assert words in (said := capsys.readouterr().out)
    assert f"of {course.curriculum.sources[source[0]]}:" in said
    assert main(["curriculum", *gin_flags(settings)]) == 0
    # the same, stopped in the middle of it, on another mesh, and no longer told what to accept
    settings, run = tiny | FAST, tmp_path / "run"
    assert train(settings, run, train__steps=5, curriculum__non_english=ONE) == 0
    later = {"curriculum__non_english": TWO}
    assert train(settings, run, train__steps=8, train__accept_changes=5, **later) == 0
    assert train(settings, run, **later) == 0
    losses = [[record["loss"] for record in records(folder)] for folder in (staged, run)]
    assert losses[0] == losses[1]
    final = [records(folder)[-1]["row_counts"] for folder in (staged, run)]
    assert final[0] == final[1]
    assert meta_of(run, 12)["stages"] == json.loads(json.dumps(stages))


def test_a_run_goes_on_over_a_store_with_more_rows(tiny, tmp_path, capsys):
    german = " ".join(SENTENCES["de"][::-1])
    (tmp_path / "text" / "de").mkdir(parents=True)
    (tmp_path / "text" / "de" / "more.txt").write_text("\n\n".join([german] * 12))
    more = {"corpus.text": tmp_path / "text", "corpus.path": tmp_path / "corpus"}
    more |= {"rows.path": tmp_path / "rows"}
    assert main(["corpus", *gin_flags(tiny | more)]) == 0
    assert main(["rows", f"--extend={tiny['rows.path']}", *gin_flags(tiny | more)]) == 0
    had, have = open_store(str(tiny["rows.path"])), open_store(str(more["rows.path"]))
    assert have.rows("de") > had.rows("de")
    settings, folder = tiny | FAST, tmp_path / "run"
    assert train(settings, folder, train__steps=5) == 0
    settings |= more
    assert train(settings, folder) == 1
    assert "another row store" in capsys.readouterr().err
    assert train(settings, folder, train__accept_changes=5) == 0
    assert "More rows of de: those that are read are not read again." in capsys.readouterr().err
    # the rows that the log counts are those of the curriculum, of which none comes twice too early
    schedule = Schedule(non_english=tiny["curriculum.non_english"], smoothing=0.0)
    plan = going_on(meta_of(folder, 12), 12, 0, schedule, have, "run")[0].curriculum
    last = records(folder)[-1]
    source, row = locate(plan, 0, last["rows"])
    for at, name in enumerate(plan.sources):
        read = row[source == at].tolist()
        assert len(read) == last["row_counts"][name]
        assert len(set(read)) == min(len(read), have.rows(name))
    assert "The run has another row store" in status_of(str(folder)).lines[3]


def test_a_run_begins_with_what_another_has_learned(staged, tiny, tmp_path, capsys):
    settings = tiny | {"train.log_every": 1, "train.validate_every": 2, "train.steps": 2}
    assert train(tiny, staged, curriculum__non_english=TWO, train__steps=13) == 0
    learned = records(staged, "valid")[-1]["loss"]
    start = {"train__start": staged}
    assert train(settings, tmp_path / "a", **start) == 0
    assert train(settings, tmp_path / "b", train__start_moments=True, **start) == 0
    for name, moments in (("a", False), ("b", True)):
        folder = tmp_path / name
        first = records(folder, "valid")[0]
        assert first["step"] == 0
        assert first["loss"] == learned
        origin = meta_of(folder, 2)["origin"]
        assert (origin["run"], origin["step"], origin["moments"]) == (str(staged), 13, moments)
        assert origin["params_checksum"] == meta_of(staged, 13)["params_checksum"]
        assert f"of {staged} at step 13" in status_of(str(folder)).lines[3]
        rates = [record["learning_rate"] for record in records(folder)]
        assert rates[0] < rates[1]  # the warm-up is its own
        manager = checkpoint.open_existing(str(folder))
        state = manager.restore(
            2, args=checkpoint.ocp.args.Composite(state=checkpoint.ocp.args.StandardRestore())
        )["state"]
        manager.close()
        counts = {
            jax.tree_util.keystr(path): int(leaf)
            for path, leaf in jax.tree_util.tree_flatten_with_path(state["optimizer"])[0]
            if "count" in jax.tree_util.keystr(path)
        }
        assert sorted(counts.values()) == [2, 15 if moments else 2]
    # the first step has next to no learning rate, and the second is the first to show the moments
    last = [records(tmp_path / name, "valid")[-1]["loss"] for name in "ab"]
    assert last[0] != last[1]


def test_a_start_that_does_not_fit_is_one_sentence(staged, tiny, tmp_path, capsys):
    start = {"train__start": staged}
    for changes, words in (
        (start | {"model__d_ff": 64}, "has model.d_ff = 32; set the same here"),
        ({"train__start": tmp_path / "none"}, "there is no run in"),
        ({"train__start_moments": True}, "name that run in train.start"),
    ):
        assert train(tiny, tmp_path / "run", **changes) == 1
        assert words in (said := capsys.readouterr().err)
        assert said.count("\n") == 1
