"""Figures are real pictures that change with the numbers; the metrics they read survive a kill."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from polylm_jax.data.languages import LANGUAGES, NON_ENGLISH, name_of, non_english_share
from polylm_jax.errors import UserError
from polylm_jax.runs import figures
from polylm_jax.runs import log as runs

ROWS, LENGTH = 32, 128


def shares_at(progress, last=0.6):
    """The share of each source: non-English 30% of the monolingual rows, then a ramp to `last`."""
    foreign = 0.3 + (last - 0.3) * min(1, max(0, 2 * progress - 0.5))
    weights = {code: LANGUAGES[code].tokens ** (1 - 0.5 * progress) for code in NON_ENGLISH}
    total = sum(weights.values())
    shares = {"en": 0.9 * (1 - foreign)}
    shares |= {code: 0.9 * foreign * weights[code] / total for code in NON_ENGLISH}
    return shares | {f"en-{code}": 0.1 / len(NON_ENGLISH) for code in NON_ENGLISH}


def synthetic_metrics(steps=40, last=0.6, seed=0, log_every=1):
    """What a run of `steps` steps logs, each row going to the source furthest behind."""
    random = np.random.default_rng(seed)
    sources = list(shares_at(0))
    due, read = np.zeros(len(sources)), np.zeros(len(sources), int)

    def valid(step, scale):
        bits = {s: scale * (1 + 0.3 * random.random()) for s in sources}
        loss = {s: 3.5 * value for s, value in bits.items()}
        return {
            "kind": "valid",
            "step": step,
            "tokens": step * ROWS * LENGTH,
            "bits_per_byte": bits,
            "loss": loss,
        }

    records = [valid(0, 2.8)]
    for step in range(1, steps + 1):
        earlier = read.copy()
        for row in range(ROWS):
            progress = ((step - 1) * ROWS + row + 0.5) / (steps * ROWS)
            due += np.array(list(shares_at(progress, last).values()))
            read[np.argmax(due - read)] += 1
        loss = 4 + 5 * np.exp(-5 * step / steps) + 0.15 * random.normal()
        in_batch = dict(zip(sources, (read - earlier).tolist(), strict=True))
        monolingual = sum(in_batch[code] for code in LANGUAGES)
        record = {
            "kind": "train",
            "step": step,
            "tokens": step * ROWS * LENGTH,
            "rows": step * ROWS,
            "loss": loss,
            "skipped": 0,
            "mfu": None,
            "non_english": 1 - in_batch["en"] / monolingual,
            "deviation": float(abs(read - due).max()),
        }
        if step % log_every == 0 or step == steps:
            record["row_counts"] = dict(zip(sources, read.tolist(), strict=True))
            record["schedule_counts"] = dict(zip(sources, due.tolist(), strict=True))
        records.append(record)
        if step % max(1, steps // 5) == 0:
            records.append(valid(step, 1.3 + 1.5 * np.exp(-4 * step / steps)))
    return records


def write_run(folder, records, tail=""):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text + tail, encoding="utf-8")
    return folder


def pixels(path):
    return imread(path)[..., :3]


def test_a_long_log_is_thinned_and_loses_no_extreme_no_mean_and_no_count(tmp_path, monkeypatch):
    records = synthetic_metrics(100, log_every=7)
    train = runs.of_kind(records, "train")
    train[40] |= {"loss": None, "deviation": 0.99}
    train[60] |= {"loss": 50.0}
    run = write_run(tmp_path, records)
    assert runs.read_metrics(run) == records
    monkeypatch.setattr(runs, "MOST", 10)
    thinned = runs.read_metrics(run)
    few = runs.of_kind(thinned, "train")
    assert [len(few), len(runs.of_kind(thinned, "valid"))] == [10, 6]
    assert runs.untrained_and_trained(thinned) == runs.untrained_and_trained(records)
    assert [record["step"] for record in few] == [7, 14, 28, 35, 49, 56, 70, 77, 84, 100]
    assert runs.steps_of(few) == (100, 1)
    assert max(map(runs.deviation, few)) == 0.99
    assert max(record["highest"] for record in few) == 50.0
    for record, start in zip(few, range(0, 100, 10), strict=True):
        losses = [one["loss"] for one in train[start : start + 10] if one["loss"] is not None]
        assert record["loss"] == pytest.approx(sum(losses) / len(losses))
        assert (record["lowest"], record["highest"]) == (min(losses), max(losses))
    counted = {record["step"]: record for record in train if "row_counts" in record}
    for record in few:
        one = counted[record["step"]]
        assert (record["tokens"], record["row_counts"]) == (one["tokens"], one["row_counts"])


def test_rows_read_agrees_with_the_records():
    metrics = synthetic_metrics(12)
    rows = runs.rows_read(metrics)
    assert rows.tokens.tolist() == [step * ROWS * LENGTH for step in range(13)]
    assert rows.sources[:3] == ["en", "zh", "ru"]
    assert len(rows.sources) == 35
    assert rows.measured.sum(-1).tolist() == [step * ROWS for step in range(13)]
    last = metrics[-2]
    assert last["kind"] == "train"
    gaps = [abs(last["row_counts"][s] - last["schedule_counts"][s]) for s in last["row_counts"]]
    assert runs.deviation(last) == pytest.approx(max(gaps))
    assert runs.deviation({k: v for k, v in last.items() if k != "deviation"}) == max(gaps)
    counts = last["row_counts"]
    foreign = sum(counts[code] for code in NON_ENGLISH)
    share = non_english_share(rows.sources, rows.measured[-1])
    assert share == pytest.approx(foreign / (foreign + counts["en"]))


def test_code_and_bilingual_rows_do_not_count_as_non_english():
    assert non_english_share(["en", "de", "code", "en-de"], np.array([3, 1, 9, 9])) == 0.25


def test_untrained_and_trained_are_the_first_and_last_validation():
    metrics = synthetic_metrics(10)
    valid = [record["bits_per_byte"] for record in metrics if record["kind"] == "valid"]
    assert runs.untrained_and_trained(metrics) == (valid[0], valid[-1])
    assert runs.untrained_and_trained(metrics[:2]) is None
    assert runs.untrained_and_trained(metrics[1:]) is None


@pytest.mark.parametrize("draw", [figures.curriculum, figures.loss])
def test_run_pictures_change_with_the_run(tmp_path, draw):
    paths = [
        draw(synthetic_metrics(40, last, seed), tmp_path / f"{last}.png")
        for last, seed in ((0.6, 0), (0.4, 1))
    ]
    first, second = map(pixels, paths)
    assert first.shape == second.shape
    assert first.shape[1] == pytest.approx(1245, abs=1)
    assert (first != second).any(-1).mean() > 0.002
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 50


def test_the_same_numbers_give_the_same_file(tmp_path):
    metrics = synthetic_metrics(20)
    paths = [figures.curriculum(metrics, tmp_path / name) for name in ("a.png", "b.png")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_tables_become_bars_and_dumbbells(tmp_path):
    table = {"en": 4.4, "th": 6.1, "en-de": 4.0, "code": 2.9}
    bars = pixels(figures.bytes_per_token(table, tmp_path / "new" / "bars.png"))
    lower = {source: value / 2 for source, value in table.items()}
    assert bars.shape[1] == pytest.approx(1245, abs=1)
    dumbbells = pixels(figures.bits_per_byte(table, lower, tmp_path / "bits.png"))
    swapped = pixels(figures.bits_per_byte(lower, table, tmp_path / "swapped.png"))
    assert (dumbbells != swapped).any()
    blue = np.isclose(bars, [0x1F / 255, 0x6F / 255, 0x9F / 255], atol=0.01).all(-1).sum(1)
    lengths = np.unique(blue[blue > 200])  # in pixels, without the words
    assert lengths / lengths[-1] == pytest.approx(np.array([2.9, 4.4, 6.1]) / 6.1, abs=0.01)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bits.png", "new", "swapped.png"]


def test_names():
    assert [name_of(source) for source in ("de", "en-de", "code")] == [
        "German (de)",
        "English–German",
        "code",
    ]


@pytest.mark.filterwarnings("error")
def test_run_figures_draws_all_and_leaves_nothing_else(tmp_path):
    run = write_run(tmp_path, synthetic_metrics(20, log_every=6))
    drawn = figures.run_figures(run, runs.read_metrics(run))
    names = ["curriculum.png", "loss.png", "bits_per_byte.png", "overview.png"]
    assert [path.name for path in drawn] == names
    assert sorted(path.name for path in (run / "figures").iterdir()) == sorted(names)


def languages_only(names, steps=6):
    """What a run on these sources logs, all of them equal."""
    records = []
    for step in range(steps + 1):
        counts = dict.fromkeys(names, step)
        both = {"row_counts": counts, "schedule_counts": counts, "loss": 2.0, "non_english": 1.0}
        if step:
            records.append({"kind": "train", "step": step, "tokens": 64 * step} | both)
        tables = {
            "bits_per_byte": dict.fromkeys(names, 3.0 - 0.1 * step),
            "loss": dict.fromkeys(names, 2.0),
        }
        records.append({"kind": "valid", "step": step, "tokens": 64 * step} | tables)
    return records


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "names",
    [["hi", "sw", "cs"], ["hi"], ["en"], ["code"], ["hi-sw"], ["hi", "sw", "hi-sw", "code"]],
)
def test_a_run_without_two_sides_has_its_figures_without_a_share(tmp_path, names, monkeypatch):
    monkeypatch.setattr(figures, "_share_panel", None)
    run = write_run(tmp_path, languages_only(names))
    assert len(figures.run_figures(run, runs.read_metrics(run))) == 4


def test_the_bands_of_a_stack():
    few = figures.groups(["en", "cs", "hi", "code", "en-hi"], np.ones(5))
    assert {name: members for name, (_, members) in few.items() if members} == {
        "English": ["en"],
        "Czech (cs)": ["cs"],
        "Hindi (hi)": ["hi"],
        "code": ["code"],
        "bilingual": ["en-hi"],
    }
    papers = figures.groups(list(LANGUAGES), np.ones(18))
    assert papers["West Asian"][1] == ["ar", "tr", "he"]
    many = ["bn", "cs", "el", "fa", "fi", "hi", "sw"]
    grouped = figures.groups(many, np.array([9, 9, 9, 9, 9, 1, 2]))
    assert grouped["others"][1] == ["hi", "sw"]
    assert [members for _, members in grouped.values()].count([]) == 3
    assert sorted(name for _, members in grouped.values() for name in members) == many


@pytest.mark.filterwarnings("error")
def test_a_young_run_has_fewer_figures(tmp_path):
    records = synthetic_metrics(5)[1:2]
    records[0] |= {"loss": float("nan")}
    drawn = figures.run_figures(tmp_path, runs.read_metrics(write_run(tmp_path, records)))
    assert [path.name for path in drawn] == ["curriculum.png", "loss.png", "overview.png"]
    uncounted = [{n: v for n, v in records[0].items() if not n.endswith("_counts")}]
    assert [path.name for path in figures.run_figures(tmp_path, uncounted)] == [
        "loss.png",
        "overview.png",
    ]


def test_numbers_that_are_none_leave_gaps(tmp_path):
    records = synthetic_metrics(20)
    whole = pixels(figures.loss(records, tmp_path / "whole.png"))
    lost = [r | {"loss": None} if r["kind"] == "train" and r["step"] > 10 else r for r in records]
    gap = pixels(figures.loss(lost, tmp_path / "gap.png"))
    half = gap.shape[1] // 2 + 40
    assert (gap != whole)[:, half:].any()
    faint = np.isclose(gap[:, half:-150], [0x1F / 255, 0x6F / 255, 0x9F / 255], atol=0.01)
    assert not faint.all(-1).any()  # nothing of the training curve's blue
    for record in runs.of_kind(records, "valid"):
        record["bits_per_byte"] |= {"de": None}
        record["loss"] |= dict.fromkeys(record["loss"])
    drawn = figures.run_figures(tmp_path, records)
    assert [path.name for path in drawn][2] == "bits_per_byte.png"


def test_a_run_without_steps_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"has no metrics\.jsonl"):
        runs.read_metrics(tmp_path)
    with pytest.raises(UserError, match="no training step"):
        figures.run_figures(tmp_path, synthetic_metrics(1)[:1])


def test_a_skipped_step_leaves_the_running_mean_of_its_neighbours():
    values = np.full(90, 2.0)
    values[40] = np.inf
    assert figures._smooth(values).tolist() == [2.0] * 90


@pytest.mark.parametrize("steps", [1, 29, 30, 31, 59, 320])
def test_windows_cover_a_run_and_none_is_of_few_steps(steps):
    sizes = np.diff(figures._edges(np.arange(steps + 1) * 2048.0))
    assert (sizes.sum(), len(sizes)) == (steps, min(steps, 30))
    assert 1 <= sizes.min() >= sizes.max() - 1


def test_windows_of_a_run_that_was_counted_now_and_then_end_where_it_was():
    assert figures._edges(np.array([0.0, 1, 50, 51, 100])).tolist() == [0, 2, 4]
    assert figures._edges(np.array([0.0, 7])).tolist() == [0, 1]


def test_where_the_data_changed_is_marked():
    run = synthetic_metrics(8)
    change = {"kind": "change", "step": 3, "tokens": 300, "said": "has another curriculum"}
    for panel in (figures._share_panel, figures._stack_panel, figures._loss_panel):
        lines = []
        for metrics in (run, [*run, change]):
            ax = Figure().subplots()
            panel(ax, metrics)
            lines.append([line.get_xdata()[0] for line in ax.lines if line.get_gid() == "change"])
        assert lines == [[], [300]]


def test_evaluations_are_drawn_beside_chance(tmp_path):
    records = [
        {
            "kind": "evaluation",
            "step": step,
            "tokens": step * ROWS * LENGTH,
            "score": {"xcopa": 0.5, "ntrex": 4.0 - step / 40 if step else None},
            "error": {"xcopa": 0.02, "ntrex": 0.1},
            "chance": {"xcopa": 0.5},
        }
        for step in (0, 20, 40)
    ]
    metrics = synthetic_metrics() + records
    path = figures.evaluation(metrics, tmp_path / "evaluation.png")
    assert imread(path).shape[0] > imread(figures.loss(metrics, tmp_path / "loss.png")).shape[0]
    [only] = [records[0]]
    assert figures.evaluation([only], tmp_path / "one.png").is_file()
