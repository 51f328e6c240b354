"""From seeds to a conversation: tasks that an endpoint writes, a model tuned on them, a chat."""

from pathlib import Path

from polylm_jax import config
from polylm_jax.__main__ import main
from tests.conftest import gin_flags
from tests.tune.stand_in import KEY, endpoint
from tests.tune.test_self_instruct import flags_of

TUNED = {
    "model.context": 64,
    "mesh.data": 8,
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
    "rows.length": 64,
    "train.batch": 16,
    "train.checkpoint_every": 0,
    "train.validate_every": 0,
    "tune.epochs": 2.0,
    "tune.validation": 0.0,
}


def test_what_was_written_is_learned_and_talked_with(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    with endpoint(delay=0) as server:
        for part in ("seeds", "run"):
            assert main(["self-instruct", part, *flags_of(server, tmp_path)]) == 0
    tasks = (tmp_path / "es" / "es.jsonl").read_text("utf-8").splitlines()
    run = tmp_path / "tuned"
    paths = {
        "tune.data": (str(tmp_path / "es" / "es.jsonl"),),
        "rows.path": tmp_path / "rows",
        "train.folder": run,
    }
    capsys.readouterr()
    assert main(["tune", *gin_flags(tiny | TUNED | paths)]) == 0
    said = capsys.readouterr().out
    assert f"{len(tasks):,}" in said
    lines = iter(["Escribe una frase.", "/stop"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", f"--run={run}", "--gin.chat.new_tokens=8"]) == 0
    assert not list(lines)


def test_the_run_file_chains_all_of_it():
    run = Path("gin_configs/runs/polylm_1b7_self_instructed.gin")
    config.parse([str(run)], [])
    settings = config.get("self_instruct")
    written = {f"{settings.folder}/{code}/{code}.jsonl" for code in settings.languages}
    assert set(config.get("tune").data) == written
