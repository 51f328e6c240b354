"""What processes say of themselves is compared, and the difference is named."""

import json
from types import SimpleNamespace

import pytest

from polylm_jax.train import agreement, heartbeat
from polylm_jax.train.ends import RunEnded


def difference(*told):
    return agreement._difference([json.dumps(words) for words in told])


def test_the_process_and_the_setting_that_differ_are_named():
    zero = {"train.batch": "4", "mesh.fsdp": "-1"}
    assert difference(zero) == ""
    assert difference(zero, zero, dict(zero)) == ""
    said = difference(zero, zero, zero | {"train.batch": "8"})
    assert said == "process 2 has train.batch = 8 where process 0 has 4"
    assert "process 1 has x = 1 where process 0 has nothing" in difference(zero, zero | {"x": "1"})
    other = dict.fromkeys("abcdef", "new")
    assert difference(zero, zero | other).endswith("and 3 more differences")
    assert len(difference({"a": "b"}, {"a": "c" * 5000})) < 200


def test_settings_code_and_versions_are_compared_and_places_are_not(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        agreement.together,
        "verdict",
        lambda name, mine, judge: asked.update(json.loads(mine)) or "",
    )
    agreement.check_settings("train.batch = 4\nrows.path = '/a'\n\ncurriculum.x = {'a': ' = '}")
    assert asked["train.batch"] == "4"
    assert asked["curriculum.x"] == "{'a': ' = '}"
    assert "rows.path" not in asked
    assert {"the code of polylm_jax", "the version of jax"} <= asked.keys()


def test_the_code_is_that_of_the_files(monkeypatch, tmp_path):
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "x.py").write_text("a = 1\n")
    monkeypatch.setattr(agreement.polylm_jax, "__file__", str(tmp_path / "__init__.py"))
    one = agreement._code()
    (tmp_path / "x.py").write_text("a = 2\n")
    assert agreement._code() != one


@pytest.fixture
def second(monkeypatch):
    """This process is the second of two; function that sets what process 0 says, and what happens
    in each pause after it has."""
    monkeypatch.setattr(agreement, "PAUSE", 0)

    def of_two(zero, *later):
        happens = iter(later)
        monkeypatch.setattr(
            agreement.together, "verdict", lambda name, mine, judge: judge([zero, mine])
        )
        pause = lambda seconds: next(happens, lambda: None)()  # noqa: E731
        monkeypatch.setattr(agreement.time, "sleep", pause)

    return of_two


def test_a_folder_that_one_process_does_not_share_is_told(second, tmp_path):
    here = str(tmp_path)
    second("host 7")
    with pytest.raises(RunEnded, match=r"process 1 does not see in .* what process 0") as raised:
        agreement.check_folder(here)
    assert raised.value.word == "unequal"
    heartbeat.write(here, {"host": "host", "pid": 6})  # of the run before
    second("host 7", lambda: None, lambda: heartbeat.write(here, {"host": "host", "pid": 7}))
    agreement.check_folder(here)


def test_checkpoints_that_are_listed_late_are_waited_for(second):
    steps = [10]
    manager = SimpleNamespace(all_steps=lambda: seen, directory="x/checkpoints")
    seen: list[int] = []
    manager.reload = lambda: seen.__setitem__(slice(None), steps)
    second("5 10", lambda: steps.append(5))
    agreement.check_checkpoints(manager)
    second("5 10 15")
    with pytest.raises(RunEnded, match="process 1 sees other checkpoints in x/checkpoints"):
        agreement.check_checkpoints(manager)
