"""Clients that we did not write, at a server of ours: `make clients`.

They live in an environment of their own, .venv-clients, and are asked only then. The page is tried
where there is a Chromium: apt-get install chromium fonts-noto-cjk fonts-noto-core.
"""

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from polylm_jax.interop.fast_tokenizer import tokenizer_json
from polylm_jax.serve.http import make_app
from tests.data.sentences import SENTENCES
from tests.serve.conftest import TEXTS
from tests.serve.fake import chance
from tests.serve.test_http import soon

ROOT, KEY = Path(__file__).parents[2], "sesame"
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"
PYTHON = os.environ.get("CLIENTS_PYTHON")

pytestmark = pytest.mark.skipif(not PYTHON, reason="`make clients` installs and asks the clients")
browser = pytest.mark.skipif(
    shutil.which("chromium") is None,
    reason="apt-get install chromium fonts-noto-cjk fonts-noto-core",
)


@pytest.fixture
def ask(tmp_path):
    """Function (client, **arguments) -> what it saw."""

    def ask(client, **arguments):
        question, answer = tmp_path / "question.json", tmp_path / "answer.json"
        question.write_text(json.dumps(arguments))
        script = Path(__file__).with_name("client.py")
        environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([PYTHON, script, client, question, answer], check=True, env=environment)
        return json.loads(answer.read_text())

    return ask


@pytest.fixture(scope="module")
def locked(open_site):
    with open_site(key=KEY, queue=1000) as site:
        yield site


def test_openai_for_python(ask, locked):
    seen = ask("openai", url=locked.url, key=KEY, texts=[*SENTENCES])
    assert seen["models"] == ["tiny"]
    assert seen["pairs"] == [[TEXTS[code]] * 2 for code in SENTENCES]
    assert seen["locked"]
    assert len(seen["messages"]) == 3
    assert all(message.endswith(".") for message in seen["messages"])
    assert soon(lambda: locked.engine.counts().running == 0)


def test_openai_for_node(locked):
    folder = Path(os.environ.get("CLIENTS_NODE", ROOT / "node_modules"))
    if shutil.which("node") is None or not (folder / "openai").is_dir():
        pytest.skip("`make clients` installs npm's openai where there is node")
    script = folder.parent / "client.mjs"
    shutil.copy(Path(__file__).with_name("client.mjs"), script)
    try:
        command = ["node", script, locked.url, KEY, "th"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    finally:
        script.unlink()
    assert json.loads(said) == {"whole": TEXTS["th"], "joined": TEXTS["th"], "status": 404}


def test_schemathesis_finds_nothing(ask, locked, tmp_path):
    seen = ask("schemathesis", url=locked.url, key=KEY, examples=30, folder=str(tmp_path))
    assert seen["status"] == 0, seen["said"]


def test_llm(ask, locked, tmp_path):
    assert ask("llm", url=locked.url, key=KEY, text="ja", folder=str(tmp_path)) == TEXTS["ja"]


def test_litellm(ask, locked):
    assert ask("litellm", url=locked.url, key=KEY, text="ar") == [TEXTS["ar"]] * 2


def test_lm_eval_reads_our_log_probabilities(ask, locked, vocabulary, tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(vocabulary.model)))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    seen = ask("lm_eval", url=locked.url, key=KEY, folder=str(tmp_path), tokenizer=str(folder))
    heads = [len(vocabulary.encode([f"{n} is"])[0]) for n in range(6)]
    for number, (head, chances) in enumerate(zip(heads, seen, strict=True)):
        wholes = vocabulary.encode([f"{number} is one", f"{number} is two"])
        assert chances == pytest.approx([sum(map(chance, ids[head:])) for ids in wholes])


@browser
def test_the_page_in_a_browser_in_18_languages(ask, open_site, tmp_path, monkeypatch):
    story = {"state": "running", "healthy": True, "lines": ["", MARKUP], "step": 3, "steps": 9}
    story |= {"loss": {"train": [(1, 9.0), (2, 8.0)], "valid": [(1, 9.0)]}, "tokens": 2}
    band = {"name": MARKUP, "colour": "#98a4af", "shares": [1.0, 1.0]}
    story |= {"schedule": {"tokens": [0, 1, 4], "bands": [band], "now": 2}}
    story |= {"languages": [{"name": MARKUP, "code": "en", "before": 3.0, "after": 2.0}]}
    monkeypatch.setattr(
        "tests.serve.conftest.make_app",
        lambda desk, key, origins, _: make_app(desk, key, origins, lambda: story, MARKUP),
    )
    with open_site(key=KEY, pause=0.005) as site:
        texts = {code: code for code in SENTENCES} | {"markup": f"«{MARKUP}»"}
        folder = os.environ.get("CLIENTS_PICTURES", str(tmp_path))
        seen = ask("chromium", url=site.url, key=KEY, texts=texts, folder=folder)
        assert soon(lambda: site.engine.counts().running == 0)
    assert all(call.repetition_penalty == 1.3 for call in site.engine.calls)
    rtl = ("ar", "he")
    for code in SENTENCES:
        assert seen["answers"][code] == [TEXTS[code], "rtl" if code in rtl else "ltr"]
    assert seen["answers"]["markup"] == [MARKUP, "ltr"]
    assert seen["faults"] == []
    assert seen["talks"] == seen["kept"] == len(texts)
    assert (seen["stopped"], seen["figures"], seen["run_on_a_phone"]) == ("Stopped.", 2, True)


@browser
def test_the_page_over_time(ask, open_site):
    steps = itertools.count(1)
    story = {"state": "running", "healthy": True, "steps": 99, "tokens": 2}
    with open_site(story=lambda: story | {"step": next(steps)}) as site:
        long, emoji = "«" + "word " * 120 + "»", "x" * 59 + "👩‍👧👩‍👧"
        seen = ask("chromium_for_long", url=site.url, long=long, emoji=emoji)
        prompts = [len(call.prompt) for call in site.engine.calls]
    assert seen["faults"] == []
    assert seen["title"] == "x" * 59 + "👩"
    assert (seen["focused"], seen["shown"]) == ("question", [emoji])
    assert json.loads(seen["settings"]) == {"temperature": 0.72}
    assert seen["left"] == "7"
    left_out = "The oldest turns are left out: the context is full."
    assert seen["notes"][1] == ""
    assert any(note.startswith(left_out) for note in seen["notes"])
    assert max(prompts) < 2048
    assert (seen["empty"], seen["answer"]) == (0, "three")
    assert "no room, or no leave" in seen["said"]
