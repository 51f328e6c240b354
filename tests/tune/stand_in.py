"""An endpoint on loopback that answers by the prompt alone, and plays every fault before it does.

What it answers to a prompt is always the same, whatever faults came before: so the files of a run
with faults must be those of a calm one.
"""

import json
import random
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-never-to-be-seen-7f3a"
NO_MONEY = {"error": {"code": "insufficient_quota", "message": f"pay first, {KEY}"}}

WORDS = """
    casa río luna pan barco montaña perro jardín invierno ventana camino libro reloj puente mercado
    nube piedra carta bosque fuego verano lluvia silla mesa plaza torre isla sombra hierba viento
    campana espejo puerta hoja fruta pluma tren harina aceite llave
"""
WORDS = WORDS.split()
VERBS = """
    Escribe Explica Resume Compara Describe Inventa Ordena Corrige Traduce Enumera
"""
VERBS = VERBS.split()

# what may come before an answer; "hang" is slow, so it is rare
FAULTS = ["429", "500", "503", "reset", "half", "empty", "null", "broken"] * 4 + ["hang"]
RETRY_AFTER = ("0", "-5", "0.02", "99999999", "soon", "Thu, 01 Jan 1970 00:00:00 GMT", None)
NUMBERS = ("0123456789", "０１２３４５６７８９", "٠١٢٣٤٥٦٧٨٩", "๐๑๒๓๔๕๖๗๘๙")


def tasks(prompt):
    """A reply of 17 tasks, of all kinds that a filter must see, and how it ended."""
    draw = random.Random(prompt)
    blocks = []
    for number in range(4, 21):
        instruction = f"{draw.choice(VERBS)} {' '.join(draw.sample(WORDS, draw.randint(4, 9)))}."
        given, output = "<noinput>", f"Esto dice {' '.join(draw.sample(WORDS, 12))}."
        kind = draw.randrange(16)
        if kind == 0:
            instruction = "Escribe una frase sobre el mar y la luna llena."
        elif kind == 1:
            instruction = "Write the following words in the order that is given by the teacher."
        elif kind == 2:
            output = None
        elif kind == 3:
            output += f"\n{number + 1}. Input: lo que sigue\n{number + 1}. Output: nada"
        elif kind == 4:
            output = "18.\n19.\n20.\n### fin\nya"
        elif kind == 5:
            output = "None"
        elif kind == 6:
            output += " https://example.org/x"
        elif kind == 7:
            instruction += " Mira la imagen."
        elif kind == 8:
            given = instruction[4:20]
        elif kind == 9:
            given = instruction.lower()
        elif kind < 13:
            given = " ".join(draw.sample(WORDS, 10))
        shown = "".join(NUMBERS[draw.randrange(4)][int(digit)] for digit in str(number))
        lines = [f"{shown}. Instruction: {instruction}", f"{shown}. Input: {given}"]
        if output is not None:
            lines.append(f"{shown}. Output: {output}")
        blocks.append("\n".join(lines))
    text, finish = "\n\n".join(blocks), "stop"
    ending = draw.randrange(8)
    if ending < 2:
        text, finish = text[: len(text) * 2 // 3], ("length", "content_filter")[ending]
    return text, finish


def translation(prompt):
    """The seed that the prompt shows, moved into another language by three words."""
    text = prompt[prompt.index("1. Instruction: ") :]
    return text.replace("Instruction: ", "Instruction: Por favor esto: "), "stop"


class Endpoint(ThreadingHTTPServer):
    """faults: whether it plays them. answered: keys of the answers sent whole, in order."""

    daemon_threads = True

    def __init__(self, faults=False, usage=True, status=None, body=None, delay=0.02):
        self.faults, self.usage, self.delay = faults, usage, delay
        self.status, self.body = status, body
        self.lock, self.seen, self.attempts = threading.Lock(), 0, Counter()
        self.answered, self.times, self.played, self.bills = [], [], Counter(), {}
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that is killed is no fault of ours."""

    def plan(self, key):
        """The faults before the answer to this request."""
        draw = random.Random(key)
        return draw.choices(FAULTS, k=draw.choice((0, 0, 1, 1, 2))) if self.faults else []

    def bill(self, key, prompt):
        """The answer to a request, made and billed once."""
        with self.lock:
            if key not in self.bills:
                translating = prompt.startswith("Translate")
                text, finish = (translation if translating else tasks)(prompt)
                choice = {"message": {"content": text}, "finish_reason": finish}
                answer = {"choices": [choice]}
                if self.usage:
                    tokens = len(prompt) // 4, len(text) // 4
                    answer["usage"] = dict(
                        zip(("prompt_tokens", "completion_tokens"), tokens, strict=True)
                    )
                self.bills[key] = json.dumps(answer, ensure_ascii=bool(len(text) % 2))
            return self.bills[key].encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        server, key = self.server, self.headers["Idempotency-Key"]
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen += 1
            server.times.append(time.monotonic())
            attempt = server.attempts[key]
            server.attempts[key] += 1
        if server.status:
            return self.say(server.status, json.dumps(server.body).encode())
        if self.headers["Authorization"] != f"Bearer {KEY}":
            return self.say(401, json.dumps({"error": {"message": f"wrong key {KEY}"}}).encode())
        plan = server.plan(key)
        if attempt < len(plan):
            with server.lock:
                server.played[plan[attempt]] += 1
            return self.play(plan[attempt], attempt)
        time.sleep(server.delay * random.random())
        self.say(200, server.bill(key, asked["messages"][0]["content"]))
        with server.lock:
            server.answered.append(key)

    def say(self, status, body, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def play(self, fault, attempt):
        if fault == "429":
            wait = RETRY_AFTER[(self.server.seen + attempt) % len(RETRY_AFTER)]
            headers = [("Retry-After", wait)] if wait else []
            return self.say(429, b'{"error": {"message": "slower"}}', headers)
        if fault in ("500", "503"):
            return self.say(int(fault), b"<html>oops</html>")
        if fault == "hang":
            time.sleep(4)
        if fault == "half":
            return self.say(200, b'{"choices": [{"message": {"content": "4. Instr')
        if fault == "empty":
            return self.say(200, b'{"choices": []}')
        if fault == "null":
            return self.say(200, b'{"choices": [{"message": {"content": null}}]}')
        self.send_response(200)
        if fault == "reset":
            self.send_header("Content-Length", "5000")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b'{"choices": [{"message": {"content": "4. Instruction: Algo')
        self.wfile.flush()
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def endpoint(**options):
    """A server of its own, on a port that was free."""
    server = Endpoint(**options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
