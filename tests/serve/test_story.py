"""The page: what it tells of a run, and that nothing but itself can run in it."""

import asyncio
import json
import os
import re
import sys
import time

import httpx
import pytest

from polylm_jax.__main__ import main
from polylm_jax.runs import figures
from polylm_jax.serve import page
from polylm_jax.serve.http import make_app
from polylm_jax.serve.story import story, told_often
from polylm_jax.train.heartbeat import write
from polylm_jax.verbs.serve import called
from tests.serve.test_http import HTTP

SCHEDULE = {"non_english": [[0, 0.3], [500, 0.3], [1000, 0.6]], "smoothing": 0.0}
STAGE = {"step": 0, "row": 0, "length": 10, "schedule": SCHEDULE, "streams": {}}
STAGE |= {"rows": {"en": 9, "de": 9, "th": 9}}
BEAT = {"time": 1.0, "moved": 1.0, "state": "finished", "host": "h", "pid": 1, "processes": 1}
BEAT |= {"step": 5, "steps": 20, "tokens": 500, "loss": None}


def record(kind, step, **more):
    return {"kind": kind, "step": step, "tokens": step * 100, **more}


@pytest.fixture
def run(tmp_path):
    """The folder of a run that is at its first quarter."""
    counts = {"row_counts": {"en": 7, "de": 3}, "schedule_counts": {"en": 7.0, "de": 3.0}}
    bits = lambda value: {"en": value, "th": value / 2, "en-de": 1.0}  # noqa: E731
    records = [
        record("valid", 0, bits_per_byte=bits(4.0), loss=bits(9.0)),
        *(record("train", step, loss=9.0 - step, **counts) for step in (1, 2, 3)),
        record("train", 4, loss=None, **counts),
        record("valid", 5, bits_per_byte=bits(2.0), loss=bits(4.0)),
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    write(str(tmp_path), BEAT)
    return tmp_path


def test_a_story_has_the_languages_the_loss_and_the_schedule_so_far(run):
    told = story(str(run))
    assert (told["state"], told["step"], told["steps"]) == ("finished", 5, 20)
    assert told["languages"] == [
        {"name": "English (en)", "code": "en", "before": 4.0, "after": 2.0},
        {"name": "Thai (th)", "code": "th", "before": 2.0, "after": 1.0},
    ]
    assert told["loss"]["train"] == [(100, 8.0), (200, 7.0), (300, 6.0)]
    assert told["loss"]["valid"] == [(0, 6.75), (500, 3.0)]
    # before the first checkpoint the schedule is what was logged of it
    assert told["schedule"]["tokens"][-1] == 400


def test_the_schedule_is_that_of_the_whole_run_once_a_checkpoint_notes_it(run):
    for step, stages in ((3, [STAGE]), (4, "damaged")):
        meta = run / "checkpoints" / str(step) / "meta"
        meta.mkdir(parents=True)
        (meta / "metadata").write_text(json.dumps({"stages": stages}))
    told = story(str(run))["schedule"]
    assert (told["tokens"][0], told["tokens"][-1], told["now"]) == (0, 2000, 500)
    shares = {band["name"]: band["shares"] for band in told["bands"]}
    assert shares["English"][0] == pytest.approx(0.7)
    assert shares["English"][-1] == pytest.approx(0.4)
    assert all(
        sum(column) == pytest.approx(1, abs=1e-3) for column in zip(*shares.values(), strict=True)
    )


def test_a_run_that_has_not_begun_has_a_note_and_no_figures(tmp_path):
    told = story(str(tmp_path))
    assert told["state"] == "never started"
    assert "metrics.jsonl" in told["note"]
    assert "loss" not in told


def test_a_run_that_has_just_begun_is_not_told_to_be_none(tmp_path):
    now = time.time()
    beat = BEAT | {"state": "running", "time": now, "moved": now, "step": 0}
    write(str(tmp_path), {name: value for name, value in beat.items() if name != "tokens"})
    told = story(str(tmp_path))
    assert (told["state"], told["step"], told["steps"]) == ("running", 0, 20)
    assert "note" not in told


def test_a_log_that_is_damaged_or_out_of_reach_is_said(run):
    now = time.time()
    write(str(run), BEAT | {"state": "running", "time": now, "moved": now})
    log = run / "metrics.jsonl"
    log.write_text("nothing\n" + log.read_text())
    told = story(str(run))
    assert told["state"] == "running"
    assert "metrics.jsonl:1 is not a record of a run" in told["note"]
    log.unlink()
    log.mkdir()
    told = story(str(run))
    assert (told["state"], told["healthy"]) == ("out of reach", False)
    assert "cannot be read (Is a directory); make it readable." in told["note"]


def test_a_story_is_not_read_anew_at_every_call(run):
    told = told_often(str(run))
    first = told()
    (run / "metrics.jsonl").unlink()
    assert told() is first


def test_the_figures_of_the_page_grow_with_the_runs_log(run, monkeypatch):
    """As the page asks, beside a run that goes on and is cut in the middle of a line."""
    monkeypatch.setattr("polylm_jax.serve.story.OFTEN", 0)
    monkeypatch.setattr("polylm_jax.serve.story.SHARE", 1e9)
    transport = httpx.ASGITransport(make_app(None, "", (), told_often(str(run)), "tiny"))

    async def follow():
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            with open(run / "metrics.jsonl", "a") as log:
                for step in range(6, 10):
                    valid = {"bits_per_byte": {"en": 8 / step}, "loss": {"en": 24 / step}}
                    for one in (
                        record("train", step, loss=1 / step),
                        record("valid", step, **valid),
                    ):
                        log.write(json.dumps(one) + "\n")
                    log.write('{"kind": "tra')
                    log.flush()
                    now = time.time()
                    state = {"state": "running", "time": now, "moved": now, "step": step}
                    write(str(run), BEAT | state | {"tokens": step * 100})
                    told = (await client.get("/run.json")).json()
                    assert (told["state"], told["step"]) == ("running", step)
                    assert told["loss"]["train"][-1] == [step * 100, 1 / step]
                    assert told["loss"]["valid"][-1] == [step * 100, 24 / step]
                    assert told["languages"][0]["after"] == 8 / step
                    assert told["schedule"]["now"] == step * 100
                    log.truncate(log.tell() - len('{"kind": "tra'))

    asyncio.run(follow())


def test_the_page_has_the_colours_of_the_figures_and_runs_nothing_else():
    content, policy = page.read()
    for colour in (figures.INK, figures.GRID, figures.PALE, figures.BLUE, figures.RED):
        assert colour in content
    rules = dict(part.split(" ", 1) for part in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy
    assert rules["script-src"].count("sha256") == rules["style-src"].count("sha256") == 1
    assert rules["connect-src"] == "'self'"
    # no other host is asked, nothing runs from an attribute, no text becomes markup
    assert set(re.findall(r"https?://[^\s\"']+", content)) == {"http://www.w3.org/2000/svg"}
    for forbidden in (" style=", " onclick=", "innerHTML", "outerHTML", "insertAdjacent", "eval("):
        assert forbidden not in content
    assert "document.write" not in content


def test_a_page_alone_answers_no_questions(run):
    transport = httpx.ASGITransport(make_app(None, "", (), told_often(str(run)), "tiny"))

    async def ask():
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            answers = [await client.get(path) for path in ("/", "/run.json", "/health")]
            return [*answers, await client.post("/v1/completions", json={"prompt": "a"})]

    shown, told, health, refused = asyncio.run(ask())
    assert "text/html" in shown.headers["content-type"]
    assert shown.headers["content-security-policy"] == page.read()[1]
    assert told.json()["chat"] is None
    assert told.json()["name"] == "tiny"
    assert (health.status_code, refused.status_code) == (200, 404)


def test_the_page_of_a_server_knows_how_its_chats_are_asked(site):
    told = HTTP.get(site.url + "/run.json").json()
    assert told["chat"]["format"] == "base"
    assert told["chat"]["context"] == 2048


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--host=0.0.0.0"], "lets other machines in, and there is no key; export POLYLM_KEY"),
        (["--port=70000"], "--port=70000; it must lie between 0 and 65,535"),
        (["--host=999.1.1.1", "--gin.serve.key_file=key"], "cannot be listened at"),
        (["--gin.serve.origins=('ftp://x',)"], "is no origin; write it like https://"),
        (["--gin.serve.key_file=nowhere"], "nowhere of serve.key_file cannot be read"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(run, flags, sentence, capsys, monkeypatch):
    monkeypatch.chdir(run)
    monkeypatch.delenv("POLYLM_KEY", raising=False)
    (run / "key").write_text("sesame")
    assert main(["serve", f"--run={run}", "--page_only", *flags]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert "sesame" not in said


def test_a_model_is_called_as_its_folder_is_whatever_way_leads_there(run, monkeypatch):
    monkeypatch.chdir(run)
    (run / "inside").mkdir()
    for way in (".", str(run), "inside/..", f"../{run.name}", f"gs://bucket/{run.name}"):
        assert called(way) == run.name
    assert called("/") == "model"
    assert called(os.fsdecode(b"caf\xe9")) == "caf\ufffd"  # answers are UTF-8


def test_a_missing_package_is_named_with_its_extra(run, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "polylm_jax.serve.server")
    monkeypatch.delattr(sys.modules["polylm_jax.serve"], "server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", f"--run={run}", "--page_only"]) == 1
    assert 'serving needs uvicorn; pip install "polylm_jax[serve]"' in capsys.readouterr().err
