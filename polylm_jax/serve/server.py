"""The process of a server: its address, its connections, its signals, and how it ends."""

import asyncio
import math
import socket
import time
from contextlib import suppress
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from polylm_jax.errors import UserError
from polylm_jax.serve.answers import dumps, error
from polylm_jax.serve.fields import Refusal
from polylm_jax.serve.http import Desk
from polylm_jax.train.ends import RunEnded

HEAD_SECONDS = 30.0  # in which a request's head must have come, or more of an answer been taken
LAST_WORDS = 2.0  # seconds for the errors of those that are broken off
LET_GO = 5  # seconds for connections to close


def bind(host: str, port: int) -> socket.socket:
    """A socket of this address, which does not listen yet; UserError where there is none.

    port: 0 for any that is free.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        return listening
    except (OSError, OverflowError, UnicodeError) as fault:
        listening.close()
        raise _not_ours(host, port, fault) from None


def _not_ours(host: str, port: int, fault: Exception) -> UserError:
    reason = getattr(fault, "strerror", None) or str(fault)
    return UserError(
        f"--host={host} --port={port} cannot be listened at: {reason}; choose another."
    )


class Connection(H11Protocol):
    """Uvicorn's, where nobody keeps a connection for nothing, and what is no HTTP has an answer in
    the form of all errors."""

    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_a_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._watch:
            self._watch.cancel()

    def on_response_complete(self) -> None:
        self._await_a_request()  # before the next one, which may have come already, is begun
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        body = dumps(error(Refusal(400, "What came is no HTTP/1.1; send a request of it.")))
        headers = [("Content-Type", "application/json"), ("Connection", "close")]
        head = h11.Response(status_code=400, reason="Bad Request", headers=headers)
        if self.cycle and not self.cycle.response_complete:  # of a request whose body this was
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for part in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
        self.transport.close()

    def _await_a_request(self, unsent: float = math.inf) -> None:
        """Looks later whether the next request's head has come. unsent: bytes of the last answer
        that have not been taken, when it was looked before."""
        if self._watch:
            self._watch.cancel()
        self._watch = self.loop.call_later(HEAD_SECONDS, self._look, self.cycle, unsent)

    def _look(self, before: Any, unsent: float) -> None:
        if self.cycle is not before:
            return
        left = self.transport.get_write_buffer_size()
        if 0 < left < unsent:
            self._await_a_request(left)
        else:
            self.transport.abort()


class Server(uvicorn.Server):
    """Uvicorn's, with an end of its own: asked to stop it answers to the end what it has begun.

    /health and new requests have 503 from then on. When no answer is left, or drain_seconds have
    passed, or it is asked again, it ends; what is left has an error for its last words. Where the
    engine fails it ends as soon as all have been told. said: printed once the port is open.
    """

    def __init__(
        self, app: ASGIApp, desk: Desk | None, drain_seconds: float, said: str = ""
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=LET_GO,
            )
        )
        self._desk, self._drain_seconds = desk, drain_seconds
        self._deadline, self._told = math.inf, said

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens the port; UserError where another has taken it since it was bound."""
        for listening in sockets or ():
            try:
                listening.listen(self.config.backlog)  # of a failure here uvloop says nothing
            except OSError as fault:
                host, port, *_ = listening.getsockname()
                raise _not_ours(host, port, fault) from None
        await super().startup(sockets)
        if self._told:
            print(self._told, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None = None) -> None:
        """What a signal does."""
        if self._desk is None:
            self.should_exit = True
        elif self._desk.draining is None:
            self._desk.draining = math.ceil(self._drain_seconds)
            self._deadline = time.monotonic() + self._drain_seconds
        else:
            self._deadline = -math.inf

    async def on_tick(self, counter: int) -> bool:
        """Whether it is over; asked ten times a second."""
        desk = self._desk
        if desk and (desk.draining is not None or desk.engine.broken.is_set()):
            broken = desk.engine.broken.is_set()
            if desk.running and (broken or time.monotonic() > self._deadline):
                over = Refusal(503, "The server stops: it was asked to, and its time is over.")
                desk.break_off(Refusal(500, desk.engine.fault) if broken else over)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._all_told(desk), LAST_WORDS)
                return True
            if not desk.running:
                return True
        return await super().on_tick(counter)

    async def _all_told(self, desk: Desk) -> None:
        while desk.running:
            await asyncio.sleep(0.01)


def serve(
    app: ASGIApp, desk: Desk | None, listening: socket.socket, drain_seconds: float, said: str
) -> None:
    """Serves until a signal; RunEnded where the engine fails. The rest is as for `Server`."""
    server = Server(app, desk, drain_seconds, said)
    try:
        server.run([listening])
    finally:
        if desk:
            desk.engine.close(0)
    if desk and desk.engine.broken.is_set():
        raise RunEnded("failed", desk.engine.fault)
