"""Clients that never read, never finish what they ask or are too many: they cost little, and are dropped."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from daemons import SECONDS, until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from streamdrop.service.http.connections import Deadline
from streamdrop.service.http.server import HttpServer
from streamdrop.service.settings import HttpConfig

PIECE = b"x" * 16384
CLIENTS = 30


class Endless:
    """A server that sends without end, and how many bytes it has handed over for each client's path."""

    def __init__(self, **config: Any) -> None:
        self.given: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        app = Starlette(
            routes=[
                Route("/hello", lambda request: PlainTextResponse("hello")),
                Route("/http/{name}", self._answer),
                WebSocketRoute("/socket/{name}", self._serve),
            ]
        )
        limits = {"port": 0, "client_kb": 16.0, "client_seconds": 0.4}
        self.server = HttpServer(app, HttpConfig(**{**limits, **config}))
        self.server.start()

    async def _answer(self, request: Request) -> StreamingResponse:
        return StreamingResponse(self._pieces(request.url.path))

    async def _pieces(self, path: str) -> Any:
        try:
            while True:
                yield PIECE
                self.given[path] += len(PIECE)
                await asyncio.sleep(0)
        finally:
            self.ended[path] += 1

    async def _serve(self, connection: Any) -> None:
        path = connection.url.path
        await connection.accept()
        try:
            async for piece in self._pieces(path):
                await connection.send_bytes(piece)
        finally:
            self.ended[path] += 1

    def connect(self, request: bytes = b"") -> socket.socket:
        """A client with a small buffer that has sent ``request``."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(SECONDS)
        client.connect(("127.0.0.1", self.server.port))
        client.sendall(request)
        return client

    @property
    def open(self) -> int:
        return len(self.server._server.server_state.connections)


@pytest.fixture
def endless(request: pytest.FixtureRequest) -> Iterator[Endless]:
    one = Endless(**getattr(request, "param", {}))
    yield one
    one.server.stop()


def asking(path: str) -> bytes:
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{upgrade if 'socket' in path else ''}\r\n".encode()


def hung_up(client: socket.socket) -> bool:
    """The other side has ended; what it sent before is read."""
    try:
        while client.recv(65536):
            pass
    except ConnectionError:
        return True
    return True


def test_clients_that_never_read_cost_a_bounded_amount_and_are_dropped(endless, caplog, monkeypatch):
    def patient(self, transport, begin=Deadline.begin):
        """Requests may take their time on a machine that is busy: only who reads nothing is dropped."""
        if "read nothing" in self._why:
            begin(self, transport)

    monkeypatch.setattr(Deadline, "begin", patient)
    paths = [f"/{kind}/{number}" for kind in ("http", "socket") for number in range(CLIENTS)]
    with caplog.at_level(logging.WARNING, "streamdrop"), ExitStack() as stack:
        for path in paths:
            stack.enter_context(endless.connect(asking(path)))
        until(lambda: all(endless.given[path] for path in paths), "an answer to everybody")
        until(lambda: not endless.open, "the end of their connections")
        until(lambda: all(endless.ended[path] for path in paths), "the end of what was sent")
    assert max(endless.given.values()) < 20 * len(PIECE)  # what the sockets hold, of an answer without end
    assert caplog.text.count("it read nothing for 0.4 s") == len(paths)
    with endless.connect(b"GET /hello HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n") as client:
        assert client.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET /hello HT",
        b"POST /hello HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nsome",
        b"GET /hello HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /hel",
    ],
)
def test_clients_that_never_finish_their_request_are_dropped(endless, caplog, beginning):
    with caplog.at_level(logging.WARNING, "streamdrop"), endless.connect(beginning) as client:
        assert hung_up(client)
    assert "its request did not come whole for 0.4 s" in caplog.text


@pytest.mark.parametrize("endless", [{"connections": 2, "client_seconds": 2 * SECONDS}], indirect=True)
def test_sockets_that_ask_for_nothing_are_limited_too(endless, caplog):
    with caplog.at_level(logging.WARNING, "streamdrop"), ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(endless.connect())
        until(lambda: endless.open == 4, "four connections")
        assert hung_up(stack.enter_context(endless.connect()))
        assert endless.open == 4
    assert "4 connections are open" in caplog.text


class Reader:
    """A transport whose client reads some of what waits between two looks, until it stops."""

    def __init__(self, waiting: list[int], done: asyncio.Event) -> None:
        self.waiting, self.done = waiting, done

    def get_write_buffer_size(self) -> int:
        return self.waiting.pop(0) if len(self.waiting) > 1 else self.waiting[0]

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 5)

    def abort(self) -> None:
        self.done.set()


def test_a_client_that_reads_slowly_is_kept():
    async def run() -> list[int]:
        done = asyncio.Event()
        reader = Reader([100, 90, 90, 50, 50, 50], done)
        deadline = Deadline(0.001, "it read nothing")
        deadline.begin(reader)
        await asyncio.wait_for(done.wait(), SECONDS)
        return reader.waiting

    assert asyncio.run(run()) == [50]


def test_who_did_what_was_waited_for_is_not_dropped():
    async def run() -> bool:
        done = asyncio.Event()
        waited, other = Deadline(0.001, "it read nothing"), Deadline(0.002, "it read nothing")
        waited.begin(Reader([1], done))
        waited.end()
        waited.end()
        later = asyncio.Event()
        other.begin(Reader([1], later))
        await asyncio.wait_for(later.wait(), SECONDS)
        return done.is_set()

    assert not asyncio.run(run())
