"""Who may ask, how much and how often: checked before any request reaches the application."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamdrop.service.addresses import is_loopback
from streamdrop.service.http.problems import problem
from streamdrop.service.settings import HttpConfig

OPEN = frozenset(("/", "/docs", "/healthz", "/readyz"))
"""Addresses that need no token: they tell nothing about the streams."""

HEX = "bearer-hex."
"""Beginning of the subprotocol that brings a browser's token to a WebSocket: its bytes in hexadecimal follow."""

_CLIENTS = 4096  # addresses whose rate is remembered
_SAFE = frozenset(("GET", "HEAD", "OPTIONS"))


class Guard:
    """ASGI middleware: token, origin, host, rate, size and number of requests. ``clock``: seconds, for tests."""

    def __init__(self, app: ASGIApp, config: HttpConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._config, self._clock = app, config, clock
        self._open = 0
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what may not pass; hand on the rest."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _refuse(refusal, scope, receive, send)
            return
        self._open += 1
        try:
            if scope["type"] == "http":
                await self._limited(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        finally:
            self._open -= 1

    def _refusal(self, scope: Scope) -> Response | None:
        headers, where = Headers(scope=scope), str(scope["path"])
        if self._open >= self._config.connections:
            text = f"{self._open} requests are open, as many as http.connections allows: try again later"
            return problem(503, "Too many connections", text, where, headers={"retry-after": "1"})
        if not self._within_rate(str((scope.get("client") or ("", 0))[0])):
            text = f"more than {self._config.rate:g} requests a second from this address: ask less often"
            return problem(429, "Too many requests", text, where, headers={"retry-after": "1"})
        if not self._known_host(headers.get("host", "")):
            text = "the Host header names a machine that this server is not: use the address it was started with"
            return problem(421, "Wrong host", text, where)
        if not self._from_here(scope, headers):
            text = "another page's scripts may not do this: list its origin in http.origins"
            return problem(403, "Foreign origin", text, where)
        if where not in OPEN and not self._authorized(scope, headers):
            text = "a token is needed: send it in the header Authorization, as Bearer TOKEN"
            return problem(401, "No valid token", text, where, headers={"www-authenticate": "Bearer"})
        if int_or(headers.get("content-length"), 0) > self._config.max_body:
            return self._too_large(where)
        return None

    def _within_rate(self, client: str) -> bool:
        """A bucket of as many requests as may come in a second, which fills again."""
        now, rate = self._clock(), self._config.rate
        size = max(rate, 1.0)
        left, then = self._buckets.pop(client, (size, now))
        left = min(size, left + (now - then) * rate)
        self._buckets[client] = (max(left - 1.0, 0.0), now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        return left >= 1.0

    def _known_host(self, host: str) -> bool:
        """Without a token, only names of this machine: a foreign name that resolves here is a trick (DNS rebinding)."""
        if self._config.token is not None:
            return True
        name = _host_name(host)
        return name == "" or name == self._config.host or is_loopback(name)

    def _from_here(self, scope: Scope, headers: Headers) -> bool:
        """Browsers name the page that asks; programs do not."""
        origin = headers.get("origin")
        if origin is None or (scope["type"] == "http" and scope["method"] in _SAFE):
            return True
        return _place(origin) == headers.get("host", "").lower() or origin in self._config.origins

    def _authorized(self, scope: Scope, headers: Headers) -> bool:
        if self._config.token is None:
            return True
        given = [headers.get("authorization", "").removeprefix("Bearer ")]
        given += [_from_hex(name) for name in scope.get("subprotocols", ()) if name.startswith(HEX)]
        right = self._config.token.encode()
        return any(hmac.compare_digest(one.encode("utf-8", "replace"), right) for one in given)

    def _too_large(self, where: str) -> Response:
        text = f"the request's body is larger than {self._config.max_body} bytes: send less"
        return problem(413, "Too large", text, where)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, unless its body grows too large."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = bool(message.get("more_body", False))
            if len(body) > self._config.max_body:
                await self._too_large(str(scope["path"]))(scope, receive, send)
                return
        given = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def once() -> Message:
            first = next(given, None)
            return first if first is not None else await receive()

        await self._app(scope, once, send)


async def _refuse(refusal: Response, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await refusal(scope, receive, send)
        return
    await receive()  # the opening
    await send({"type": "websocket.close", "code": 1008, "reason": ""})


def _from_hex(name: str) -> str:
    """The token that a browser's socket brings: it can set no header, and a subprotocol's name holds few characters."""
    try:
        return bytes.fromhex(name.removeprefix(HEX)).decode("utf-8", "replace")
    except ValueError:
        return ""


def _place(origin: str) -> str:
    """Host and port of an origin; "?", which is none, for one that is malformed."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return "?"


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return "?"


def int_or(text: Any, default: int) -> int:
    """``text`` as a whole number of at least 0, or ``default``."""
    return int(text) if isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) < 19 else default
