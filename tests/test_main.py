"""The command line: texts from a run, and one clear sentence for what cannot work."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from polylm_jax.__main__ import INTERRUPTED, NO_READER, VERBS, main
from polylm_jax.data.feed import read_rows
from polylm_jax.data.rows import open_store
from polylm_jax.data.schedule import Schedule, make_curriculum
from polylm_jax.data.tokenizer import load
from polylm_jax.train.door import open_run
from polylm_jax.verbs import module_of
from tests.conftest import gin_flags

SCRIPT = "import sys; from polylm_jax.__main__ import main; sys.exit(main())"


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("main") / "run"
    steps = {"train.folder": folder, "train.steps": 2, "train.validate_rows": 1}
    assert main(["train", *gin_flags(tiny | steps)]) == 0
    return folder


def started(*arguments, stdout=subprocess.PIPE, script=SCRIPT):
    """A process of its own that runs the command line, with all that the machine has."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environment | {"PYTHONPATH": ":".join(sys.path)},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


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
        (["generate", "--run=nowhere", "--prompt=x"], "there is no folder nowhere"),
        (["generate", "--run=."], "--prompt=TEXT"),
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


@pytest.mark.parametrize(
    ("module", "package"), [("gin", "gin-config"), ("tensorboardX", "tensorboardX")]
)
def test_a_package_that_is_not_installed_is_one_sentence(module, package):
    without = f"import sys; sys.modules[{module!r}] = None; {SCRIPT}"
    child = started("config", script=without)
    out, said = child.communicate(timeout=300)
    assert (child.returncode, out) == (1, "")
    assert said.startswith(f"polylm config: the package {package} is not installed here; `pip ")
    assert said.count("\n") == 1


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


def test_what_of_a_benchmark_was_read_is_told(run, tiny, tmp_path, capsys):
    store, vocabulary = open_store(str(tiny["rows.path"])), load(str(tiny["tokenizer.path"]))
    meta = open_run(str(run)).meta
    counts = {source: store.rows(source) for source in store.sources}
    schedule = Schedule(tiny["curriculum.non_english"], smoothing=0.0)
    plan = make_curriculum(schedule, counts, store.length)
    rows, _ = read_rows(store, plan, 0, meta["rows"])
    texts = [*vocabulary.decode(rows[:4].tolist()), "Nobody wrote this about any old giraffe."]
    row = {"choice1": "x", "choice2": "y", "question": "cause", "label": 0}
    file = tmp_path / "xcopa" / "test.it.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps({"premise": text} | row) + "\n" for text in texts))
    flags = [f"--run={run}", f"--gin.evaluation.folder={tmp_path}", f"--out={tmp_path}"]
    flags += ["--gin.evaluation.tasks=('xcopa',)", "--gin.evaluation.languages=('it', 'th')"]
    assert main(["evaluate", *flags]) == 0
    capsys.readouterr()
    assert main(["overlap", *flags, "--tokens=8"]) == 0
    said = capsys.readouterr().out
    assert f"in the {meta['rows']} rows" in said
    assert "missing: xcopa th: no xcopa/test.th.jsonl" in said
    found = json.loads((tmp_path / "overlap.json").read_text())
    longest = found["longest"]["xcopa_it"]
    assert all(one >= 8 for one in longest[:4])
    assert longest[4] == 0
    # five items, none too short, four read: the score of one other, and of the four
    assert re.search(r"xcopa +it +5 +0 +4 +\d+ +\d\.000 \(1\) +\S+ ± \S+ \(4\)", said)


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


def test_without_arguments_the_help_is_shown(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


def test_a_pipe_that_nobody_reads_ends_in_silence():
    process = started("config")
    process.stdout.close()
    assert process.wait(60) == NO_READER
    assert process.stderr.read() == ""


def test_a_full_device_is_one_sentence():
    with open("/dev/full", "w") as full:
        process = started("config", stdout=full)
        _, said = process.communicate(timeout=60)
    mend = "free some and run the same command again"
    assert (process.returncode, said) == (1, f"polylm config: No space left on device; {mend}.\n")


def test_closed_streams_change_nothing():
    command = [sys.executable, "-c", SCRIPT, "status", "--run=nowhere"]
    shell = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *command]
    assert subprocess.run(shell, timeout=60, check=False).returncode == 1


def test_who_has_closed_the_input_says_nothing():
    asks = "from polylm_jax import console; console.ready(); input()"
    shell = ["sh", "-c", '"$@" <&-', "sh", sys.executable, "-c", asks]
    done = subprocess.run(shell, timeout=60, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "EOFError: EOF when reading a line"


def test_ctrl_c_while_libraries_load_is_one_line():
    pressed_at_jaxlib = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
class Finder:
    def find_spec(name, path=None, target=None):
        if name.startswith("jaxlib"):
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
"""
    process = started("chat", "--run=anywhere", script=pressed_at_jaxlib + SCRIPT)
    assert process.communicate(timeout=60) == ("", "polylm chat: interrupted.\n")
    assert process.returncode == INTERRUPTED == 130


@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_in_a_verb_is_one_line(verb, capsys, monkeypatch):
    def interrupt(given):
        raise KeyboardInterrupt

    module = module_of(verb)
    monkeypatch.setattr(module, "flags", lambda parser: None)
    monkeypatch.setattr(module, "run", interrupt)
    former = signal.getsignal(signal.SIGINT)
    assert main([verb]) == INTERRUPTED
    signal.signal(signal.SIGINT, former)
    assert capsys.readouterr().err == f"polylm {verb}: interrupted.\n"


def test_a_tpu_that_is_not_here_says_nothing():
    pytest.importorskip("libtpu", reason="libtpu is not installed")
    script = """
import jax
from polylm_jax.__main__ import main
main(["config"])
jax.devices()
"""
    _, said = started(script=script).communicate(timeout=60)
    assert said == ""


def test_what_is_in_the_way_is_told_and_nothing_else(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    flags = ["curriculum", f"--gin.train.folder={tmp_path}/file", "--gin.train.steps=2"]
    assert main(flags) == 1
    said = capsys.readouterr().err
    assert said == f"polylm curriculum: {tmp_path}/file/figures: Not a directory.\n"


def test_a_model_that_says_escapes_moves_no_cursor(run, capsys, monkeypatch):
    verb = importlib.import_module("polylm_jax.verbs.generate")
    answer = {"text": "\x1b]0;pwned\x07", "ended": "eos"}
    monkeypatch.setattr(verb, "_answers", lambda model, tasks: [answer])
    shown = texts_of(capsys, ["Die"], f"--run={run}")
    assert "\x1b" in shown  # a file or a pipe gets what was said
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert texts_of(capsys, ["Die"], f"--run={run}") == "[Die]\\x1b]0;pwned\\x07\n"


def test_a_verb_s_output_that_cannot_be_is_refused_before_its_work(run, tmp_path, capsys):
    begun = ("Continuing", "Scoring", "Exporting")
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "a", "context": "a", "continuation": "b"}')
    for flags, sentence in [
        (["generate", f"--prompts={asked}", "--out=no/where"], "there is no folder"),
        (["generate", "--prompt=a", f"--out={tmp_path}"], "is a folder"),
        (["score", f"--pairs={asked}", "--out="], "--out is empty"),
        (["export", "--to=gs://bucket/out"], "must be on this machine"),
        (["export", f"--to={run}"], "already exists"),
    ]:
        assert main([*flags, f"--run={run}"]) == 1
        said = capsys.readouterr()
        assert sentence in said.err
        assert not said.out.startswith(begun)
