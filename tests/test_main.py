"""The command line: texts from a run, and one clear sentence for what cannot work."""

import json

import pytest

from polylm_jax.__main__ import main
from tests.conftest import gin_flags


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("main") / "run"
    steps = {"train.folder": folder, "train.steps": 2, "train.validate_rows": 1}
    assert main(["train", *gin_flags(tiny | steps)]) == 0
    return folder


def texts_of(capsys, prompts, *flags):
    assert main(["generate", *flags, *(f"--prompt={prompt}" for prompt in prompts)]) == 0
    out = capsys.readouterr().out
    return out[out.index(f"[{prompts[0]}]") :]


def test_texts_go_to_a_file(run, tmp_path, capsys):
    shown = texts_of(capsys, ["Die"], f"--run={run}", f"--out={tmp_path}/texts.txt")
    written = (tmp_path / "texts.txt").read_text(encoding="utf-8")
    assert shown.startswith(written)


def test_a_report_names_figures_and_checkpoints(run, capsys):
    assert main(["report", f"--run={run}"]) == 0
    assert (run / "figures" / "curriculum.png").is_file()
    assert "checkpoints" in capsys.readouterr().out


def test_config_prints_every_setting(capsys):
    assert main(["config", "--gin.train.steps=77"]) == 0
    out = capsys.readouterr().out
    assert "train.steps = 77\n" in out
    assert "sampling.top_p = 1.0\n" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--gin_file=nowhere.gin"], "there is no gin file nowhere.gin"),
        (["train", "--gin.train.stepz=5"], 'no setting "train.stepz"; the nearest is "train.ste'),
        (["train", "--stepz=5"], "--stepz=5 is not a flag of `polylm train`"),
        (["train", "--gin.tokenizer.path=nowhere"], "nowhere"),
        (["generate", "--run=nowhere", "--prompt=x"], "there is no run in nowhere"),
        (["generate", "--run=nowhere"], "--prompt=TEXT"),
        (["report", "--run=nowhere"], "nowhere"),
        (["tokenizer", "--gin.corpus.path=nowhere"], "nowhere"),
        (["rows", "--gin.corpus.path=nowhere", "--gin.tokenizer.path=nowhere"], "nowhere"),
    ],
)
def test_what_cannot_work_is_one_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_prompt_longer_than_the_context_is_one_sentence(run, capsys):
    assert main(["generate", f"--run={run}", f"--prompt={'Wort ' * 100}"]) == 1
    assert "the model's context is 32; shorten it" in capsys.readouterr().err


def test_a_run_without_a_whole_checkpoint_is_one_sentence(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    assert main(["generate", f"--run={tmp_path}", "--prompt=x"]) == 1
    assert "no whole checkpoint" in capsys.readouterr().err


def test_a_file_of_prompts_gives_what_they_give_in_other_company(run, tmp_path, capsys):
    prompts = ["El sol y la luna", "猫", "Das", "a", "b"]
    asked, out = tmp_path / "prompts.jsonl", tmp_path / "texts.jsonl"
    asked.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    flags = [f"--run={run}", "--gin.sampling.new_tokens=6", "--gin.sampling.temperature=1.0"]
    assert main(["generate", *flags, f"--prompts={asked}", f"--out={out}", "--batch=4"]) == 0
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [record["prompt"] for record in records] == prompts
    shown = texts_of(capsys, prompts, *flags)
    assert shown == "\n".join(f"[{r['prompt']}]{r['text']}\n" for r in records)


def test_scores_of_a_file_go_to_a_file(run, tmp_path, capsys):
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "scores.jsonl"
    texts = [("Die Sonne", " scheint"), ("", "猫"), ("El ", "sol")]
    records = [{"context": c, "continuation": t, "id": c} for c, t in texts]
    pairs.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["score", f"--run={run}", f"--pairs={pairs}", f"--out={out}"]) == 0
    scores = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [score["id"] for score in scores] == [context for context, _ in texts]
    # an almost untrained model gives each of 1,024 pieces about the same chance
    assert all(-9 < score["log_likelihood"] / score["tokens"] < -5 for score in scores)
    assert "pairs/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"prompt": "a"}\n{"text": "b"}\n', "asked.jsonl:2 is not a record"),
        ('{"prompt": 3}\n', "asked.jsonl:1 is not a record"),
        ("nonsense\n", "asked.jsonl:1 is not a record"),
        ("", "asked.jsonl is empty"),
    ],
)
def test_a_broken_file_of_prompts_is_one_sentence(content, sentence, run, tmp_path, capsys):
    asked, out = tmp_path / "asked.jsonl", tmp_path / "texts.jsonl"
    asked.write_text(content)
    assert main(["generate", f"--run={run}", f"--prompts={asked}", f"--out={out}"]) == 1
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_a_chat_answers_in_the_terminal_until_stop(run, capsys, monkeypatch):
    lines = iter(["Die", "/clear", "Die", "/stop", "never read"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", f"--run={run}", "--gin.chat.new_tokens=6"]) == 0
    said = capsys.readouterr().out
    assert said.count("Forgotten; a new conversation.") == 1
    assert next(lines) == "never read"


def test_the_bench_says_what_int8_costs_a_run(run, tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert main(["bench", "decode", f"--run={run}", f"--json={file}"]) == 0
    figures, said = json.loads(file.read_text()), capsys.readouterr().out
    assert figures["int8"] == pytest.approx(figures["float"], rel=0.01)
    assert figures["int8"] != figures["float"]
    assert f"{figures['int8']:.3f}, {figures['change']:+.2%}" in said
