"""What can be asked of streams and their targets over HTTP."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeAlias

from fastapi import FastAPI, Query, Request
from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from streamdrop.boxes import as_box
from streamdrop.config_schema import json_schema
from streamdrop.errors import ConfigError
from streamdrop.service.daemon import Daemon
from streamdrop.service.http import schemas
from streamdrop.service.http.permitted import permitted_source
from streamdrop.service.http.problems import Json
from streamdrop.service.settings import StreamConfig, load_stream

ACTIONS = (
    ("pause", "streams", "Stop tracking; a file stands still"),
    ("resume", "streams", "Go on"),
    ("thaw", "target", "Learn it anew where it is, with all layers"),
    ("checkpoint", "target", "Save now"),
)
"""What can be asked of a stream without a body: methods of its session. The answer is its status."""

_PRIVATE = ("store", "weights", "prior")  # keys of a tracker that name files, or have keys that do
_NETWORK = re.compile(r"[A-Za-z0-9_]+")  # names of torchvision's networks: no file's ending, no folder

Name = Annotated[str, Field(max_length=200)]
_Id = Annotated[int, PathParameter(ge=1, lt=2**63)]
_Last = Annotated[int, Query(ge=1, le=1500)]
Responses: TypeAlias = dict[int | str, dict[str, Any]]


class TargetBody(BaseModel):
    """A target: ``box`` x, y, w, h in pixels, 0-based, of frame ``frame`` (null: the newest)."""

    model_config = ConfigDict(extra="forbid")

    box: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    frame: Annotated[int, Field(ge=0, lt=2**63)] | None = None


def add_streams(app: FastAPI, daemon: Daemon) -> None:
    """Streams: which there are, add, change, remove; what they did of late."""
    one: Responses = {200: {"model": schemas.Status}}

    @app.get("/api/streams", tags=["streams"], summary="All streams", responses={200: {"model": list[schemas.Status]}})
    async def streams() -> Response:
        return Json([session.status() for session in daemon.sessions()])

    @app.get("/api/streams/{name}", tags=["streams"], summary="One stream", responses=one)
    async def stream(name: Name) -> Response:
        return Json(daemon.get(name).status())

    @app.delete("/api/streams/{name}", tags=["streams"], summary="Remove it; purge: its files too", status_code=204)
    def remove(name: Name, purge: bool = False) -> None:
        daemon.remove(name, purge)

    _add_changes(app, daemon, one)
    _add_last(app, daemon)


def _add_changes(app: FastAPI, daemon: Daemon, one: Responses) -> None:
    schema = json_schema(StreamConfig, "Stream")
    del schema["$schema"]
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    some = {"requestBody": {"content": {"application/json": {"schema": {**schema, "required": []}}}}}
    added: Responses = {201: {"model": schemas.Status, "headers": {"location": {"schema": {"type": "string"}}}}}

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
        session = await run_in_threadpool(daemon.add, stream)
        return Json(session.status(), 201, headers={"location": f"/api/streams/{session.name}"})

    @app.patch(
        "/api/streams/{name}",
        tags=["streams"],
        summary="Change keys; it starts again",
        responses=one,
        openapi_extra=some,
    )
    async def change(name: Name, request: Request) -> Response:
        daemon.get(name)
        values = _permitted(await _mapping(request), daemon)
        await run_in_threadpool(daemon.change, name, values)
        return Json(daemon.get(name).status())


def _add_last(app: FastAPI, daemon: Daemon) -> None:
    lasts: Responses = {200: {"model": list[schemas.Round]}}

    @app.get("/api/streams/{name}/rounds", tags=["streams"], summary="The last rounds, oldest first", responses=lasts)
    async def rounds(name: Name, last: _Last = 200) -> Response:
        return Json(daemon.get(name).stats.rounds(last))

    seen: Responses = {200: {"model": list[schemas.Frame]}}

    @app.get("/api/streams/{name}/frames", tags=["streams"], summary="The last tracked frames", responses=seen)
    async def frames(name: Name, last: _Last = 200) -> Response:
        return Json(daemon.get(name).stats.frames(last))


def add_targets(app: FastAPI, daemon: Daemon) -> None:
    """Targets: learn, learn anew, let go of; and the ``ACTIONS``."""

    @app.post(
        "/api/streams/{name}/target",
        tags=["target"],
        summary="Learn the target in a box, in place of the first",
        status_code=202,
    )
    async def set_target(name: Name, body: TargetBody) -> schemas.Accepted:
        session = daemon.get(name)
        frame = session.set_target(as_box(body.box), body.frame)
        return schemas.Accepted(name=name, box=list(body.box), frame=frame)

    @app.delete("/api/streams/{name}/target", tags=["target"], summary="Let go of the first target", status_code=204)
    def clear_target(name: Name) -> None:
        daemon.get(name).clear_target()

    @app.post("/api/streams/{name}/targets", tags=["target"], summary="Learn one more target", status_code=202)
    async def add_target(name: Name, body: TargetBody) -> schemas.AcceptedOne:
        key, frame = daemon.get(name).add_target(as_box(body.box), body.frame)
        return schemas.AcceptedOne(name=name, id=key, box=list(body.box), frame=frame)

    @app.post("/api/streams/{name}/targets/{key}", tags=["target"], summary="Learn a target anew", status_code=202)
    async def redraw_target(name: Name, key: _Id, body: TargetBody) -> schemas.AcceptedOne:
        frame = daemon.get(name).redraw_target(key, as_box(body.box), body.frame)
        return schemas.AcceptedOne(name=name, id=key, box=list(body.box), frame=frame)

    @app.delete("/api/streams/{name}/targets/{key}", tags=["target"], summary="Let go of a target", status_code=204)
    def remove_target(name: Name, key: _Id) -> None:
        daemon.get(name).remove_target(key)

    for action, tag, summary in ACTIONS:
        _add_action(app, daemon, action, tag, summary)


def _add_action(app: FastAPI, daemon: Daemon, action: str, tag: str, summary: str) -> None:
    def act(name: Name) -> Response:
        session = daemon.get(name)
        getattr(session, action)()
        return Json(session.status())

    one: Responses = {200: {"model": schemas.Status}}
    app.post(f"/api/streams/{{name}}/{action}", tags=[tag], summary=summary, name=action, responses=one)(act)


async def _mapping(request: Request) -> dict[str, Any]:
    """The request's JSON object. Raises ConfigError."""
    try:
        values = await request.json()
    except (ValueError, RecursionError):
        raise ConfigError("the request's body: is no JSON: send an object of keys and values") from None
    if not isinstance(values, dict):
        raise ConfigError("the request's body: is no JSON object: send keys and values")
    return values


def _check_private(tracker: dict[str, Any]) -> None:
    """Raises ConfigError for a tracker's keys that name files."""
    private = [f"tracker.{key}" for key in _PRIVATE if key in tracker]
    if private:
        raise ConfigError(f"{private[0]}: names a file, which clients may not: set it in the configuration")
    if "backbone" in tracker and not _NETWORK.fullmatch(str(tracker["backbone"])):
        raise ConfigError(
            "tracker.backbone: is no network's name, and clients may name no file: set it in the configuration"
        )


def _permitted(values: dict[str, Any], daemon: Daemon) -> dict[str, Any]:
    """Values that name no file outside the roots. Raises ConfigError."""
    tracker = values.get("tracker")
    if isinstance(tracker, dict):
        _check_private(tracker)
    if "source" not in values:
        return values
    source = values["source"]
    if not isinstance(source, (str, int)) or isinstance(source, bool):
        raise ConfigError(
            "source: is neither text nor a camera's number: give a file, a folder, an address or a number"
        )
    return {**values, "source": permitted_source(source, daemon.config.roots)}
