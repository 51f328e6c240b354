"""Who may come in: the key, the addresses, the pages of other origins, and how much they may send.

Without a key only this machine is answered; what a browser sends there for a page from elsewhere
is told by its Host and Origin and refused.
"""

import base64
import binascii
import hmac
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polylm_jax.errors import UserError
from polylm_jax.serve.answers import dumps, error
from polylm_jax.serve.fields import Refusal
from polylm_jax.serve.settings import Serving
from polylm_jax.tune.writer import key_of

LOCAL = ("127.0.0.1", "localhost", "::1")
MOST_HEADERS = 100
OPEN = ("/health",)
PAGE = "/"


def read_key(settings: Serving) -> str:
    """The key that requests must bring, "" for none. It is never written anywhere."""
    key = key_of(settings.key_variable, "serve.key_variable", needed=False)
    if key or not settings.key_file:
        return key
    try:
        key = Path(settings.key_file).read_text("ascii").strip()
    except UnicodeDecodeError:
        key = " "
    except OSError as fault:
        raise UserError(
            f"{settings.key_file} of serve.key_file cannot be read: {fault.strerror}."
        ) from None
    if not re.fullmatch(r"[!-~]{1,4096}", key):
        raise UserError(f"{settings.key_file} of serve.key_file holds no key; put one word there.")
    return key


def check_host(host: str, key: str, settings: Serving) -> None:
    """UserError for an address that others reach where there is no key."""
    if host not in LOCAL and not key:
        raise UserError(
            f"--host={host} lets other machines in, and there is no key; export "
            f"{settings.key_variable or 'POLYLM_KEY'}=… or name a file in serve.key_file."
        )


class Door:
    """An ASGI app that lets in whom it may and hands them on.

    methods: function (path) -> what may be done there. count: is told the status of a refusal.
    """

    def __init__(
        self,
        app: ASGIApp,
        key: str,
        origins: tuple[str, ...],
        methods: Callable[[str], set[str]],
        count: Callable[[int], None],
    ) -> None:
        self._app, self._key, self._origins = app, key.encode(), origins
        self._methods, self._count = methods, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        known = bool(origin) and ("*" in self._origins or origin in self._origins)

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(raw=message.setdefault("headers", []))
                answered["X-Content-Type-Options"] = "nosniff"
                if known:
                    answered["Access-Control-Allow-Origin"] = origin
                    answered["Access-Control-Expose-Headers"] = "Retry-After"
                if self._origins:
                    answered.add_vary_header("Origin")
            await send(message)

        if scope["method"] == "OPTIONS":  # browsers send it without the key
            methods = ", ".join(sorted(self._methods(scope["path"]) | {"OPTIONS"}))
            await _preflight(headers, known, methods)(scope, receive, told)
            return
        try:
            self._let_in(scope["path"], headers, origin, known)
        except Refusal as refusal:
            self._count(refusal.status)
            await refused(refusal, page=scope["path"] == PAGE)(scope, receive, told)
            return
        await self._app(scope, receive, told)

    def _let_in(self, path: str, headers: Headers, origin: str, known: bool) -> None:
        if len(headers.raw) > MOST_HEADERS:
            raise Refusal(431, f"There are more than {MOST_HEADERS} headers; send fewer.")
        if path in OPEN:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if self._key and not hmac.compare_digest(_key(scheme, given), self._key):
            raise Refusal(
                401,
                "The key is missing or wrong; send the header Authorization: Bearer KEY.",
                code="invalid_api_key",
            )
        host = headers.get("host", "")
        if not self._key and _host(f"//{host}", "hostname") not in LOCAL:
            raise Refusal(
                403,
                "Without a key this server answers to 127.0.0.1 only; start it with a key, or ask "
                "for it by that address.",
            )
        # a browser adds a password that it remembers, or none, whoever's page sends the request
        ambient = not self._key or scheme.lower() == "basic"
        if origin and ambient and not known and _host(origin, "netloc") != host:
            raise Refusal(
                403, f"Pages of {origin[:100]} may not ask here; add it to serve.origins."
            )


def _key(scheme: str, given: str) -> bytes:
    """The key in an Authorization header; as a page's password it comes in base64."""
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(given, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return given.strip().encode("latin-1") if scheme.lower() == "bearer" else b""


def _host(url: str, part: str) -> str | None:
    """The host of a URL ("hostname"), or with its port ("netloc"); None where it is no URL."""
    try:
        return getattr(urlsplit(url), part)
    except ValueError:
        return None


def _preflight(headers: Headers, known: bool, methods: str) -> Response:
    allowed = {"Allow": methods}
    if known:
        allowed |= {
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "*"),
            "Access-Control-Max-Age": "600",
        }
    return Response(status_code=204, headers=allowed)


def refused(refusal: Refusal, page: bool = False) -> Response:
    """The answer to a request that is not let in or not understood."""
    headers = {}
    if refusal.seconds is not None:
        headers["Retry-After"] = str(refusal.seconds)
    if refusal.status == 401:
        # for a page the browser asks its user: any name, the key for a password
        headers["WWW-Authenticate"] = 'Basic realm="polylm"' if page else "Bearer"
    body = dumps(error(refusal))
    return Response(body, refusal.status, headers, "application/json")
