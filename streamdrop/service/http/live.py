"""Events and pictures to those who watch: slow ones miss some, and never hold anybody up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from streamdrop.errors import ConflictError
from streamdrop.service.pictures import Shown
from streamdrop.service.stream_session import StreamSession, first_of

_BACKLOG = 512  # events that wait for one client
_QUIET = 15.0  # seconds after which a picture is sent again though nothing is new
_FASTEST = 1 / 30  # seconds between two pictures for one client
_GONE = 0.5  # seconds between two looks for whether the session still lives
BOUNDARY = "streamdrop"


class Watchers:
    """Counts who watches; more than ``most`` are refused."""

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Inside, one more watches. Raises ConflictError."""
        if self.count >= self.most:
            raise ConflictError(f"{self.most} watch already, as many as http.watchers allows: close another page")
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


class MovingPictures(StreamingResponse):
    """A session's ``mjpeg``, counted among the ``watchers`` for as long as it is sent."""

    def __init__(self, session: StreamSession, ended: Callable[[], bool], watchers: Watchers) -> None:
        kind = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
        super().__init__(mjpeg(session, ended), media_type=kind, headers={"cache-control": "no-store"})
        self._watchers = watchers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until either side ends it. Raises ConflictError."""
        with self._watchers.one():
            await super().__call__(scope, receive, send)


class _Signal:
    """A session's thread wakes a coroutine."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._given = False  # and not yet seen: to say it again would cost the stream's thread a system call

    def set(self) -> None:
        """From any thread."""
        if self._given:
            return
        self._given = True
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who waits
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, seconds: float) -> bool:
        """Whether it was set within that time; it is cleared."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
        was = self._event.is_set()
        self._event.clear()
        self._given = False
        return was


async def send_events(socket: WebSocket, session: StreamSession, ended: Callable[[], bool]) -> None:
    """Every event from now on, one JSON object a message; ``{"event": "missed", "count": n}`` to a slow reader."""
    signal, waiting = _Signal(), deque[dict[str, Any]](maxlen=_BACKLOG)
    missed = 0

    def heard(event: dict[str, Any]) -> None:
        nonlocal missed
        missed += len(waiting) == _BACKLOG
        waiting.append(event)
        signal.set()

    session.broadcast.listeners.append(heard)
    try:
        async with _until_closed(socket) as closed:
            while not closed() and not ended():
                await signal.wait(_GONE)
                if missed:
                    count, missed = missed, 0
                    await socket.send_text(json.dumps({"event": "missed", "count": count}))
                while waiting:
                    await socket.send_text(json.dumps(waiting.popleft()))
    finally:
        session.broadcast.listeners.remove(heard)


async def send_pictures(socket: WebSocket, session: StreamSession, ended: Callable[[], bool]) -> None:
    """The newest picture, again and again: 4 bytes (big-endian) length of a JSON head, the head, the JPEG.

    The head is the stream's status, with ``frame``, ``target`` and ``targets`` of the picture.
    """
    async with _until_closed(socket) as closed:
        async for shown in pictures(session, lambda: closed() or ended()):
            seen = {"frame": shown.number, "target": first_of(shown.targets), "targets": shown.targets}
            head = json.dumps({**session.status(), **seen}).encode()
            await socket.send_bytes(struct.pack(">I", len(head)) + head + shown.data)


async def mjpeg(session: StreamSession, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The newest picture, again and again, as parts of multipart/x-mixed-replace."""
    async for shown in pictures(session, ended):
        head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(shown.data)}\r\n\r\n"
        yield head.encode() + shown.data + b"\r\n"


async def pictures(session: StreamSession, ended: Callable[[], bool]) -> AsyncIterator[Shown]:
    """Every picture that the consumer has time for, until ``ended``."""
    signal = _Signal()
    signal.set()
    session.broadcast.viewers.append(signal.set)
    quiet = 0.0
    try:
        while not ended():
            new = await signal.wait(_GONE)
            quiet = 0.0 if new else quiet + _GONE
            if session.broadcast.pictures.newest is None or (not new and quiet < _QUIET):
                continue
            quiet = 0.0
            shown = session.broadcast.pictures.encoded()
            yield shown if shown is not None else await asyncio.to_thread(session.broadcast.pictures.live)
            await asyncio.sleep(_FASTEST)
    finally:
        session.broadcast.viewers.remove(signal.set)


@contextlib.asynccontextmanager
async def _until_closed(socket: WebSocket) -> AsyncIterator[Callable[[], bool]]:
    """Listens for the other side's end; what it says meanwhile is not heard."""

    async def listen() -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while (await socket.receive())["type"] != "websocket.disconnect":
                pass

    listening = asyncio.create_task(listen())
    try:
        yield listening.done
    finally:
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening
