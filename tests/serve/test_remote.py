"""Those of ours who ask a server: `polylm chat --url`, and the writer of self-instruct."""

import builtins

import pytest

from polylm_jax.__main__ import main
from polylm_jax.decode.chat import ChatSettings
from polylm_jax.serve import remote
from polylm_jax.tune.journal import Request, read_body
from polylm_jax.tune.writer import Endpoint, Writer
from tests.serve.conftest import TEXTS
from tests.serve.test_http import soon
from tests.tune.test_writer import Book


@pytest.fixture
def talk(monkeypatch, capsys):
    """Function (questions, flags) -> exit status, what was said, what was complained of."""

    def talk(questions, *flags):
        left = iter(questions)

        def asked(prompt=""):
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(builtins, "input", asked)
        status = main(["chat", *flags])
        return status, *capsys.readouterr()

    return talk


def test_chat_talks_with_a_server_and_remembers(open_site, talk, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sesame")
    with open_site(key="sesame") as site:
        flags = [f"--url={site.url}/v1/", "--key_variable=SOME_KEY", "--gin.chat.seed=3"]
        status, said, _ = talk(["th", "«and now»", "/clear", "ar", "/stop"], *flags)
        assert status == 0
        assert said.startswith(f"tiny at {site.url}/v1.")
        assert all(text in said for text in (TEXTS["th"], "and now", TEXTS["ar"], "Forgotten"))
        first, second, third = site.engine.calls
        assert second.prompt[: len(first.prompt)] == first.prompt
        assert len(third.prompt) < len(second.prompt)
        assert (first.temperature, first.top_p, first.seed) == (0.7, 0.8, 3)


def test_the_oldest_turns_go_where_a_server_says_that_the_context_is_full(open_site, talk):
    with open_site(context=160) as site:
        long = "«" + "word " * 14 + "»"
        status, said, _ = talk([long] * 4, f"--url={site.url}/v1")
        assert status == 0
        lengths = [len(call.prompt) for call in site.engine.calls]
        assert lengths[0] < lengths[1] < 160
        assert lengths[-1] < lengths[0] + lengths[1]  # not of all that was said
        status, said, _ = talk(["x " * 400], f"--url={site.url}/v1")
        assert "context of 160" in said


def test_what_a_server_refuses_is_one_sentence(open_site, talk):
    with open_site(key="sesame") as site:
        status, _, complaint = talk(["x"], f"--url={site.url}/v1", "--key_variable=NO_KEY")
        assert status == 1
        assert "says no: The key is missing or wrong" in complaint
        url = f"{site.url}/v1"
    status, _, complaint = talk(["x"], f"--url={url}")
    assert status == 1
    assert "cannot be reached" in complaint
    wrong = ("nowhere", "http://a..b/v1", "http://[:::]/v1", "http://127.0.0.1:70000/v1")
    for flags in (*([f"--url={one}"] for one in wrong), [], ["--run=.", f"--url={url}"]):
        status, _, complaint = talk(["x"], *flags)
        assert status == 1
        assert complaint.count("\n") == 1


def test_a_talk_outlives_a_server_that_is_gone_for_a_turn(open_site, talk):
    with open_site() as site:

        def questions():
            yield "th"
            site.server.handle_exit(15)
            site.thread.join(10)
            yield "ar"

        status, said, _ = talk(questions(), f"--url={site.url}/v1")
        assert status == 0
        assert TEXTS["th"] in said
        assert "[http" in said
        assert "cannot be reached" in said


def test_an_answer_that_is_left_frees_the_slot(open_site):
    with open_site(pause=0.02) as site:
        said = {"messages": [{"role": "user", "content": "«" + "word " * 150 + "»"}]}
        parts = remote.stream(f"{site.url}/v1", "", said)
        assert next(parts)
        parts.close()
        assert soon(lambda: site.engine.counts().running == 0)
        assert len(site.engine.cancels) == 1


def test_self_instructs_writer_works_against_a_server(open_site, monkeypatch):
    monkeypatch.setenv("STAND_IN_KEY", "sesame")
    with open_site(key="sesame", chat=ChatSettings(format="multialpaca")) as site:
        url = f"{site.url}/v1"
        settings = Writer(url=url, key_variable="STAND_IN_KEY", concurrency=8, tries=2)
        requests = [Request("es", 1, i, f"«{i} is it»", settings.made_with) for i in range(20)]
        book = Book()
        Endpoint(settings, seed=0).write(requests, book.desk())
    replies = {request.prompt: read_body(book.bodies[request.id]) for request in requests}
    assert all(reply.text == prompt[1:-1] for prompt, reply in replies.items())
    assert all(reply.finished and reply.tokens for reply in replies.values())
