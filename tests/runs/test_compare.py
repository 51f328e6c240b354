"""`polylm compare`: settings that differ, equal tokens, groups of seeds, and what is refused."""

import json
from statistics import fmean, stdev

import pytest

from polylm_jax.__main__ import main
from polylm_jax.data.languages import LANGUAGES, name_of
from polylm_jax.errors import UserError
from polylm_jax.runs.compare import Run, best_of, compare, named, spread_of
from tests.runs.test_figures import synthetic_metrics, write_run

GIN = "train.folder = '{folder}'\ntrain.seed = {seed}\noptimizer.clip = {clip}\ntrain.steps = 40\n"


def make(folder, seed=1, clip=1.0, steps=40, rows="r"):
    write_run(folder, synthetic_metrics(steps=steps, seed=seed))
    place = folder / "checkpoints" / str(steps) / "meta"
    place.mkdir(parents=True)
    gin = GIN.format(folder=folder, seed=seed, clip=clip)
    meta = {"gin": gin, "fingerprints": {"row store": rows}}
    (place / "metadata").write_text(json.dumps(meta))
    return str(folder)


@pytest.fixture
def three(tmp_path):
    """Two seeds of one setting, and one run of another."""
    return [make(tmp_path / n, s, c) for n, s, c in (("a1", 1, 1.0), ("a2", 2, 1.0), ("b", 1, 2.0))]


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        ([["a1", "a2"], ["b"]], ["a1 + 1", "b"]),
        ([["x=1,seed=1", "x=1,seed=2"], ["x=2,seed=1"]], ["x=1", "x=2,seed=1"]),
        ([["seed=1,x=1", "seed=2,x=1"], ["seed=1,x=2", "seed=2,x=2"]], ["x=1", "x=2"]),
        ([["x=1,seed=1", "x=1,seed=2"], ["x=1,more,seed=1", "x=1,seed=3"]],
         ["x=1,seed=1 + 1", "x=1,more,seed=1 + 1"]),
        ([["x=1,seed=1", "x=1,seed=2"], ["x=1"]], ["x=1,seed=1 + 1", "x=1"]),
    ],
)  # fmt: skip
def test_a_group_is_called_by_what_its_names_share(groups, names):
    runs = [[Run(name, "", {}, "", [], {}) for name in group] for group in groups]
    assert list(named(runs)) == names


def last_of(seed):
    return [r for r in synthetic_metrics(seed=seed) if r["kind"] == "valid"][-1]["bits_per_byte"]


def test_seeds_are_one_group_and_numbers_are_those_of_the_logs(three):
    found = compare(three)
    assert list(found.groups) == ["a1 + 1", "b"]
    assert found.differing == {"train.seed": ["1 / 2", "1"], "optimizer.clip": ["1.0", "2.0"]}
    assert found.tokens == 40 * 32 * 128
    assert len(found.rows) == 18 + 2
    german = [last_of(seed)["de"] for seed in (1, 2)]
    assert found.rows[name_of("de")][0] == (
        pytest.approx(fmean(german)),
        pytest.approx(stdev(german)),
    )
    means = [fmean(last_of(seed)[code] for code in LANGUAGES) for seed in (1, 2)]
    assert found.rows["mean"][0].mean == pytest.approx(fmean(means))
    assert found.rows["mean"][1] == (pytest.approx(means[0]), None)


def test_the_last_tokens_that_all_have_are_compared(tmp_path):
    folders = [make(tmp_path / "short", steps=20), make(tmp_path / "long", clip=3.0)]
    # validated every 4th and every 8th step
    assert compare(folders).tokens == 16 * 32 * 128
    odd = make(tmp_path / "odd", steps=7)
    with pytest.raises(UserError, match="no number of tokens at which all runs were validated"):
        compare([folders[1], odd])


def test_only_a_gap_wider_than_the_noise_is_marked():
    near, far = [spread_of(values) for values in ([1.0, 1.2], [1.15, 1.3])], spread_of([0.5, 0.6])
    assert best_of(near) is None
    assert best_of([*near, far]) == 2
    assert best_of([spread_of([1.0]), spread_of([0.9])]) == 1


def test_text_and_figure_are_written_and_globs_are_runs(three, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["compare", f"--run={tmp_path}/a*", f"--run={three[2]}", f"--out={out}"]
    assert main(command) == 0
    text = (out / "compare.md").read_text()
    assert text in capsys.readouterr().out
    assert "| `optimizer.clip` | `1.0` | `2.0` |" in text
    assert "train.folder" not in text
    assert "a1 + 1 is 2 runs: a1, a2." in text
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_compare_is_one_sentence(three, tmp_path, capsys):
    other = make(tmp_path / "other", rows="of other text")
    (tmp_path / "empty").mkdir()
    for second, words in (
        (other, "is not here to tell whether its text is the same"),
        (three[0], "compare takes two runs or more"),
        (tmp_path / "empty", "has no checkpoint yet"),
        (f"{tmp_path}/x*", "no folder is called"),
    ):
        assert main(["compare", f"--run={three[0]}", f"--run={second}", f"--out={tmp_path}/o"]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
