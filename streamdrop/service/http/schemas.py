"""What the API answers, for its description: shapes of JSON, documented and tested, not checked at every request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_Box = Annotated[list[float], Field(min_length=4, max_length=4, description="x, y, w, h in pixels of the frame")]


class _Open(BaseModel):
    """Further keys may come in later versions."""

    model_config = ConfigDict(extra="allow")


class Problem(_Open):
    """RFC 9457: what is wrong (``detail``), where (``instance``), and the remedy."""

    type: str
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    instance: str
    remedy: str


class Target(_Open):
    """Where the target is, how sure that is (0 to 1), and whether it is lost: the box is the last one known then."""

    box: _Box
    score: float
    lost: bool


class NamedTarget(Target):
    """One of several targets."""

    id: Annotated[int, Field(ge=1)]


class Status(_Open):
    """One stream."""

    name: str
    state: Literal[
        "starting",
        "waiting",
        "learning",
        "tracking",
        "uncertain",
        "lost",
        "paused",
        "reconnecting",
        "failed",
        "ended",
        "stopped",
    ]
    frame: Annotated[int, Field(ge=0)]
    fps: Annotated[float, Field(ge=0, description="Frames tracked a second, of late")]
    dropped_frames: Annotated[int, Field(ge=0)]
    target: Annotated[Target | None, Field(description="The first one")]
    targets: list[NamedTarget]
    cut: Annotated[int | None, Field(description="Layers dropped")]
    layers: int | None
    round: Annotated[int, Field(ge=0)]
    loss: float | None
    paused: bool
    error: str | None
    source: Annotated[str, Field(description="Without secrets")]
    source_fps: float | None
    live: bool
    size: Annotated[list[int] | None, Field(description="Width and height in pixels")]
    tracked_frames: int
    skipped_frames: Annotated[int, Field(description="Frames that could not be decoded")]
    reconnects: int
    saved: Annotated[float | None, Field(description="When state was last saved, in Unix seconds")]


class Frame(_Open):
    """The event of a tracked frame."""

    frame: int
    box: _Box
    score: float
    lost: bool
    ms: float
    time: float


class Round(_Open):
    """The event of an adaptation round."""

    round: int
    after_frame: int
    cut: int
    next_cut: int
    loss: float
    ms: float
    samples: int
    time: float


class Accepted(BaseModel):
    """A target that will be learned on ``frame``."""

    name: str
    box: _Box
    frame: int


class AcceptedOne(Accepted):
    """One of several targets that will be learned."""

    id: Annotated[int, Field(ge=1)]


class Health(BaseModel):
    """It is well."""

    status: Literal["ok", "ready"]


class Reloaded(BaseModel):
    """Names of streams by what a reload did to them."""

    stopped: list[str]
    restarted: list[str]
    started: list[str]
    unchanged: list[str]


def picture(kind: str) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that answers with a picture."""
    return {200: {"description": "JPEG", "content": {kind: {"schema": {"type": "string", "format": "binary"}}}}}
