"""Errors as RFC 9457 problem documents: what, where, and the remedy."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamdrop.errors import (
    BoxError,
    ConfigError,
    ConflictError,
    OutputError,
    StoreError,
    StreamdropError,
    UnknownError,
)
from streamdrop.service.redact import redacted

log = logging.getLogger("streamdrop")

MEDIA_TYPE = "application/problem+json"

STATUS: tuple[tuple[type[StreamdropError], int, str], ...] = (
    (UnknownError, 404, "Unknown stream or target"),
    (ConflictError, 409, "Not now"),
    (BoxError, 422, "Not a box of this frame"),
    (ConfigError, 422, "Not a valid configuration"),
    (OutputError, 507, "Cannot be written"),
    (StoreError, 507, "Cannot be stored"),
)
"""The status and the title of each kind of error; any other is 500."""


class Json(JSONResponse):
    """JSON in plain ASCII: text that is no valid Unicode cannot break an answer."""

    def render(self, content: Any) -> bytes:
        """The content as bytes."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def problem(
    status: int, title: str, detail: str, where: str, remedy: str = "", headers: Mapping[str, str] | None = None
) -> Response:
    """A problem document. ``remedy`` defaults to what stands behind the last colon of ``detail``."""
    detail = redacted(detail)
    what, colon, last = detail.rpartition(": ")
    body = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": where,
        "remedy": remedy or (last if colon and what else "see the API's description at /docs"),
    }
    return Json(body, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def of_error(error: StreamdropError, where: str) -> Response:
    """The problem document of one of our errors."""
    status, title = next(((code, name) for kind, code, name in STATUS if isinstance(error, kind)), (500, "Failed"))
    return problem(status, title, " ".join(str(error).split()), where)


class Unforeseen:
    """ASGI middleware: an error that is none of ours is answered too, and its traceback logged.

    A handler of Starlette's would not do: after it the error goes on to the server, which logs it once more.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand everything on; answer for what raised before it did."""
        answered = scope["type"] != "http"

        async def noted(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if answered:
                raise  # too late for another answer: the server breaks the connection off
            where, kind = str(scope["path"]), type(error).__name__
            log.exception("%s %s: %s", scope["method"], where, kind)
            text = f"the request could not be answered ({kind}): see the daemon's log"
            await problem(500, "Failed", text, where)(scope, receive, send)


def install(app: FastAPI) -> None:
    """Have every error of the application answered by a problem document."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, StreamdropError)
        return of_error(error, request.url.path)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = "; ".join(f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors())
        remedy = "send what the API's description at /docs says"
        return problem(422, "Not a valid request", found, request.url.path, remedy)

    async def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        remedy = {
            404: "see /docs for what there is",
            405: f"use {(error.headers or {}).get('allow', 'another method')}",
        }
        detail = {404: "there is nothing at this address", 405: "this address does not take this method"}
        text = detail.get(error.status_code, str(error.detail))
        where = request.url.path
        return problem(
            error.status_code, str(error.detail), text, where, remedy.get(error.status_code, ""), error.headers
        )

    app.add_middleware(Unforeseen)
    app.add_exception_handler(StreamdropError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)
