"""The process of a server: its address, its signals, and how it ends."""

import asyncio
import math
import socket
import time
from contextlib import suppress
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from polylm_jax.errors import UserError
from polylm_jax.serve.fields import Refusal
from polylm_jax.serve.http import Desk
from polylm_jax.train.ends import RunEnded

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
    except (OSError, OverflowError, UnicodeError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"--host={host} --port={port} cannot be listened at: {reason}; choose another."
        ) from None


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
        """Opens the port."""
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
