"""Models from a hub of our own on loopback, whose connections break."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from polylm_jax.interop import hub
from polylm_jax.interop.hugging_face import params_from
from tests.interop.conftest import params_of
from tests.interop.test_convert import same

NAME, PIECE = "polyglot/tiny-1.7b", 10 << 20


class Hub(BaseHTTPRequestHandler):
    """The endpoints that huggingface_hub asks; `server` holds the files and what shall go wrong."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.path.partition("?")[0]
        if path == f"/api/models/{NAME}":
            files = self.server.files.items()
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files]
            reply = json.dumps({"id": NAME, "sha": "c0ffee" * 6 + "c0ff", "siblings": siblings})
            return self.send(reply.encode(), {}, body)
        content = self.server.files.get(path.rpartition("/")[2])
        if content is None or not path.startswith(f"/{NAME}/resolve/"):
            headers = {"X-Error-Code": "RepoNotFound"}
            return self.send(b"", headers, body, status=404)
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": "c0ffee",
            "Accept-Ranges": "bytes",
        }
        if not body or "Range" not in self.headers:
            return self.send(content, headers, body)
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.send(content[start:], headers, body, status=206)

    def send(self, content, headers, body, status=200):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if not body:
            return
        large = len(content) > 1e6
        if large:
            self.server.asked.append(self.headers.get("Range"))
        if large and self.server.breaks:
            self.server.breaks -= 1
            self.wfile.write(content[:PIECE])
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True
            if not self.server.breaks and self.server.dies:
                self.server.files = {}  # and no hub any more
            return
        self.wfile.write(content)


@pytest.fixture
def server(weights, hugging_face):
    # huggingface_hub keeps what came in pieces of 10 MB
    folder = hugging_face(weights | {"buffer": np.arange(4 << 20)})
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        server.breaks, server.dies, server.asked = 0, False, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def fetch(server, run, name=NAME):
    """polylm import in a process of its own, for huggingface_hub reads its settings only once."""
    place = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": f"{run}.home"}
    return subprocess.run(
        [sys.executable, "-m", "polylm_jax", "import", f"--from={name}", f"--run={run}"],
        env=os.environ | place | {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"},
        capture_output=True,
        text=True,
    )


def test_a_broken_download_goes_on_in_the_process_and_in_the_next(
    server, release, weights, tmp_path
):
    run, files = tmp_path / "run", server.files
    server.breaks, server.dies = 2, True
    first = fetch(server, run)
    assert first.returncode == 1
    sentence = first.stderr.splitlines()[-1]
    assert "could not be fetched from the hub" in sentence or "no model on the hub" in sentence
    assert not run.exists()
    (part,) = run.with_name("run.download").rglob("*.part")
    assert part.stat().st_size == 2 * PIECE

    server.files, server.dies, server.breaks = files, False, 1
    asked = len(server.asked)
    second = fetch(server, run)
    assert second.returncode == 0, second.stderr
    same(params_of(run, release[0]), params_from(weights, release[0]))
    assert server.asked[asked:] == [f"bytes={2 * PIECE}-", f"bytes={3 * PIECE}-"]
    assert [path.name for path in tmp_path.iterdir() if "download" in path.name] == []


def test_what_cannot_be_fetched_or_imported_is_one_sentence(server, tmp_path):
    run = tmp_path / "run"
    found = fetch(server, run, "nobody/nothing")
    assert found.returncode == 1
    assert "no model on the hub that you may read" in found.stderr
    server.files["added_tokens.json"] = b'{"<|user|>": 1024}'
    found = fetch(server, run)
    assert found.returncode == 1
    assert "gives the id 1024 to '<|user|>'" in found.stderr
    assert server.asked == []  # not a byte of the weights
    assert not run.exists()


def test_names_of_the_hub_are_told_from_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_name("DAMO-NLP-MT/polylm-1.7b")
    (tmp_path / "DAMO-NLP-MT/polylm-1.7b").mkdir(parents=True)
    assert not hub.is_name("DAMO-NLP-MT/polylm-1.7b")
    assert not any(map(hub.is_name, ("./a/b", "/a", "a", "a/b/c", "../a", "~/a", "gs://a")))
