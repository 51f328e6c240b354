"""An endpoint's refusals, waits and limits; and that its key is never seen."""

import errno
import json
import os
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

from polylm_jax.errors import UserError
from polylm_jax.tune.journal import Journal, Request, read_body, tokens_of
from polylm_jax.tune.writer import Desk, Endpoint, Pace, Stopped, Writer, retry_after
from tests.tune.stand_in import KEY, NO_MONEY, endpoint


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("STAND_IN_KEY", KEY)


QUICK = Writer(key_variable="STAND_IN_KEY", first_wait=0.001, longest_wait=0.02, timeout=5, tries=3)


class Book:
    """A desk that writes down what happens."""

    def __init__(self):
        self.log, self.told, self.stop = Counter(), [], threading.Event()
        self.bodies = {}

    def desk(self):
        def note(word):
            return lambda request: self.log.update([word])

        notes = map(note, ("asked", "unpaid", "broke off"))
        return Desk(*notes, self.answered, self.told.append, self.stop)

    def answered(self, request, body):
        self.log.update(["answered"])
        self.bodies[request.id] = body


def ask(server, settings=QUICK, count=1, book=None):
    book = book or Book()
    settings = replace(settings, url=server.url)
    requests = [Request("es", 1, i, f"prompt {i}", settings.made_with) for i in range(count)]
    Endpoint(settings, seed=0).write(requests, book.desk())
    return book


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (401, {"error": {"message": f"bad key {KEY}"}}, "401 (bad key ***); see to the key"),
        (403, {"error": "not yours"}, "403 (not yours); see to what the key may do"),
        (404, {"detail": "no such model"}, "mend writer.url, which ends in /v1, or writer.model"),
        (400, {"error": {"message": "max_tokens is too large"}}, "max_tokens is too large"),
        (429, NO_MONEY, "no money left (insufficient_quota pay first, ***)"),
        (402, {}, "no money left"),
        (302, {}, "answered 302"),
    ],
)
def test_what_waiting_does_not_mend_ends_at_once(status, body, sentence):
    with endpoint(status=status, body=body) as server:
        with pytest.raises(UserError) as raised:
            ask(server, count=20)
        assert server.seen <= QUICK.concurrency
    assert sentence in str(raised.value)
    assert KEY not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_goes_on_failing_ends_with_a_sentence():
    with endpoint(status=500) as server:
        book = Book()
        with pytest.raises(UserError, match="failed 3 times, at last because it answered 500"):
            ask(server, book=book)
        assert server.seen == 3
    assert book.log == {"asked": 3, "unpaid": 3}
    with pytest.raises(UserError, match="nothing listens at"):
        ask(server)


@pytest.mark.parametrize(
    "message",
    [
        # OpenAI's, on a free account, of too many a minute
        "Rate limit reached for gpt-3.5-turbo on requests per min. Limit: 3 / min. Try again in "
        "20s. Visit https://platform.openai.com/account/billing to add a payment method.",
        # Gemini's, of a minute as well as of a day
        "You exceeded your current quota, please check your plan and billing details. "
        "Please retry in 17.3s.",
    ],
)
def test_a_rate_that_tells_where_to_pay_is_waited_for(message):
    body = {"error": {"code": "rate_limit_exceeded", "message": message}}
    with endpoint(status=429, body=body) as server:
        with pytest.raises(UserError, match="failed 3 times, at last because it answered 429"):
            ask(server)
        assert server.seen == 3


def test_a_prompt_that_a_content_filter_refuses_is_answered_with_nothing():
    body = {"error": {"code": "content_filter", "message": "no"}}
    with endpoint(status=400, body=body) as server:
        book = ask(server)
    [said] = book.bodies.values()
    assert read_body(said).text == ""
    assert not read_body(said).finished


def test_a_request_has_so_long_and_no_longer_even_if_bytes_drip(monkeypatch):
    def drip(self, fault, attempt):
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.05)

    monkeypatch.setattr("tests.tune.stand_in._Handler.play", drip)
    monkeypatch.setattr("tests.tune.stand_in.Endpoint.plan", lambda *_: ["drip"] * 9)
    book = Book()
    with endpoint() as server:
        started = time.monotonic()
        with pytest.raises(UserError, match=r"no answer came within 0\.3 s"):
            ask(server, replace(QUICK, timeout=0.3, tries=2), book=book)
        assert time.monotonic() - started < 4
    assert book.log == {"asked": 2, "broke off": 2}


def test_it_stops_when_asked_to_and_finishes_what_is_under_way():
    book = Book()
    with endpoint(delay=0.4) as server:
        threading.Timer(0.1, book.stop.set).start()
        with pytest.raises(Stopped):
            ask(server, count=500, book=book)
        assert book.log["asked"] == book.log["answered"] < 500


def test_requests_leave_no_faster_than_the_cap():
    with endpoint(delay=0) as server:
        ask(server, replace(QUICK, requests_a_minute=1200), count=12)
        gaps = [b - a for a, b in zip(server.times, server.times[4:], strict=False)]
    assert min(gaps) > 4 * 0.05 * 0.8


def test_a_pace_keeps_both_caps_and_takes_back_what_was_not_used():
    now = [0.0]
    pace = Pace(60, 600, clock=lambda: now[0])
    assert [pace.delay(10) for _ in range(3)] == [0, 1, 2]
    assert pace.delay(100) == 3
    assert pace.delay(1) == pytest.approx(13)
    now[0] = 20
    assert pace.delay(1000) == 0
    pace.used_less(950)
    assert pace.delay(1) == pytest.approx(5)
    pace.pause(50)
    assert pace.delay(1) == pytest.approx(50)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("-3", 0),
        ("1.5", 1.5),
        ("1e400", float("inf")),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert retry_after(header, now=60) == seconds


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"url": "localhost:8000"}, "is no address of an endpoint"),
        ({"url": "http://a b/v1"}, "is no address"),
        ({"url": "http://a..b/v1"}, "is no address"),
        ({"url": f"http://{'a' * 64}.org/v1"}, "is no address"),
        ({"url": "http://[:::]/v1"}, "is no address"),
        ({"url": "http://localhost:70000/v1"}, "is no address"),
        ({"url": f"https://me:{KEY}@host/v1"}, "put the key in an environment"),
        ({"url": f"https://host/v1?key={KEY}"}, "put the key in an environment"),
        ({"key_variable": KEY}, "writer.key_variable is no name of an environment variable"),
        ({"limit": "tokens"}, "choose one of max_tokens, max_completion_tokens"),
        ({"usd_in": -1.0}, "writer.usd_in"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_and_no_key_shown(settings, sentence):
    with pytest.raises(UserError) as raised:
        Writer(**settings)
    assert sentence in str(raised.value)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("value", [None, "", " \n", f"{KEY}\n{KEY}", f"{KEY} ü"])
def test_a_key_that_is_missing_or_none_is_refused(value, monkeypatch):
    monkeypatch.delenv("STAND_IN_KEY")
    if value is not None:
        monkeypatch.setenv("STAND_IN_KEY", value)
    with pytest.raises(UserError, match="STAND_IN_KEY") as raised:
        Endpoint(QUICK, seed=0)
    assert KEY not in str(raised.value)


BODY = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}


def test_answers_of_all_kinds_are_read():
    reply = read_body(json.dumps(BODY | {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}))
    assert (reply.text, reply.finished, reply.tokens) == ("a", True, (3, 4))
    assert read_body(json.dumps(BODY)).tokens is None
    for usage in (None, {}, {"prompt_tokens": 3}, {"prompt_tokens": "3", "completion_tokens": -1}):
        assert tokens_of(json.dumps({"usage": usage})) is None
    for body in ("", "[]", "{", "null", '{"choices": []}', '{"choices": [{}]}', "[" * 10**5):
        assert read_body(body) is None
    half = read_body(
        '{"choices": [{"message": {"content": "a\\ud83d b"}, "finish_reason": "length"}]}'
    )
    assert half.text == "a\ufffd b"
    assert not half.finished


def test_a_journal_survives_what_a_crash_leaves_and_counts_every_cent(tmp_path):
    path = tmp_path / "journal.jsonl"
    one, two, three = (Request("es", 1, i, "p", "w") for i in range(3))
    used = json.dumps(BODY | {"usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    journal = Journal(path)
    for request in (one, two, three):
        journal.asked(request, (10, 100))
    journal.answered(one, used)
    journal.unpaid(two)
    assert journal.spent().unsure == (10, 100)  # the third broke off, or is under way
    journal.asked(two, (10, 100))
    journal.answered(two, "half\u2028 an answer\x85 é")
    journal.close()
    with open(path, "ab") as file:
        file.write(b'{"answered": "' + three.id.encode() + b'", "bo')
    again = Journal(path)
    assert again.reply(one).text == "a"
    assert again.reply(two) is again.reply(three) is None
    spent = again.spent()
    assert (spent.known, spent.unsure) == ((3, 4), (20, 200))
    assert (spent.answers, spent.silent, spent.open) == (2, 1, 1)
    again.answered(three, used)
    again.close()
    assert Journal(path).reply(three).text == "a"
    assert not Journal(path).asked_before(one)
    assert Journal(path).asked_before(replace(one, prompt="q"))
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    with pytest.raises(UserError, match=r"journal.jsonl:1 is no line of a journal"):
        Journal(path)


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    journal, write = Journal(tmp_path / "journal.jsonl"), os.write
    request = Request("es", 1, 0, "p", "w")
    journal.asked(request, (1, 1))
    before = journal.path.read_bytes()

    def full(file, data):
        write(file, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("polylm_jax.tune.journal.os.write", full)
    with pytest.raises(OSError, match="No space"):
        journal.answered(request, json.dumps(BODY))
    assert journal.path.read_bytes() == before
    assert journal.reply(request) is None
