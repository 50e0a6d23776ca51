"""Pictures and events of streams, as they come, over HTTP and WebSockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from streamdrop.errors import ConflictError, UnknownError
from streamdrop.service.daemon import Daemon
from streamdrop.service.http import live, schemas
from streamdrop.service.http.stream_routes import Name

PROTOCOL = "streamdrop"
"""The WebSocket subprotocol; a browser that needs a token also offers the guard's ``bearer-hex.``."""


def add_pictures(app: FastAPI, daemon: Daemon, watchers: live.Watchers, ended: Callable[[], bool]) -> None:
    """The newest frame, once and again and again; events. ``ended`` tells views to close."""

    def gone(name: str) -> Callable[[], bool]:
        session = daemon.get(name)
        return lambda: ended() or session not in daemon.sessions()

    still, moves = schemas.picture("image/jpeg"), schemas.picture("multipart/x-mixed-replace")
    many = "The newest frame, again and again"

    @app.get(
        "/api/streams/{name}/snapshot.jpg",
        tags=["pictures"],
        summary="The newest frame",
        responses=still,
        response_class=Response,
    )
    def snapshot(name: Name, drawn: bool = True) -> Response:
        data = daemon.get(name).broadcast.pictures.snapshot(drawn)
        return Response(data, media_type="image/jpeg", headers={"cache-control": "no-store"})

    @app.get("/api/streams/{name}/live.mjpg", tags=["pictures"], summary=many, responses=moves, response_class=Response)
    async def moving(name: Name) -> live.MovingPictures:
        return live.MovingPictures(daemon.get(name), gone(name), watchers)

    @app.websocket("/api/streams/{name}/events")
    async def events(socket: WebSocket, name: str) -> None:
        await _watch(socket, lambda: daemon.get(name), live.send_events, watchers, lambda: gone(name))

    @app.websocket("/api/streams/{name}/live")
    async def pictures(socket: WebSocket, name: str) -> None:
        await _watch(socket, lambda: daemon.get(name), live.send_pictures, watchers, lambda: gone(name))


async def _watch(socket: WebSocket, find: Any, send: Any, watchers: live.Watchers, over: Any) -> None:
    """Serve one WebSocket until either side ends it."""
    await socket.accept(PROTOCOL if PROTOCOL in socket.scope.get("subprotocols", ()) else None)
    try:
        with watchers.one():
            await send(socket, find(), over())
        await socket.close(1001)
    except (UnknownError, ConflictError) as error:
        await socket.close(1008, str(error)[:120])
    except (WebSocketDisconnect, RuntimeError):
        return  # the other side has gone
