"""A server of a fake engine, on a port of its own."""

import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.decode.chat import ChatSettings
from polylm_jax.serve.http import Desk, make_app
from polylm_jax.serve.requests import Served
from polylm_jax.serve.server import Server, bind
from tests import scripted
from tests.data.sentences import SENTENCES
from tests.serve.fake import FakeEngine

TEXTS = {code: "".join(lines[1:2]) for code, lines in SENTENCES.items()}


@pytest.fixture(scope="session")
def vocabulary():
    """A tokenizer of which many characters have no piece, so that they are said in bytes."""
    lines = [line for code in ("en", "de", "ar") for line in SENTENCES[code]]
    return Tokenizer(scripted.tokenizer(sentence_iterator=iter(lines * 5), vocab_size=600)[0])


@dataclass
class Site:
    """A server that runs."""

    port: int
    engine: FakeEngine
    desk: Desk
    server: Server
    thread: threading.Thread

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="session")
def say(vocabulary):
    """Script: a text in the language whose code ends the prompt, or what stands in quotes there."""

    def say(call):
        prompt = vocabulary.decode([list(call.prompt)])[0].strip()
        if prompt.endswith("»"):
            text = prompt[prompt.rindex("«") + 1 : -1]
        else:
            text = TEXTS.get(prompt[-2:], TEXTS["en"])
        return vocabulary.encode([text])[0]

    return say


@pytest.fixture(scope="session")
def open_site(vocabulary, say):
    """Function (engine's settings, key, origins, drain_seconds, chat, story) -> a context with a
    Site."""

    @contextmanager
    def open_site(
        key="",
        origins=(),
        drain_seconds=5,
        chat=None,
        script=None,
        unread=0,
        story=None,
        **settings,
    ):
        engine = FakeEngine(script or say, **settings)
        chat = chat or ChatSettings(format="base", keep_ends=True)
        desk = Desk(Served("tiny", vocabulary, engine.context, chat), engine)
        listening = bind("127.0.0.1", 0)
        if unread:  # bytes of an answer that may lie unread between server and client
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, unread)
        server = Server(make_app(desk, key, origins, story), desk, drain_seconds)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        site = Site(listening.getsockname()[1], engine, desk, server, thread)
        try:
            yield site
        finally:
            server.handle_exit(15)
            server.handle_exit(15)
            thread.join(10)
            engine.close(0)
            assert not thread.is_alive()

    return open_site


@pytest.fixture(scope="module")
def site(open_site):
    with open_site() as site:
        yield site
