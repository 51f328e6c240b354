"""What `polylm plan --known` says of a run without compiling it."""

import re
import shutil
from pathlib import Path

import pytest

from polylm_jax.__main__ import main
from polylm_jax.plan import certified
from tests.conftest import gin_flags

ROOT = Path(__file__).parents[2]
THE_13B = "--gin_file=gin_configs/runs/polylm_13b_v5p_128.gin"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A tree with the run files and a page with the table, which the test may change."""
    shutil.copytree(ROOT / "gin_configs", tmp_path / "gin_configs")
    (tmp_path / "docs").mkdir()
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    page = next(page for page in pages if "made by polylm plan --certify" in page.read_text())
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(page, tmp_path / "docs/plans.md"))


def known(capsys, *flags: str) -> tuple[int, str]:
    status = main(["plan", "--known", *flags])
    said = capsys.readouterr()
    return status, said.out + said.err


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.folder": "gs://b/x", "optimizer.peak_learning_rate": 1e-5, "train.steps": 5},
        {"mesh.data": 2, "mesh.fsdp": -1, "compute.compile_cache": ""},
    ],
)
def test_what_needs_no_other_memory_is_certified_with_the_run(capsys, changes):
    status, said = known(capsys, THE_13B, "--slice=v5p-128", *gin_flags(changes))
    assert status == 0
    [memory] = [row.memory for row in certified.rows(Path()) if row.name == Path(THE_13B).stem]
    assert said.startswith(f"It fits v5p-128, {memory} GiB a chip: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"train.microbatches": 2},
        {"train.batch": 4096},
        {"mesh.data": 1, "mesh.fsdp": 64},
        {"compute.remat": "none"},
        {"optimizer.moments": "bfloat16"},
        {"rows.length": 1024},
        {"model.layers": 39},
        {"lora.rank": 16},
        {"tune.data": ("es.jsonl",)},
    ],
)
def test_what_changes_the_memory_is_not_certified(capsys, changes):
    status, said = known(capsys, THE_13B, *gin_flags(changes))
    assert status == 0
    assert said.startswith("Whether it fits v5p-128 is not certified; `polylm plan ")


def test_what_the_table_calls_too_large_is_refused(capsys, here):
    rows = here.read_text().splitlines(keepends=True)
    here.write_text(
        "".join(
            row.replace("| yes |", "| too large |") if "13b_v5p" in row else row for row in rows
        )
    )
    status, said = known(capsys, THE_13B)
    assert status == 1
    assert "it does not fit v5p-128: polylm_13b_v5p_128 is certified so." in said
    here.unlink()
    assert "is not certified" in known(capsys, THE_13B)[1]


def test_a_row_that_another_process_made_meanwhile_stays(capsys, here, monkeypatch):
    before = here.read_text()

    def compiled(run, where, cache):
        here.write_text(re.sub(r"\| \S+ of 32\.0 \|", "| 0.5 of 32.0 |", here.read_text()))

    monkeypatch.setattr("polylm_jax.verbs.plan.compile_step", compiled)
    assert main(["plan", f"--certify={here}", THE_13B]) == 0
    assert "(new)" in capsys.readouterr().out
    # whose compiler says nothing is by arithmetic; the other's row is as it was made
    changed = {
        new.split("`")[1]: new
        for old, new in zip(before.splitlines(), here.read_text().splitlines(), strict=True)
        if old != new
    }
    assert "| not tried |" in changed.pop("polylm_13b_v5p_128")
    assert changed
    assert all("| 0.5 of 32.0 |" in line for line in changed.values())


@pytest.mark.parametrize(
    ("slice_name", "changes", "sentence"),
    [
        ("v5p-8", {"mesh.fsdp": 32}, "does not make up the 4 chips of v5p-8"),
        ("v5p-128", {"train.batch": 100}, "train.batch = 100 cannot be split over mesh"),
        ("v5e-8", {"mesh.fsdp": 8}, "moments alone are 19.5 of 16.0 GiB a chip of v5e-8"),
        ("v5p-7", {}, 'there is no slice "v5p-7"'),
        ("v9-8", {}, 'there is no slice "v9-8"'),
    ],
)
def test_what_cannot_be_is_refused(capsys, slice_name, changes, sentence):
    status, said = known(capsys, THE_13B, f"--slice={slice_name}", *gin_flags(changes))
    assert status == 1
    assert sentence in said
    assert said.count("\n") == 1


def test_a_slice_that_is_no_power_of_two_may_be_known(capsys):
    # 4x4x12 chips of v5p: sold, but none that a plan here is compiled for
    changes = gin_flags({"mesh.data": -1, "mesh.fsdp": 64, "train.batch": 1536})
    status, said = known(capsys, THE_13B, "--slice=v5p-384", *changes)
    assert status == 0
    assert "v5p-384 is not certified" in said
