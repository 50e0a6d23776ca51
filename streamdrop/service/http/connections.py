"""Connections that cost little whatever their client does: what waits for it is bounded, and so is the wait."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from streamdrop.service.settings import HttpConfig

log = logging.getLogger("streamdrop")

_IDLE = 2  # times http.connections: sockets that may be open, those between two requests included


class Deadline:
    """Drops a connection whose client keeps it waiting for ``seconds`` and reads nothing, and logs ``why``."""

    def __init__(self, seconds: float, why: str) -> None:
        self._seconds, self._why, self._unread = seconds, why, 0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, transport: asyncio.Transport) -> None:
        """Its client is waited for from now on."""
        self.end()
        self._unread = transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look, transport)

    def end(self) -> None:
        """It did what it was waited for, or has gone. Twice is fine."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, transport: asyncio.Transport) -> None:
        if transport.get_write_buffer_size() < self._unread:
            self.begin(transport)  # it is slow, but it reads
            return
        self._timer = None
        log.warning("client %s dropped: %s for %g s", _name(transport), self._why, self._seconds)
        transport.abort()  # close() would wait for the client to read what is left


class Http(HttpToolsProtocol):
    """An HTTP connection. Answers go out as fast as the client reads: one message waits here, the rest in the socket.

    Dropped is a client that does not complete its request, or reads nothing, for ``limits.client_seconds``.
    """

    def __init__(self, *, limits: HttpConfig, **given: Any) -> None:
        super().__init__(**given)
        self._most = _IDLE * limits.connections
        self._asking = Deadline(limits.client_seconds, "its request did not come whole")
        self._reading = Deadline(limits.client_seconds, "it read nothing")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._most:
            log.warning("client %s dropped: %d connections are open", _name(transport), self._most)
            transport.abort()
            return
        transport.set_write_buffer_limits(high=0)
        self._asking.begin(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is waited for any more."""
        self._asking.end()
        self._reading.end()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The first bytes of a request came."""
        self._asking.begin(self.transport)
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """A request came whole."""
        self._asking.end()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to a WebSocket."""
        self._asking.end()
        super().handle_websocket_upgrade()

    def pause_writing(self) -> None:
        """The socket is full: the client reads more slowly than it is sent to."""
        self._reading.begin(self.transport)
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has read."""
        self._reading.end()
        super().resume_writing()


class WebSocket(WebSocketsSansIOProtocol):
    """A WebSocket, bounded as ``Http`` is."""

    def __init__(self, *, limits: HttpConfig, **given: Any) -> None:
        super().__init__(**given)
        self._reading = Deadline(limits.client_seconds, "it read nothing")

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is waited for any more."""
        self._reading.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The socket is full: the client reads more slowly than it is sent to."""
        self._reading.begin(self.transport)
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has read."""
        self._reading.end()
        super().resume_writing()


def _name(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if peer else "of a connection that was reset"
