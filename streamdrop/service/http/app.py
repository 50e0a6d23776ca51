"""The daemon's HTTP application: see /docs of a running daemon, or docs/daemon.md."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from fastapi import FastAPI, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from streamdrop._version import __version__
from streamdrop.boxes import as_box
from streamdrop.config_schema import json_schema
from streamdrop.errors import ConfigError, ConflictError, UnknownError
from streamdrop.service.daemon import Daemon
from streamdrop.service.http import live, metrics, problems, schemas
from streamdrop.service.http.guard import Guard
from streamdrop.service.http.permitted import permitted_source
from streamdrop.service.http.problems import Json
from streamdrop.service.settings import StreamConfig, load_stream

PROTOCOL = "streamdrop"
"""The WebSocket subprotocol; a browser that needs a token also offers the guard's ``bearer-hex.``."""

ACTIONS = (
    ("pause", "streams", "Stop tracking; a file stands still"),
    ("resume", "streams", "Go on"),
    ("thaw", "target", "Learn it anew where it is, with all layers"),
    ("checkpoint", "target", "Save now"),
)
"""What can be asked of a stream without a body: methods of its session. The answer is its status."""

_PRIVATE = ("store", "weights")  # keys of a tracker that name files

_Name = Annotated[str, Field(max_length=200)]
_Id = Annotated[int, PathParameter(ge=1, lt=2**63)]
_Last = Annotated[int, Query(ge=1, le=1500)]
_PROBLEM = {
    "description": "What is wrong, where, and the remedy",
    "content": {problems.MEDIA_TYPE: {"schema": schemas.Problem.model_json_schema()}},
}
_Responses: TypeAlias = dict[int | str, dict[str, Any]]
_PROBLEMS: _Responses = {"4XX": _PROBLEM, "5XX": _PROBLEM}


class TargetBody(BaseModel):
    """A target: ``box`` x, y, w, h in pixels, 0-based, of frame ``frame`` (null: the newest)."""

    model_config = ConfigDict(extra="forbid")

    box: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    frame: Annotated[int, Field(ge=0, lt=2**63)] | None = None


def make_app(daemon: Daemon, reload: Callable[[], dict[str, list[str]]], ended: Callable[[], bool]) -> FastAPI:
    """The application. ``reload`` reads the configuration anew; ``ended`` tells live views to close."""
    app = FastAPI(
        title="streamdrop",
        version=__version__,
        description="Trackers that keep learning on their streams.",
        docs_url=None,
        redoc_url=None,
        default_response_class=Json,
        responses=_PROBLEMS,
    )
    app.add_middleware(Guard, config=daemon.config.http)
    problems.install(app)
    _add_pages(app)
    _add_health(app, daemon, reload)
    _add_streams(app, daemon)
    _add_target(app, daemon)
    _add_pictures(app, daemon, live.Watchers(daemon.config.http.watchers), ended)
    return app


def _add_pages(app: FastAPI) -> None:
    folder = importlib.resources.files("streamdrop.service.http")
    page, docs = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "docs.html"))
    headers = {
        "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src 'self' blob: data:; connect-src 'self' ws: wss:; base-uri 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @app.get("/docs", include_in_schema=False)
    async def description() -> HTMLResponse:
        return HTMLResponse(docs, headers=headers)


def _add_health(app: FastAPI, daemon: Daemon, reload: Callable[[], dict[str, list[str]]]) -> None:
    health: _Responses = {200: {"model": schemas.Health}}

    @app.get("/healthz", tags=["health"], summary="The process answers", responses=health)
    async def healthz() -> Response:
        return Json({"status": "ok"})

    @app.get("/readyz", tags=["health"], summary="Every stream has its tracker, or 503", responses=health)
    async def readyz(request: Request) -> Response:
        starting = [one.name for one in daemon.sessions() if one.status()["state"] in ("starting", "failed")]
        if not starting:
            return Json({"status": "ready"})
        text = f"not ready: {', '.join(starting)}: wait, or see GET /api/streams for what is wrong"
        return problems.problem(503, "Not ready", text, request.url.path)

    text: _Responses = {200: {"description": "Prometheus' text format", "content": {"text/plain": {}}}}

    @app.get("/metrics", tags=["health"], summary="Metrics for Prometheus", responses=text, response_class=Response)
    async def prometheus() -> Response:
        return Response(metrics.render(daemon), headers={"content-type": CONTENT_TYPE_LATEST})

    @app.post("/api/reload", tags=["daemon"], summary="Read the configuration again; only what changed restarts")
    def reload_configuration() -> schemas.Reloaded:
        return schemas.Reloaded(**reload())


def _add_streams(app: FastAPI, daemon: Daemon) -> None:
    schema = json_schema(StreamConfig, "Stream")
    del schema["$schema"]
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    some = {"requestBody": {"content": {"application/json": {"schema": {**schema, "required": []}}}}}

    one: _Responses = {200: {"model": schemas.Status}}
    added: _Responses = {201: {"model": schemas.Status, "headers": {"location": {"schema": {"type": "string"}}}}}

    @app.get("/api/streams", tags=["streams"], summary="All streams", responses={200: {"model": list[schemas.Status]}})
    async def streams() -> Response:
        return Json([session.status() for session in daemon.sessions()])

    @app.post(
        "/api/streams",
        tags=["streams"],
        summary="Add a stream, kept until it is removed",
        status_code=201,
        responses=added,
        openapi_extra=body,
    )
    async def add(request: Request) -> Response:
        stream = load_stream(_permitted(await _mapping(request), daemon))
        session = await _threaded(lambda: daemon.add(stream))
        return Json(session.status(), 201, headers={"location": f"/api/streams/{session.name}"})

    @app.get("/api/streams/{name}", tags=["streams"], summary="One stream", responses=one)
    async def stream(name: _Name) -> Response:
        return Json(daemon.get(name).status())

    @app.patch(
        "/api/streams/{name}",
        tags=["streams"],
        summary="Change keys; it starts again",
        responses=one,
        openapi_extra=some,
    )
    async def change(name: _Name, request: Request) -> Response:
        daemon.get(name)
        values = _permitted(await _mapping(request), daemon)
        await _threaded(lambda: daemon.change(name, values))
        return Json(daemon.get(name).status())

    @app.delete("/api/streams/{name}", tags=["streams"], summary="Remove it; purge: its files too", status_code=204)
    def remove(name: _Name, purge: bool = False) -> None:
        daemon.remove(name, purge)

    lasts: _Responses = {200: {"model": list[schemas.Round]}}

    @app.get("/api/streams/{name}/rounds", tags=["streams"], summary="The last rounds, oldest first", responses=lasts)
    async def rounds(name: _Name, last: _Last = 200) -> Response:
        return Json(daemon.get(name).stats.rounds(last))

    seen: _Responses = {200: {"model": list[schemas.Frame]}}

    @app.get("/api/streams/{name}/frames", tags=["streams"], summary="The last tracked frames", responses=seen)
    async def frames(name: _Name, last: _Last = 200) -> Response:
        return Json(daemon.get(name).stats.frames(last))


def _add_target(app: FastAPI, daemon: Daemon) -> None:
    @app.post(
        "/api/streams/{name}/target",
        tags=["target"],
        summary="Learn the target in a box, in place of the first",
        status_code=202,
    )
    async def set_target(name: _Name, body: TargetBody) -> schemas.Accepted:
        session = daemon.get(name)
        frame = session.set_target(as_box(body.box), body.frame)
        return schemas.Accepted(name=name, box=list(body.box), frame=frame)

    @app.delete("/api/streams/{name}/target", tags=["target"], summary="Let go of the first target", status_code=204)
    def clear_target(name: _Name) -> None:
        daemon.get(name).clear_target()

    @app.post("/api/streams/{name}/targets", tags=["target"], summary="Learn one more target", status_code=202)
    async def add_target(name: _Name, body: TargetBody) -> schemas.AcceptedOne:
        key, frame = daemon.get(name).add_target(as_box(body.box), body.frame)
        return schemas.AcceptedOne(name=name, id=key, box=list(body.box), frame=frame)

    @app.post("/api/streams/{name}/targets/{key}", tags=["target"], summary="Learn a target anew", status_code=202)
    async def redraw_target(name: _Name, key: _Id, body: TargetBody) -> schemas.AcceptedOne:
        frame = daemon.get(name).redraw_target(key, as_box(body.box), body.frame)
        return schemas.AcceptedOne(name=name, id=key, box=list(body.box), frame=frame)

    @app.delete("/api/streams/{name}/targets/{key}", tags=["target"], summary="Let go of a target", status_code=204)
    def remove_target(name: _Name, key: _Id) -> None:
        daemon.get(name).remove_target(key)

    for action, tag, summary in ACTIONS:
        _add_action(app, daemon, action, tag, summary)


def _add_action(app: FastAPI, daemon: Daemon, action: str, tag: str, summary: str) -> None:
    def act(name: _Name) -> Response:
        session = daemon.get(name)
        getattr(session, action)()
        return Json(session.status())

    one: _Responses = {200: {"model": schemas.Status}}
    app.post(f"/api/streams/{{name}}/{action}", tags=[tag], summary=summary, name=action, responses=one)(act)


def _add_pictures(app: FastAPI, daemon: Daemon, watchers: live.Watchers, ended: Callable[[], bool]) -> None:
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
    def snapshot(name: _Name, drawn: bool = True) -> Response:
        data = daemon.get(name).broadcast.pictures.snapshot(drawn)
        return Response(data, media_type="image/jpeg", headers={"cache-control": "no-store"})

    @app.get("/api/streams/{name}/live.mjpg", tags=["pictures"], summary=many, responses=moves, response_class=Response)
    async def moving(name: _Name) -> live.MovingPictures:
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


async def _mapping(request: Request) -> dict[str, Any]:
    """The request's JSON object. Raises ConfigError."""
    try:
        values = await request.json()
    except (ValueError, RecursionError):
        raise ConfigError("the request's body: is no JSON: send an object of keys and values") from None
    if not isinstance(values, dict):
        raise ConfigError("the request's body: is no JSON object: send keys and values")
    return values


def _permitted(values: dict[str, Any], daemon: Daemon) -> dict[str, Any]:
    """Values that name no file outside the roots. Raises ConfigError."""
    tracker = values.get("tracker")
    private = [key for key in _PRIVATE if isinstance(tracker, dict) and key in tracker]
    if private:
        raise ConfigError(f"tracker.{private[0]}: names a file, which clients may not: set it in the configuration")
    if "source" not in values:
        return values
    source = values["source"]
    if not isinstance(source, (str, int)) or isinstance(source, bool):
        raise ConfigError(
            "source: is neither text nor a camera's number: give a file, a folder, an address or a number"
        )
    return {**values, "source": permitted_source(source, daemon.config.roots)}


async def _threaded(call: Callable[[], Any]) -> Any:
    """Run what takes its time in a thread."""
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(call)
