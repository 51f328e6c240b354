"""The server over a real connection: forms, errors, hang-ups, the key, the end."""

import base64
import concurrent.futures
import ctypes
import gc
import json
import random
import resource
import socket
import threading
import time

import httpx
import pytest

from polylm_jax.errors import UserError
from polylm_jax.serve import http, server
from polylm_jax.serve.access import check_host, read_key
from polylm_jax.serve.server import Server, bind, serve
from polylm_jax.serve.settings import Serving
from tests.data.sentences import SENTENCES
from tests.serve.conftest import TEXTS

# one for all, for each takes long to begin
LIMITS = httpx.Limits(max_connections=64, max_keepalive_connections=64)
HTTP = httpx.Client(verify=False, timeout=60, limits=LIMITS)


@pytest.fixture
def client(site):
    with httpx.Client(base_url=site.url, timeout=20) as client:
        yield client


def events(text):
    """The events of a stream, and whether it was said to be whole."""
    data = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(one) for one in data if one != "[DONE]"], data[-1:] == ["[DONE]"]


def soon(true, seconds=5.0):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def hello(text="Hello", **more):
    return {"messages": [{"role": "user", "content": text}], **more}


@pytest.mark.parametrize("chat", [False, True])
def test_a_joined_stream_is_the_whole_answer_in_18_languages(client, chat):
    path = "/v1/chat/completions" if chat else "/v1/completions"
    for code in SENTENCES:
        asked = hello(code) if chat else {"prompt": code, "max_tokens": 1000}
        asked |= {"n": 2, "seed": 7, "stream_options": {"include_usage": True}}
        whole = client.post(path, json=asked).json()
        told, done = events(client.post(path, json=asked | {"stream": True}).text)
        assert done
        assert [choice["finish_reason"] for choice in whole["choices"]] == ["stop", "stop"]
        for index, choice in enumerate(whole["choices"]):
            parts = [c for e in told for c in e["choices"] if c["index"] == index]
            say = lambda c: c["delta"].get("content", "") if chat else c["text"]  # noqa: E731
            text = choice["message"]["content"] if chat else choice["text"]
            assert "".join(map(say, parts)) == text == TEXTS[code]
            assert [p["finish_reason"] for p in parts] == [None] * (len(parts) - 1) + ["stop"]
        assert told[-1]["choices"] == []
        assert told[-1]["usage"] == whole["usage"]
        assert all(one["usage"] is None for one in told[:-1])
        if chat:
            assert told[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_a_stop_never_leaks_and_frees_the_slot(client, site, vocabulary):
    said = {"prompt": "«one two three four»", "max_tokens": 99, "stop": ["thr", "four"]}
    whole = client.post("/v1/completions", json=said).json()
    assert whole["choices"][0]["text"] == "one two "
    assert whole["choices"][0]["finish_reason"] == "stop"
    used = whole["usage"]["completion_tokens"]
    ids = vocabulary.encode(["one two three four"])[0]
    assert "thr" in vocabulary.decode([ids[:used]])[0]
    assert "thr" not in vocabulary.decode([ids[: used - 1]])[0]
    told, done = events(client.post("/v1/completions", json=said | {"stream": True}).text)
    assert done
    assert "".join(c["text"] for e in told for c in e["choices"]) == "one two "
    assert soon(lambda: site.engine.counts().running == 0)


def test_an_event_is_one_line_whatever_ends_a_line(client):
    text = "one\x85two\u2028three\u2029four\x0bfive\x1csix"
    asked = {"prompt": f"«{text}»", "max_tokens": 200, "stream": True}
    lines = client.post("/v1/completions", json=asked).text.splitlines()
    told = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(one["choices"][0]["text"] for one in told) == text


def test_log_probabilities_have_the_legacy_shape_and_the_chats(client, vocabulary):
    asked = {"prompt": "Bread «Tea»", "max_tokens": 9, "echo": True, "logprobs": 2}
    for stream in (False, True):
        answer = client.post("/v1/completions", json=asked | {"stream": stream})
        parts = events(answer.text)[0] if stream else [answer.json()]
        told = [part["choices"][0]["logprobs"] for part in parts if part["choices"]]
        told = {name: [x for one in told for x in one[name]] for name in told[0]}
        ids = [*vocabulary.encode(["Bread «Tea»"])[0], *vocabulary.encode(["Tea"])[0], 2]
        assert told["text_offset"][0] == 0
        assert told["token_logprobs"][0] is None
        assert told["top_logprobs"][0] is None
        assert len({*map(len, told.values())}) == 1
        assert len(told["tokens"]) == len(ids)
        assert told["tokens"][-1] == "</s>"
        for token, chance, top in list(
            zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
        )[1:-1]:
            assert max(top.values()) == chance == top[token]
    answer = client.post(
        "/v1/chat/completions", json=hello("th", max_tokens=9, logprobs=True, top_logprobs=2)
    ).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"] == 9
    joined = b"".join(bytes(one["bytes"]) for one in content).decode(errors="replace")
    assert joined == answer["choices"][0]["message"]["content"]
    assert all(len(one["top_logprobs"]) == 2 for one in content)
    assert answer["choices"][0]["finish_reason"] == "length"


def test_usage_counts_prompts_once_and_answers_all(client, vocabulary):
    prompts = ["«one»", "«two two»"]
    answer = client.post("/v1/completions", json={"prompt": prompts, "n": 3}).json()
    size = lambda text: len(vocabulary.encode([text])[0])  # noqa: E731
    usage = answer["usage"]
    assert [choice["index"] for choice in answer["choices"]] == [*range(6)]
    assert [choice["text"] for choice in answer["choices"]] == ["one"] * 3 + ["two two"] * 3
    assert usage["prompt_tokens"] == sum(map(size, prompts))
    assert usage["completion_tokens"] == 3 * (size("one") + size("two two"))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/completions", b'{"prompt": "a", "stop": {}}', 400),
        ("POST", "/v1/completions", b'{"prompt": "a", "temperature": NaN}', 400),
        ("POST", "/v1/completions", b'{"prompt": "\xff"}', 400),
        ("POST", "/v1/completions", b'{"prompt": "\\ud800"}', 400),
        ("POST", "/v1/completions", b"[" * 100_000, 400),
        ("POST", "/v1/completions", b"", 400),
        ("POST", "/v1/completions", b'{"prompt": ' + b"1" * 5000 + b"}", 400),
        ("POST", "/v1/completions", json.dumps({"prompt": "x " * 5000}).encode(), 400),
        ("POST", "/v1/completions", b'{"prompt": "a", "model": "gpt-4"}', 404),
        ("POST", "/v1/chat/completions", b'{"messages": "a"}', 400),
        ("GET", "/v1/completions", b"", 405),
        ("POST", "/v1/models", b"", 405),
        ("GET", "/v1/models/gpt-4", b"", 404),
        ("GET", "/v1/engines", b"", 404),
        ("GET", "/v1/completions/", b"", 404),
    ],
)
def test_an_error_has_openais_form(client, method, path, body, status):
    answer = client.request(method, path, content=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    assert "\n" not in error["message"]
    if status == 405:
        assert answer.headers["allow"]


def test_bodies_and_headers_are_bounded(client, site, monkeypatch):
    assert client.post("/v1/completions", content=b" " * (2**23 + 1)).status_code == 413
    parts = iter([b" " * 2**20] * 9)  # a length that is not told
    assert client.post("/v1/completions", content=parts).status_code == 413
    many = [("x-header", "x")] * 120
    assert client.post("/v1/completions", json={"prompt": "a"}, headers=many).status_code == 431
    monkeypatch.setattr(http, "BODY_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", site.port)) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")
        slow.sendall(b"Content-Length: 9\r\n\r\n{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
    assert client.get("/health").json()["status"] == "ok"


def closed(connection):
    """What comes until the other side closes; TimeoutError if it does not."""
    connection.settimeout(10)
    parts = []
    try:
        while part := connection.recv(2**16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("begun", [b"", b"GET /hea", HEAD, HEAD + b"\r\n" + HEAD])
def test_who_sends_no_request_is_let_go(open_site, monkeypatch, begun):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    with open_site() as site, socket.create_connection(("127.0.0.1", site.port)) as slow:
        slow.sendall(begun)
        assert closed(slow).count(b"HTTP/1.1 200") == begun.count(b"\r\n\r\n")
        assert soon(lambda: not site.server.server_state.connections)


def test_a_request_that_came_with_the_one_before_has_as_long_as_it_takes(open_site, monkeypatch):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    body = b'{"prompt": "\xc2\xababcdefghijklmnop\xc2\xbb", "max_tokens": 40}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    with open_site(pause=0.1) as site, socket.create_connection(("127.0.0.1", site.port)) as one:
        one.sendall(HEAD + b"\r\n" + head + body)
        answer = closed(one)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert b"abcdefghijklmnop" in answer


def test_an_answer_that_nobody_takes_is_dropped_and_one_that_is_taken_slowly_is_whole(
    open_site, monkeypatch
):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.4)
    with open_site(unread=4096, burst=20) as site:
        wide = {"prompt": "«" + "w " * 60 + "»", "max_tokens": 600, "n": 4, "logprobs": 20}
        with send(site, "/v1/completions", wide, 4096) as slow:
            head, _, body = slow.recv(2000).partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            while len(body) < length and (part := slow.recv(length // 20)):
                body += part
                time.sleep(0.05)
            assert len(body) == length
        with send(site, "/v1/completions", wide, 4096):
            assert soon(lambda: site.engine.counts().new_tokens > 0)
            assert soon(lambda: not site.server.server_state.connections)


@pytest.mark.parametrize(
    "said",
    [
        *[b"\x16\x03\x01\r\n\r\n", b"GET /\r\n\r\n", HEAD + b"Content-Length: x\r\n\r\n"],
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_refused_in_openais_form(site, said, caplog):
    with socket.create_connection(("127.0.0.1", site.port)) as connection:
        connection.sendall(said)
        answer = closed(connection)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b'{"error": {"message": "What came is no HTTP/1.1' in answer
    assert not [record for record in caplog.records if record.exc_info]


def test_a_port_that_another_has_taken_meanwhile_is_one_sentence():
    """Two that begin at once both have it until one listens."""
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    with first, bind("127.0.0.1", port) as second:
        first.listen()
        with pytest.raises(UserError, match=rf"--port={port} cannot be listened at: .* in use"):
            Server(http.make_app(None), None, 0).run([second])


def send(site, path, said, buffer=2**16):
    """A raw connection on which a request was sent. buffer: bytes that it takes unread."""
    body, connection = json.dumps(said).encode(), socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect(("127.0.0.1", site.port))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


LONG = {"prompt": "«" + "word " * 150 + "»", "max_tokens": 1200}


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_frees_the_slot(open_site, stream):
    with open_site(pause=0.02, slots=1) as site:
        connection = send(site, "/v1/completions", LONG | {"stream": stream, "n": 2})
        assert soon(lambda: site.engine.counts().running == 1)
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()
        assert soon(lambda: site.engine.counts().running + site.engine.counts().waiting == 0)
        assert sorted(site.engine.cancels) == [1, 2]  # each once, also that which waited
        assert soon(lambda: not site.desk.running)
        assert HTTP.get(site.url + "/health").json()["running"] == 0
        text = HTTP.get(site.url + "/metrics").text
        assert 'vllm:request_success_total{finished_reason="abort",model_name="tiny"} 2.0' in text


def test_what_ended_is_not_cancelled(client, site):
    before = sum(site.engine.cancels)
    client.post("/v1/completions", json={"prompt": "«a b c»", "n": 4})
    client.post("/v1/completions", json={"prompt": "«a b c»", "n": 4, "stream": True})
    assert sum(site.engine.cancels) == before


def test_a_client_that_does_not_read_slows_nobody(open_site):
    with open_site(slots=2, burst=20, unread=4096) as site:
        wide = {"prompt": "«" + "w " * 300 + "»", "max_tokens": 600, "stream": True, "n": 2}
        idle = [send(site, "/v1/completions", wide | {"logprobs": 20}, 4096) for _ in range(2)]
        assert soon(lambda: site.engine.counts().new_tokens > 0)
        for _ in range(3):
            answer = HTTP.post(site.url + "/v1/completions", json={"prompt": "«a»"}, timeout=20)
            assert answer.json()["choices"][0]["text"] == "a"
        assert soon(lambda: site.engine.counts().running == 0, 20)
        time.sleep(0.1)
        assert len(site.desk.running) == 2  # their answers wait, and hold no slot
        for connection in idle:
            connection.close()
        assert soon(lambda: not site.desk.running)


def test_a_silent_stream_says_that_it_lives(open_site, monkeypatch):
    monkeypatch.setattr(http, "PING_SECONDS", 0.05)
    with open_site(pause=0.2, burst=1) as site:
        answer = HTTP.post(site.url + "/v1/completions", json={"prompt": "«abc»", "stream": True})
    assert ": ping\n\n" in answer.text
    assert answer.headers["x-accel-buffering"] == "no"
    assert events(answer.text)[1]


def test_news_of_which_nothing_can_be_said_are_silence(open_site, monkeypatch):
    monkeypatch.setattr(http, "PING_SECONDS", 0.1)
    unheard = [1] * 8  # <s> has no text
    with open_site(script=lambda call: unheard, pause=0.05, burst=1) as site:
        answer = HTTP.post(site.url + "/v1/completions", json={"prompt": "a", "stream": True})
    assert ": ping\n\n" in answer.text
    assert events(answer.text)[1]


def test_a_story_that_takes_long_keeps_no_request_waiting(open_site):
    told = threading.Event()
    with (
        open_site(story=lambda: {"state": str(told.wait(20))}) as site,
        concurrent.futures.ThreadPoolExecutor(40) as threads,
    ):
        pages = [threads.submit(HTTP.get, site.url + "/run.json", timeout=30) for _ in range(40)]
        answer = HTTP.post(site.url + "/v1/completions", json={"prompt": "«a»"}, timeout=10)
        assert answer.json()["choices"][0]["text"] == "a"
        assert not told.is_set()
        told.set()
        assert all(page.result().json()["state"] == "True" for page in pages)


def test_a_full_queue_is_said_so(open_site):
    with open_site(slots=1, queue=1, pause=0.05) as site:
        waiting = []
        for taken in range(2):
            waiting.append(send(site, "/v1/completions", LONG))
            assert soon(lambda: site.engine.taken == taken + 1)  # noqa: B023
            assert soon(lambda: site.engine.counts().running == 1)
        answer = HTTP.post(site.url + "/v1/completions", json={"prompt": "a"})
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        # of a request with several choices none stays behind where not all are taken
        waiting.pop().close()
        assert soon(lambda: site.engine.counts().waiting == 0)
        several = HTTP.post(site.url + "/v1/completions", json={"prompt": "a", "n": 2})
        assert several.status_code == 429
        assert soon(lambda: site.engine.counts().waiting == 0)
        for connection in waiting:
            connection.close()


def test_asked_to_stop_it_answers_to_the_end_what_it_has_begun(open_site):
    with open_site(pause=0.02) as site, concurrent.futures.ThreadPoolExecutor(6) as threads:
        asked = {"prompt": "«" + "word " * 40 + "»", "max_tokens": 500}
        streams = [
            threads.submit(
                HTTP.post,
                site.url + "/v1/completions",
                json=asked | {"stream": stream},
                timeout=30,
            )
            for stream in (True, True, True, False)
        ]
        assert soon(lambda: site.engine.counts().running == 4)
        site.server.handle_exit(15)
        health = HTTP.get(site.url + "/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        late = HTTP.post(site.url + "/v1/completions", json=asked)
        assert (late.status_code, late.headers["retry-after"]) == (503, "5")
        assert late.json()["error"]["code"] == "draining"
        answers = [stream.result() for stream in streams]
        site.thread.join(10)
        assert not site.thread.is_alive()
    for answer in answers[:3]:
        told, done = events(answer.text)
        assert done
        assert "".join(c["text"] for e in told for c in e["choices"]) == "word " * 40
    assert answers[3].json()["choices"][0]["text"] == "word " * 40


def test_when_the_time_to_stop_is_over_the_rest_has_an_error(open_site):
    with open_site(pause=0.05, drain_seconds=0.3) as site:
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            url = site.url + "/v1/completions"
            stream = threads.submit(HTTP.post, url, json=LONG | {"stream": True}, timeout=30)
            plain = threads.submit(HTTP.post, url, json=LONG, timeout=30)
            assert soon(lambda: site.engine.counts().running == 2)
            site.server.handle_exit(15)
            told, done = events(stream.result().text)
            answer = plain.result()
        site.thread.join(10)
        assert not site.thread.is_alive()
    assert not done
    assert "its time is over" in told[-1]["error"]["message"]
    assert answer.status_code == 503


def test_an_engine_that_fails_ends_all_with_an_error_and_the_process_with_a_status(
    open_site, say, vocabulary
):
    with open_site(pause=0.05) as site, concurrent.futures.ThreadPoolExecutor(2) as threads:
        url = site.url + "/v1/completions"
        stream = threads.submit(HTTP.post, url, json=LONG | {"stream": True}, timeout=30)
        plain = threads.submit(HTTP.post, url, json=LONG, timeout=30)
        assert soon(lambda: site.engine.counts().running == 2)
        site.engine.fail("the device is gone")
        told, done = events(stream.result().text)
        answer = plain.result()
        site.thread.join(10)
        assert not site.thread.is_alive()
        with pytest.raises(UserError, match="failed: the device is gone") as caught:
            serve(site.server.config.app, site.desk, bind("127.0.0.1", 0), 1, "")
    assert caught.value.status == 1
    assert not done
    assert "the device is gone" in told[-1]["error"]["message"]
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"


def test_a_defect_of_ours_is_a_500_in_openais_form(open_site, monkeypatch, caplog):
    def defect(call):
        raise ZeroDivisionError

    with open_site(script=defect) as site:
        answer = HTTP.post(site.url + "/v1/completions", json={"prompt": "a"})
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert HTTP.get(site.url + "/health").status_code == 200


@pytest.fixture(scope="module")
def locked(open_site):
    with open_site(key="sesame", origins=("https://ok.example",)) as site:
        yield site


PATHS = [("GET", path) for path in ("/", "/run.json", "/metrics", "/openapi.json", "/v1/models")]
PATHS += [("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("GET", "/nowhere")]


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_all_but_the_health_is_behind_the_key(locked, method, path):
    password = base64.b64encode(b"any:sesame").decode()
    for given in (None, "", "Bearer", "Bearer x", "Bearer sesame2", "Basic x", "Basic ü", "sesame"):
        headers = {} if given is None else {"Authorization": given.encode("latin-1")}
        answer = HTTP.request(method, locked.url + path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert "sesame" not in answer.text
        assert answer.headers["www-authenticate"].startswith("Basic" if path == "/" else "Bearer")
    for given in ("Bearer sesame", "bearer sesame", f"Basic {password}"):
        headers = {"Authorization": given}
        assert HTTP.request(method, locked.url + path, headers=headers).status_code != 401


def test_who_is_not_let_in_is_counted(locked):
    counted = 'polylm:requests_refused_total{model_name="tiny",status="401"}'
    key = {"Authorization": "Bearer sesame"}
    count = lambda: float(  # noqa: E731
        HTTP.get(locked.url + "/metrics", headers=key).text.partition(counted)[2].split()[0]
    )
    assert HTTP.get(locked.url + "/v1/models").status_code == 401
    before = count()
    assert HTTP.get(locked.url + "/v1/models").status_code == 401
    assert count() == before + 1


def test_health_is_open_and_browsers_may_ask_before_they_bring_the_key(locked):
    ok = {"Origin": "https://ok.example", "Access-Control-Request-Headers": "authorization, x-y"}
    assert HTTP.get(locked.url + "/health").status_code == 200
    answer = HTTP.options(locked.url + "/v1/completions", headers=ok)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://ok.example"
    assert answer.headers["access-control-allow-headers"] == "authorization, x-y"
    other = HTTP.options(locked.url + "/v1/completions", headers=ok | {"Origin": "https://no"})
    assert "access-control-allow-origin" not in other.headers
    for path, status in (("/v1/completions", 401), ("/health", 200)):
        answer = HTTP.get(locked.url + path, headers=ok)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://ok.example"
        assert "Origin" in answer.headers["vary"]
    headers = ok | {"Authorization": "Bearer sesame"}
    wrong = HTTP.post(locked.url + "/v1/completions", headers=headers, content=b"{")
    assert wrong.status_code == 400
    assert wrong.headers["access-control-allow-origin"] == "https://ok.example"
    # a password that the browser remembers is no sign that its user wants what a page asks
    password = {"Authorization": f"Basic {base64.b64encode(b':sesame').decode()}"}
    foreign = password | {"Origin": "https://evil.example"}
    assert HTTP.get(locked.url + "/v1/models", headers=foreign).status_code == 403
    own = password | {"Origin": locked.url}
    assert HTTP.get(locked.url + "/v1/models", headers=own).status_code == 200


def test_without_a_key_only_this_machines_own_pages_may_ask(client, site):
    assert client.get("/v1/models", headers={"Host": "evil.example:80"}).status_code == 403
    assert client.get("/v1/models", headers={"Host": "localhost:9"}).status_code == 200
    for origin in ("https://evil.example", "null", "http://[", "http://127.0.0.1:1"):
        answer = client.post("/v1/completions", json={"prompt": "a"}, headers={"Origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    own = {"Origin": site.url}
    assert client.post("/v1/completions", json={"prompt": "a"}, headers=own).status_code == 200


def test_the_key_comes_from_the_environment_or_a_file(tmp_path, monkeypatch):
    monkeypatch.delenv("POLYLM_KEY", raising=False)
    assert read_key(Serving()) == ""
    file = tmp_path / "key"
    for content in (b"open sesame", b"", b"\xff"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"key of serve.key_file holds no key"):
            read_key(Serving(key_file=str(file)))
    file.write_bytes(b"sesame\n")
    assert read_key(Serving(key_file=str(file))) == "sesame"
    with pytest.raises(UserError, match=r"nowhere of serve.key_file cannot be read"):
        read_key(Serving(key_file=str(tmp_path / "nowhere")))
    monkeypatch.setenv("POLYLM_KEY", "first")
    assert read_key(Serving(key_file=str(file))) == "first"
    for host in ("127.0.0.1", "localhost", "::1"):
        check_host(host, "", Serving())
    check_host("0.0.0.0", "key", Serving())
    for host in ("0.0.0.0", "", "::", "10.0.0.1"):
        with pytest.raises(UserError, match="export POLYLM_KEY"):
            check_host(host, "", Serving())


def soak(site, requests, at_once):
    """Sends so many, of which some hang up and some are malformed; what the server counted."""
    codes, counting = list(SENTENCES), threading.Lock()
    faults, whole = [], 0

    def one(number):
        nonlocal whole
        dice = random.Random(number)
        code, kind = codes[number % 18], dice.random()
        asked = {"prompt": f"{code}", "max_tokens": 900, "stream": dice.random() < 0.7}
        if kind < 0.05:
            bad = dice.choice([b"{", b'{"prompt": 5}', b'{"prompt": "a", "stop": {}}', b"\xff"])
            if HTTP.post(site.url + "/v1/completions", content=bad, timeout=60).status_code != 400:
                faults.append("malformed")
            return
        if kind < 0.35:
            connection = send(site, "/v1/completions", asked)
            if asked["stream"] and dice.random() < 0.8:
                connection.recv(300)
            time.sleep(dice.random() * 0.02)
            connection.close()
            return
        answer = HTTP.post(site.url + "/v1/completions", json=asked, timeout=60)
        if asked["stream"]:
            told, done = events(answer.text)
            text = "".join(c["text"] for e in told for c in e["choices"]) if done else None
        else:
            text = answer.json()["choices"][0]["text"]
        with counting:
            whole += 1
            if text != TEXTS[code]:
                faults.append((number, code, text))

    with concurrent.futures.ThreadPoolExecutor(at_once) as threads:
        list(threads.map(one, range(requests)))
    assert soon(lambda: not site.desk.running and site.engine.counts().running == 0)
    assert not faults
    return whole


def sums(site):
    told = {}
    for line in HTTP.get(site.url + "/metrics").text.splitlines():
        name, _, value = line.rpartition(" ")
        if not line.startswith("#"):
            told[name] = float(value)
    ends = {k: v for k, v in told.items() if k.startswith("vllm:request_success_total")}
    return told, sum(ends.values())


def check_sums(site, whole):
    told, ended = sums(site)
    accepted = told['polylm:requests_accepted_total{model_name="tiny"}']
    assert accepted == ended == site.engine.taken
    success = 'vllm:request_success_total{finished_reason="stop",model_name="tiny"}'
    assert told[success] >= whole
    counts = site.engine.counts()
    assert counts.running == counts.waiting == counts.failed == 0
    assert told['vllm:num_requests_running{model_name="tiny"}'] == 0
    assert told['vllm:generation_tokens_total{model_name="tiny"}'] == counts.new_tokens


def test_how_long_requests_wait_and_take_is_told_under_vllms_names(open_site):
    with open_site(slots=1, pause=0.01) as site, concurrent.futures.ThreadPoolExecutor(2) as pool:
        said = {"prompt": "«" + "word " * 20 + "»", "max_tokens": 200}
        url = site.url + "/v1/completions"
        answers = [pool.submit(HTTP.post, url, json=said, timeout=30) for _ in range(2)]
        assert all(answer.result().status_code == 200 for answer in answers)
        told, _ = sums(site)
    of = lambda name: told[f'vllm:{name}{{model_name="tiny"}}']  # noqa: E731
    seconds = {
        name: of(f"{name}_seconds_sum")
        for name in (
            *("e2e_request_latency", "request_queue_time", "request_inference_time"),
            *("request_prefill_time", "request_decode_time", "time_to_first_token"),
        )
    }
    assert all(of(f"{name}_seconds_count") == 2 for name in seconds)
    assert of("request_time_per_output_token_seconds_count") == 2
    assert (of("request_params_n_sum"), of("request_params_max_tokens_sum")) == (2, 400)
    assert of("num_preemptions_total") == 0
    # one waits until the other has ended
    assert 0.05 < seconds["request_queue_time"] < seconds["request_inference_time"]
    parts = seconds["request_queue_time"] + seconds["request_inference_time"]
    assert seconds["e2e_request_latency"] == pytest.approx(parts, abs=0.02)
    parts = seconds["request_prefill_time"] + seconds["request_decode_time"]
    assert seconds["request_inference_time"] == pytest.approx(parts, abs=0.05)


def test_three_hundred_requests_leave_nothing_behind(open_site):
    with open_site(slots=8, queue=1000, burst=20) as site:
        whole = soak(site, 300, 32)
        assert whole > 150
        check_sums(site, whole)


@pytest.mark.rare
def test_five_thousand_requests_leave_nothing_behind(open_site):
    """Of which 30% hang up and 5% are malformed, 32 at a time; memory within 2%."""
    with open_site(slots=8, queue=1000, burst=20) as site:
        whole = soak(site, 2000, 32)
        before = memory()
        whole += soak(site, 3000, 32)
        check_sums(site, whole)
        assert memory() < 1.02 * before


def memory():
    """Bytes in use, without what was freed and lies between what is in use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
