"""What can be set about the daemon: one YAML file for streams, tracker, HTTP, limits, outputs and logging."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from streamdrop.boxes import Box, as_box
from streamdrop.config import load, merged, overrides_of, secret
from streamdrop.errors import BoxError, ConfigError
from streamdrop.service.addresses import is_address, is_loopback, server_and_path
from streamdrop.service.mqtt_settings import MqttConfig
from streamdrop.service.redact import redacted
from streamdrop.tracking import TrackerConfig
from streamdrop.tracking.threads import cores
from streamdrop.values import check_above, check_fields

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Names of streams: they are folders, labels and parts of addresses."""

_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class HttpConfig:
    """The HTTP server. ``token`` (16 characters or more) is asked of every client; needed unless ``host`` is loopback.

    ``origins``: other pages, such as ``https://panel.lan``, that may open WebSockets. ``max_body``: bytes of a request.
    ``rate``: requests a second from one client address, in bursts of up to as many. ``connections``: open at once.
    ``watchers``: live views and event sockets at once. ``port`` 0: any free one, written to ``state/daemon.json``.
    ``client_kb``: what may wait in the socket of one client. A client that reads nothing, or leaves its request
    incomplete, for ``client_seconds`` is dropped.
    """

    host: str = "127.0.0.1"
    port: int = 8377
    token: str | None = secret()
    origins: tuple[str, ...] = ()
    max_body: int = 65536
    rate: float = 500.0
    connections: int = 256
    watchers: int = 128
    client_kb: float = 256.0
    client_seconds: float = 10.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}: give one from 1 to 65535, or 0 for any free one")
        if self.token is not None and (len(self.token) < _SHORTEST_TOKEN or not self.token.isascii()):
            raise ConfigError(f"token is too short or not plain ASCII: give {_SHORTEST_TOKEN} characters or more")
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(
                f"host {self.host} can be reached from other machines, and there is no token: "
                "set token: ${STREAMDROP_TOKEN}, or host: 127.0.0.1"
            )
        if self.max_body < 1024 or self.connections < 1 or self.watchers < 1:
            raise ConfigError("max_body is at least 1024, connections and watchers at least 1")
        for name in ("rate", "client_kb", "client_seconds"):
            check_above(name, getattr(self, name), 0.0)


@dataclass(frozen=True)
class LimitsConfig:
    """What the daemon may use. ``workers``: trackers that compute at once; null: the cores of this machine.

    ``streams``: at most so many. ``round_seconds``: deadline of a round (null: none); the tracker's own wins.
    ``save_rounds``: state is saved after every so many rounds. ``buffer_seconds`` and ``buffer_mb`` bound the frames
    kept of each stream, so that a box can be drawn on a frame that has passed. A frame that has waited ``late_seconds``
    is dropped for a newer one. ``retry_first`` to ``retry_most``: seconds
    between attempts at a stream that fails. ``events_mb``: size at which an events file is set aside; ``events_files``
    of those are kept.
    """

    workers: int | None = None
    streams: int = 32
    round_seconds: float | None = 0.25
    save_rounds: int = 1
    buffer_seconds: float = 5.0
    buffer_mb: float = 64.0
    late_seconds: float = 0.15
    retry_first: float = 1.0
    retry_most: float = 30.0
    events_mb: float = 64.0
    events_files: int = 4

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.workers is not None and self.workers < 1) or self.streams < 1 or self.save_rounds < 1:
            raise ConfigError("workers, streams and save_rounds are at least 1")
        if self.round_seconds is not None:
            check_above("round_seconds", self.round_seconds, 0.0)
        for name in ("buffer_seconds", "buffer_mb", "late_seconds", "retry_first", "events_mb"):
            check_above(name, getattr(self, name), 0.0)
        if self.retry_most < self.retry_first or not math.isfinite(self.retry_most):
            raise ConfigError(f"retry_most is {self.retry_most}: give at least retry_first ({self.retry_first})")
        if self.events_files < 1:
            raise ConfigError(f"events_files is {self.events_files}: give at least 1")

    @property
    def slots(self) -> int:
        """Trackers that compute at once."""
        return self.workers or cores()


@dataclass(frozen=True)
class OutputsConfig:
    """What a stream leaves in ``state/NAME/``. ``events``: ``events.jsonl``. ``boxes``: files in these formats.

    ``video_minutes``: annotated videos of so many minutes each, 0 for none; ``videos`` of them are kept.
    """

    events: bool = True
    boxes: tuple[Literal["xywh", "mot", "got10k"], ...] = ()
    video_minutes: float = 0.0
    videos: int = 24

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.video_minutes < math.inf or self.videos < 1:
            raise ConfigError("video_minutes is at least 0, videos at least 1")


@dataclass(frozen=True)
class LoggingConfig:
    """``format`` text or json (one object a line), to stderr, or to ``file``."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    file: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class TargetConfig:
    """One of several targets: ``box`` in the first frame, x, y, w, h in pixels; ``id``: null: its place in the list."""

    box: tuple[float, float, float, float]
    id: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        _checked_box(self.box)
        if self.id is not None and self.id < 1:
            raise ConfigError(f"id is {self.id}: give a whole number of at least 1")


@dataclass(frozen=True)
class StreamConfig:
    """One stream. ``source``: video file, folder, pattern, camera number, rtsp:// or http:// address.

    ``fps``: frames a second that a file is played at (null: its own, or 25). ``loop``: files start again at their end.
    ``box``: the target in the first frame, x, y, w, h in pixels; null: drawn later; ``targets``: several instead.
    ``tracker``: keys that differ from the daemon's. ``stale``: seconds without a frame after which a live source counts
    as broken. ``outputs``: null: the daemon's.
    """

    name: str
    source: str | int
    fps: float | None = None
    loop: bool = False
    box: tuple[float, float, float, float] | None = None
    targets: tuple[TargetConfig, ...] = ()
    tracker: dict[str, Any] = overrides_of(TrackerConfig)  # noqa: RUF009
    stale: float = 10.0
    outputs: OutputsConfig | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not NAME.fullmatch(self.name):
            raise ConfigError(f"name {self.name!r}: use letters, digits, - and _, at most 64")
        if isinstance(self.source, int) and self.source < 0:
            raise ConfigError(f"source {self.source}: a camera's number is at least 0")
        if not str(self.source).strip() or "\0" in str(self.source):
            raise ConfigError("source is empty: give a file, folder, camera or address")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ConfigError(f"fps is {self.fps}: give a number above 0, at most 1000")
        check_above("stale", self.stale, 0.0)
        if self.box is not None:
            _checked_box(self.box)
        if self.box is not None and self.targets:
            raise ConfigError("box and targets are both given: give one of them")
        ids = [target.id or place for place, target in enumerate(self.targets, 1)]
        twice = sorted({one for one in ids if ids.count(one) > 1})
        if twice:
            raise ConfigError(f"targets: id {twice[0]} is given twice: give each its own")

    @property
    def shown_source(self) -> str:
        """The source without secrets."""
        return redacted(str(self.source))

    @property
    def target(self) -> Box | None:
        """The box as a Box."""
        return None if self.box is None else as_box(self.box)

    @property
    def boxes(self) -> dict[int, Box]:
        """The boxes given, by id."""
        given = {target.id or place: as_box(target.box) for place, target in enumerate(self.targets, 1)}
        return given if self.box is None else {1: as_box(self.box)}


@dataclass(frozen=True)
class DaemonConfig:
    """Everything about the daemon. ``state``: folder for all that must survive: state, store, outputs.

    ``roots``: what API clients may name as sources: folders, beginnings of addresses (``rtsp://camera.lan/``), numbers
    of cameras. ``tracker``: keys of configs/advanced.yaml for all streams.
    """

    state: str = "run"
    http: HttpConfig = field(default_factory=HttpConfig)
    roots: tuple[str | int, ...] = ()
    tracker: dict[str, Any] = overrides_of(TrackerConfig)  # noqa: RUF009
    streams: tuple[StreamConfig, ...] = ()
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    outputs: OutputsConfig = field(default_factory=OutputsConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    mqtt: MqttConfig | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        names = [stream.name.lower() for stream in self.streams]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"streams: {', '.join(twice)} given twice (case does not count): give each its own name")
        if len(names) > self.limits.streams:
            raise ConfigError(f"{len(names)} streams, limits.streams is {self.limits.streams}: raise it or remove some")
        for stream in self.streams:
            tracker_settings(self, stream)
        for root in self.roots:
            _check_root(str(root).strip())


@dataclass(frozen=True)
class SessionSettings:
    """All that a stream is made from; when any of it changes, the stream is made anew."""

    stream: StreamConfig
    tracker: TrackerConfig
    outputs: OutputsConfig
    limits: LimitsConfig


def load_daemon(
    source: str | os.PathLike[str] | Mapping[str, Any] | None, overrides: Sequence[str] = ()
) -> DaemonConfig:
    """The daemon's configuration from a YAML file or mapping. Raises ConfigError, without secrets, for all mistakes."""
    try:
        return load(source, DaemonConfig, overrides)
    except ConfigError as error:
        problems = [redacted(problem) for problem in error.problems]
        raise ConfigError("; ".join(problems), problems=problems) from None


def load_stream(values: Mapping[str, Any]) -> StreamConfig:
    """One stream's configuration from plain values, as an API client sends them. Raises ConfigError."""
    try:
        return load(values, StreamConfig)
    except ConfigError as error:
        problems = [redacted(problem).removeprefix("configuration: ") for problem in error.problems]
        raise ConfigError("; ".join(problems), problems=problems) from None


def tracker_settings(daemon: DaemonConfig, stream: StreamConfig) -> TrackerConfig:
    """The stream's tracker: its own keys over the daemon's, its store in the state folder. Raises ConfigError."""
    values = merged(daemon.tracker, stream.tracker)
    try:
        config = load(values, TrackerConfig)
    except ConfigError as error:
        raise ConfigError(f"streams: {stream.name}: {str(error).removeprefix('configuration: ')}") from None
    if config.realtime.beside:
        raise ConfigError(
            f"streams: {stream.name}: tracker.realtime.beside: the daemon's streams share the cores, and such a thread "
            "would take one past limits.workers: give realtime.fps"
        )
    if config.update.deadline is None and daemon.limits.round_seconds is not None:
        config = replace(config, update=replace(config.update, deadline=daemon.limits.round_seconds))
    try:
        config.check_targets(len(stream.targets))
    except ConfigError as error:
        raise ConfigError(f"streams: {stream.name}: tracker: {error}") from None
    store = os.path.join(daemon.state, stream.name, "features") if "store" not in values else config.store
    return replace(config, name=stream.name, store=store)


def _check_root(root: str) -> None:
    """Raise ConfigError for a place that no source is in; an empty one would be the folder that the daemon runs in."""
    if not root or "\0" in root:
        raise ConfigError("roots: one is empty: give a folder, the beginning of an address, or a camera's number")
    if is_address(root) and server_and_path(root) is None:
        raise ConfigError(
            f"roots: {redacted(root)} is malformed: give the beginning of an address, such as rtsp://cam/"
        )


def _checked_box(values: Sequence[float]) -> None:
    try:
        as_box(values)
    except BoxError as error:
        raise ConfigError(str(error)) from None
