"""The daemon's HTTP application: see /docs of a running daemon, or docs/daemon.md."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from streamdrop._version import __version__
from streamdrop.service.daemon import Daemon
from streamdrop.service.http import live, metrics, problems, schemas
from streamdrop.service.http.guard import Guard
from streamdrop.service.http.picture_routes import add_pictures
from streamdrop.service.http.problems import Json
from streamdrop.service.http.stream_routes import Responses, add_streams, add_targets

_PROBLEM = {
    "description": "What is wrong, where, and the remedy",
    "content": {problems.MEDIA_TYPE: {"schema": schemas.Problem.model_json_schema()}},
}
_PROBLEMS: Responses = {"4XX": _PROBLEM, "5XX": _PROBLEM}


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
    add_streams(app, daemon)
    add_targets(app, daemon)
    add_pictures(app, daemon, live.Watchers(daemon.config.http.watchers), ended)
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
    health: Responses = {200: {"model": schemas.Health}}

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

    text: Responses = {200: {"description": "Prometheus' text format", "content": {"text/plain": {}}}}

    @app.get("/metrics", tags=["health"], summary="Metrics for Prometheus", responses=text, response_class=Response)
    async def prometheus() -> Response:
        return Response(metrics.render(daemon), headers={"content-type": CONTENT_TYPE_LATEST})

    @app.post("/api/reload", tags=["daemon"], summary="Read the configuration again; only what changed restarts")
    def reload_configuration() -> schemas.Reloaded:
        return schemas.Reloaded(**reload())
