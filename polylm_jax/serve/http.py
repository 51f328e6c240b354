"""The HTTP side of a server: routes, whole answers and streams, and the end of both."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from polylm_jax import jsonl
from polylm_jax.decode.memory import Memory
from polylm_jax.serve import answers, openapi, page
from polylm_jax.serve.access import Door, refused
from polylm_jax.serve.answers import DONE, PING, Form, dumps, event, joined
from polylm_jax.serve.calls import Busy, Engine
from polylm_jax.serve.fields import Chat, Completion, Refusal, parse, read_json
from polylm_jax.serve.metrics import TEXT, Course, Metrics
from polylm_jax.serve.requests import Asked, Choice, Piece, Served, Work, understand

PING_SECONDS = 15.0  # of silence after which a stream says that it lives: proxies wait for 50 or 60
SLOW_SECONDS = 120.0  # that a client may leave what it was sent unread
BODY_SECONDS = 60.0
MOST_BODY = 2**23
GONE = 499  # as nginx has it: the client has hung up, and nobody reads the answer


@dataclass
class Desk:
    """An engine behind OpenAI's API, and the requests under way.

    draining: seconds after which to ask another server; None while requests are taken.
    """

    served: Served
    engine: Engine
    created: int = field(default_factory=lambda: int(time.time()))
    draining: int | None = None

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.served.name, self.engine)
        self.running: set[Work] = set()
        self.memory = Memory(self.served.tokenizer)

    @property
    def settings(self) -> dict[str, Any]:
        """What a chat has where it does not say it."""
        chat = self.served.chat
        names = ("format", "temperature", "top_p", "top_k", "repetition_penalty")
        return {name: getattr(chat, name) for name in names} | {"context": self.served.context}

    def break_off(self, refusal: Refusal) -> None:
        """Ends all requests with an error."""
        for work in tuple(self.running):
            work.break_off(refusal)

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status of HTTP, and what is said."""
        counts = self.engine.counts()
        state = "failed" if self.engine.broken.is_set() else "ok"
        if state == "ok" and self.draining is not None:
            state = "draining"
        told = {"slots": counts.slots, "running": counts.running, "waiting": counts.waiting}
        return (200 if state == "ok" else 503), {"status": state, **told}

    async def answer(self, kind: type[Completion] | type[Chat], request: Request) -> ASGIApp:
        """The response to a request to complete a text."""
        self._check_open()
        body = await _body(request)
        asked = await asyncio.to_thread(self._understood, kind, body)
        self._check_open()
        try:
            work = Work(self.engine, asked)
        except Busy as busy:
            raise Refusal(429, str(busy), code="busy", seconds=busy.seconds) from None
        self.metrics.accepted.inc(len(asked.calls))
        talk = Talk(self, asked, work)
        return talk.stream if asked.stream else await talk.whole(request)

    def _check_open(self) -> None:
        if self.engine.broken.is_set():
            raise Refusal(500, self.engine.fault, code="failed")
        if self.draining is not None:
            raise Refusal(
                503,
                "The server is about to stop; ask again, here or elsewhere.",
                code="draining",
                seconds=self.draining,
            )

    def _understood(self, kind: type[Completion] | type[Chat], body: bytes) -> Asked:
        return understand(parse(kind, read_json(body)), self.served, self.memory)


class Talk:
    """One request that was taken, until its end."""

    def __init__(self, desk: Desk, asked: Asked, work: Work) -> None:
        self._desk, self._asked, self._work = desk, asked, work
        desk.running.add(work)
        served = desk.served
        self._choices = [
            Choice(served.tokenizer, call, asked.stop, asked.echo) for call in asked.calls
        ]
        prefix = "chatcmpl-" if asked.chat else "cmpl-"
        self._form = Form(
            asked,
            served.tokenizer,
            prefix + secrets.token_hex(12),
            int(time.time()),
            served.name,
        )
        self._courses = [Course(desk.metrics, call, asked.n) for call in asked.calls]

    async def whole(self, request: Request) -> Response:
        """The whole answer, or nothing of it for a client that has hung up."""
        told: list[list[Piece]] = [[] for _ in self._choices]

        async def hear() -> None:
            async for index, piece in self._pieces():
                if index is not None:
                    told[index].append(piece)

        if not await self._unless_gone(hear(), request.receive):
            return Response(status_code=GONE)
        answer = self._form.whole([joined(pieces) for pieces in told], self._choices)
        return Response(dumps(answer), media_type="application/json")

    async def stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The answer as server-sent events; left where the client does not read on."""
        with suppress(TimeoutError):
            await self._unless_gone(self._said(send), receive)

    async def _said(self, send: Send) -> None:
        async def say(data: bytes, more: bool = True) -> None:
            message = {"type": "http.response.body", "body": data, "more_body": more}
            await asyncio.wait_for(send(message), SLOW_SECONDS)

        headers = (
            ("Content-Type", "text/event-stream; charset=utf-8"),
            ("Cache-Control", "no-store"),
            ("X-Accel-Buffering", "no"),
        )
        raw = [(name.lower().encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        firsts = range(len(self._choices)) if self._asked.chat else ()
        await say(b"".join(map(self._form.first, firsts)))
        try:
            async for index, piece in self._pieces():
                await say(PING if index is None else self._form.chunk(index, piece))
        except Refusal as refusal:
            await say(event(answers.error(refusal)), more=False)
            return
        await say(self._form.last(self._choices) + DONE, more=False)

    async def _pieces(self) -> AsyncIterator[tuple[int | None, Piece]]:
        """What the choices say, as it comes; None and nothing after each silence.

        Refusal where the engine fails or the server stops.
        """
        said = time.monotonic()
        while not all(choice.finish for choice in self._choices):
            silence = time.monotonic() - said
            try:
                # there may be news of which nothing can be said yet
                index, news = await asyncio.wait_for(self._work.news(), PING_SECONDS - silence)
            except TimeoutError:
                said = time.monotonic()
                yield None, Piece()
                continue
            choice = self._choices[index]
            if choice.finish:
                continue
            piece = choice.hear(news)
            self._courses[index].heard(news)
            if piece.finish:
                self._work.leave(index)
                self._ended(index)
            if piece.finish == "failed":
                raise Refusal(500, piece.fault, code="failed")
            if piece.text or piece.tokens or piece.finish:
                said = time.monotonic()
                yield index, piece

    def _ended(self, index: int) -> None:
        choice, call = self._choices[index], self._asked.calls[index]
        self._courses[index].ended(choice.finish, choice.count)
        if self._asked.talk is not None:  # its next turn goes on from these ids
            self._desk.memory.note(self._asked.talk, call.prompt, choice.ids)

    async def _unless_gone(self, doing: Any, receive: Receive) -> bool:
        """Whether it was done before the client hung up; what raises here raises there."""
        done, gone = asyncio.ensure_future(doing), asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait((done, gone), return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                done.result()
                return True
            return False
        finally:
            self._work.leave()
            done.cancel()
            gone.cancel()
            # a task that is cancelled still runs until it has noticed
            await asyncio.gather(done, gone, return_exceptions=True)
            for index, choice in enumerate(self._choices):
                if not choice.finish:
                    choice.finish = "cancelled"
                    self._ended(index)
            self._desk.running.discard(self._work)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    """A body of a size and in a time that are bounded."""
    too_large = Refusal(413, f"The body has more than {MOST_BODY:,} bytes; send less at once.")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MOST_BODY:
        raise too_large

    async def read() -> bytes:
        parts, size = list[bytes](), 0
        async for part in request.stream():
            size += len(part)
            if size > MOST_BODY:
                raise too_large
            parts.append(part)
        return b"".join(parts)

    try:
        return await asyncio.wait_for(read(), BODY_SECONDS)
    except TimeoutError:
        raise Refusal(408, f"The body did not come within {BODY_SECONDS:.0f} s.") from None


def make_app(
    desk: Desk | None,
    key: str = "",
    origins: Sequence[str] = (),
    story: Callable[[], dict[str, Any]] | None = None,
    name: str = "",
) -> ASGIApp:
    """The app of a server; without a desk only the page, with what a story tells of a run.

    name: what the page calls the run.
    """

    # a thread of its own: however long a log is to be read, requests are understood meanwhile
    reader = ThreadPoolExecutor(1, "story")

    async def health(request: Request) -> Response:
        status, told = desk.health() if desk else (200, {"status": "ok"})
        return Response(dumps(told), status, media_type="application/json")

    async def page_of(request: Request) -> Response:
        content, policy = page.read()
        headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
        return Response(content, headers=headers, media_type="text/html")

    async def told(request: Request) -> Response:
        loop = asyncio.get_running_loop()
        run = await loop.run_in_executor(reader, story) if story else {}
        told = {"name": name, "chat": desk.settings if desk else None, **run}
        return Response(jsonl.dumps(told), media_type="application/json")

    routes = [
        Route("/", page_of, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/run.json", told, methods=["GET"]),
    ]
    if desk:
        routes += _api(desk)

    def count(status: int) -> None:
        if desk:
            desk.metrics.refused(status)

    async def wrong(request: Request, fault: Exception) -> Response:
        assert isinstance(fault, Refusal)
        count(fault.status)
        return refused(fault)

    async def no_route(request: Request, fault: Exception) -> Response:
        assert isinstance(fault, HTTPException)
        shown = f"{request.method} {request.scope['path'][:100]!r}"
        if fault.status_code == 405:
            response = await wrong(request, Refusal(405, f"{shown} is not done here; see Allow."))
        else:
            known = ", ".join(dict.fromkeys(route.path.partition("/{")[0] for route in routes))
            response = await wrong(
                request, Refusal(404, f"{shown} is not here; there are {known}.")
            )
        response.headers.update(fault.headers or {})
        return response

    async def defect(request: Request, fault: Exception) -> Response:
        refusal = Refusal(500, "The server has a defect; its log says more.")
        response = await wrong(request, refusal)
        response.headers["Connection"] = "close"  # uvicorn closes it after an exception
        return response

    async def hung_up(request: Request, fault: Exception) -> Response:
        return Response(status_code=GONE)

    app = Starlette(
        routes=routes,
        exception_handlers={
            Refusal: wrong,
            HTTPException: no_route,
            ClientDisconnect: hung_up,
            Exception: defect,
        },
    )
    app.router.redirect_slashes = False

    def methods(path: str) -> set[str]:
        return {
            name for route in routes if route.path_regex.match(path) for name in route.methods or ()
        }

    return Door(app, key, tuple(origins), methods, count)


def _api(desk: Desk) -> list[Route]:
    served = desk.served

    async def completions(request: Request) -> ASGIApp:
        return await desk.answer(Completion, request)

    async def chat(request: Request) -> ASGIApp:
        return await desk.answer(Chat, request)

    async def models(request: Request) -> Response:
        told = answers.models(served.name, desk.created, served.context)
        return Response(dumps(told), media_type="application/json")

    async def model(request: Request) -> Response:
        if (name := request.path_params["name"]) != served.name:
            raise Refusal(
                404,
                f"There is no model {name[:100]!r} here; the model is {served.name!r}.",
                "model",
                "model_not_found",
            )
        told = answers.model(served.name, desk.created, served.context)
        return Response(dumps(told), media_type="application/json")

    async def metrics(request: Request) -> Response:
        return Response(desk.metrics.text(), media_type=TEXT)

    async def description(request: Request) -> Response:
        told = openapi.description(served.tokenizer.size)
        return Response(dumps(told), media_type="application/json")

    return [
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/openapi.json", description, methods=["GET"]),
    ]
