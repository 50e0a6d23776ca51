"""Many streams in one process: started, stopped, changed and reloaded one by one."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from streamdrop.atomic import replace_text
from streamdrop.errors import ConfigError, ConflictError, OutputError, StoreError, StoreLockedError, UnknownError
from streamdrop.service.mqtt import Publisher
from streamdrop.service.settings import (
    NAME,
    DaemonConfig,
    LimitsConfig,
    SessionSettings,
    StreamConfig,
    load_stream,
    tracker_settings,
)
from streamdrop.service.share import Share, watch_rounds
from streamdrop.service.stream_session import StreamSession
from streamdrop.store.lock import WriterLock

log = logging.getLogger("streamdrop")

_ADDED = "streams.json"
_STOP = 3.5  # seconds within which a stream ends


class Daemon:
    """The sessions of a configuration, and those that API clients added (kept in ``state/streams.json``).

    Raises OutputError where the state folder cannot be used, or another daemon uses it.
    """

    def __init__(self, config: DaemonConfig) -> None:
        self.config = config
        self.began = time.time()
        self.reloads, self.reload_failed = 0, False
        self.state = Path(config.state)
        self.share = Share(config.limits.slots)
        self._sessions: dict[str, StreamSession] = {}
        self._added: dict[str, StreamConfig] = {}
        self._changing = threading.RLock()
        self._lock = WriterLock(self.state)
        self._closing = ExitStack()
        self._mqtt = None if config.mqtt is None else Publisher(config.mqtt)
        self._take_state()

    def _take_state(self) -> None:
        try:
            self._lock.take()
        except StoreLockedError:
            raise OutputError(f"{self.state}: another daemon uses it: end that one, or choose another state") from None
        except StoreError as error:
            raise OutputError(f"{error}: choose another state folder") from None
        self._added = _read_added(self.state / _ADDED)

    def start(self) -> None:
        """Start every stream."""
        import torch

        torch.set_num_threads(1)  # trackers run side by side; each sets its own count within its turn
        self._closing.enter_context(watch_rounds(self.share))
        if self._mqtt is not None:
            self._mqtt.start()
            self._closing.callback(self._mqtt.stop)
        with self._changing:
            wanted = self._wanted(self.config)
            self._forget_published(wanted)
            for stream in wanted.values():
                self._start(_settings(self.config, stream))

    def _forget_published(self, wanted: Mapping[str, StreamConfig]) -> None:
        """Streams that were taken out of the configuration while no daemon ran: a broker would retain them for good."""
        if self._mqtt is not None:
            names = {path.parent.name for path in self.state.glob("*/stream.json")} - wanted.keys()
            for name in filter(NAME.fullmatch, names):
                self._mqtt.detach(name)

    def _wanted(self, config: DaemonConfig) -> dict[str, StreamConfig]:
        """Streams by name: the configuration's, then those added; of two with one name, the configuration's."""
        named = {stream.name: stream for stream in config.streams}
        return {**{name: stream for name, stream in self._added.items() if name not in named}, **named}

    def stop(self, timeout: float = _STOP) -> bool:
        """Stop every stream, all at once; whether all ended within ``timeout`` seconds. Twice is fine."""
        with self._changing:
            sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            session.stop()
        deadline = time.monotonic() + timeout
        ended = [session.join(max(0.0, deadline - time.monotonic())) for session in sessions]
        self._closing.close()
        self._lock.drop()
        for session in (session for session, done in zip(sessions, ended, strict=True) if not done):
            log.error("%s: did not end in time; what it last saved stands", session.name)
        return all(ended)

    # ---------------------------------------------------------------- streams

    def get(self, name: str) -> StreamSession:
        """The session of that name. Raises UnknownError."""
        session = self._sessions.get(name)
        if session is None:
            raise UnknownError(f"no stream {name!r}: the streams are {', '.join(sorted(self._sessions)) or 'none'}")
        return session

    def sessions(self) -> list[StreamSession]:
        """All sessions, in the order they were made."""
        return list(self._sessions.values())

    def add(self, stream: StreamConfig) -> StreamSession:
        """A stream that is kept until it is removed. Raises ConflictError, ConfigError, OutputError."""
        with self._changing:
            if stream.name.lower() in (name.lower() for name in self._sessions):
                raise ConflictError(f"there is a stream {stream.name!r} already: remove it, or choose another name")
            if len(self._sessions) >= self.config.limits.streams:
                most = self.config.limits.streams
                raise ConflictError(f"there are {most} streams, as many as limits.streams allows: remove one")
            settings, before = _settings(self.config, stream), self._added
            self._keep({**before, stream.name: stream})  # first: one that runs and is not kept would be in the way
            try:
                return self._start(settings)
            except BaseException:
                if stream.name in self._sessions:
                    self._stop(stream.name)
                self._keep(before)
                raise

    def change(self, name: str, values: Mapping[str, Any]) -> StreamSession:
        """Give some keys of a stream other values; it starts again where it was. Raises ConfigError, UnknownError.

        A stream of the YAML file has the file's values again after the next start or reload.
        """
        with self._changing:
            before = self.get(name).settings.stream
            if values.get("name", name) != name:
                raise ConfigError("name: cannot be changed: remove the stream and add another")
            known = {field.name: getattr(before, field.name) for field in dataclasses.fields(before)}
            plain = {key: value for key, value in known.items() if key != "outputs"}
            plain["targets"] = [dataclasses.asdict(target) for target in before.targets]
            stream = dataclasses.replace(load_stream({**plain, **values}), outputs=_outputs(before, values))
            settings = _settings(self.config, stream)
            if name in self._added:
                self._keep({**self._added, name: stream})
            return self._restart(settings)

    def remove(self, name: str, purge: bool = False) -> None:
        """Stop a stream; with ``purge`` its folder goes too. Raises UnknownError, OutputError."""
        with self._changing:
            self.get(name)
            self._keep({key: stream for key, stream in self._added.items() if key != name})
            self._stop(name)
            if purge:
                shutil.rmtree(self.state / name, ignore_errors=True)

    def reload(self, config: DaemonConfig) -> dict[str, list[str]]:
        """Take another configuration; only streams that differ are touched. Returns the names by what was done.

        ``limits.workers`` and ``limits.streams`` count at once and touch no stream.

        Raises ConfigError, and changes nothing, where http, state, logging or mqtt differ, which need a restart, and
        where an added stream does not fit the configuration.
        """
        with self._changing:
            fixed = [
                name
                for name in ("state", "http", "logging", "mqtt")
                if getattr(config, name) != getattr(self.config, name)
            ]
            if fixed:
                self.reload_failed = True
                raise ConfigError(f"{', '.join(fixed)} changed, which needs a restart: nothing was reloaded")
            wanted = {name: _settings(config, stream) for name, stream in self._wanted(config).items()}
            self.config = config
            self.share.resize(config.limits.slots)
            before = {name: session.settings for name, session in self._sessions.items()}
            changed = [name for name in wanted if name in before and wanted[name] != before[name]]
            done = {
                "stopped": [name for name in before if name not in wanted],
                "restarted": changed,
                "started": [name for name in wanted if name not in before],
                "unchanged": [name for name in wanted if name in before and name not in changed],
            }
            self._apply(wanted, done)
            self.reloads, self.reload_failed = self.reloads + 1, False
            return done

    def _apply(self, wanted: Mapping[str, SessionSettings], done: Mapping[str, list[str]]) -> None:
        """Stop, restart and start streams. One that cannot be started keeps none of the others; it is raised last."""
        for name in (*done["stopped"], *done["restarted"]):
            self._sessions[name].stop()  # all begin to end at once: one by one, each would compete with the rest
        for name in done["stopped"]:
            self._stop(name)
        failed: list[OutputError] = []
        for name in (*done["restarted"], *done["started"]):
            try:
                self._restart(wanted[name]) if name in self._sessions else self._start(wanted[name])
            except OutputError as error:  # noqa: PERF203
                failed.append(error)
        if failed:
            raise failed[0]

    def _start(self, settings: SessionSettings) -> StreamSession:
        stream = settings.stream
        session = StreamSession(settings, self.state / stream.name, self.share)
        self._sessions[stream.name] = session
        if self._mqtt is not None:
            self._mqtt.attach(session)
        session.start()
        log.info("%s: started, from %s", stream.name, stream.shown_source)
        return session

    def _restart(self, settings: SessionSettings) -> StreamSession:
        """Another session in the place of the one of that name, which answers until it has ended."""
        self._end(settings.stream.name)
        return self._start(settings)

    def _stop(self, name: str) -> None:
        self._end(name)
        del self._sessions[name]
        if self._mqtt is not None:
            self._mqtt.detach(name)

    def _end(self, name: str) -> None:
        session = self._sessions[name]
        session.stop()
        if not session.join(_STOP * 2):
            log.error("%s: did not end in time; what it last saved stands", name)
        self.share.forget(name)
        log.info("%s: stopped", name)

    def _keep(self, added: dict[str, StreamConfig]) -> None:
        """Remember the added streams. Raises OutputError."""
        if added == self._added:
            return
        path = self.state / _ADDED
        try:
            replace_text(path, json.dumps([_plain(stream) for stream in added.values()]), 0o600)  # addresses: passwords
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror}): free some space") from None
        self._added = added


def _settings(config: DaemonConfig, stream: StreamConfig) -> SessionSettings:
    """What a stream is made from under a configuration. Raises ConfigError."""
    limits = dataclasses.replace(config.limits, workers=None, streams=LimitsConfig.streams)  # those are the daemon's
    return SessionSettings(stream, tracker_settings(config, stream), stream.outputs or config.outputs, limits)


def _plain(stream: StreamConfig) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(stream).items() if value is not None}


def _outputs(before: StreamConfig, values: Mapping[str, Any]) -> Any:
    """The outputs that a changed stream has: given anew, or as before."""
    if "outputs" not in values:
        return before.outputs
    return load_stream({"name": before.name, "source": 0, "outputs": values["outputs"]}).outputs


def _read_added(path: Path) -> dict[str, StreamConfig]:
    try:
        streams = [load_stream(values) for values in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, ConfigError) as error:
        raise OutputError(f"{path}: damaged ({error}): remove it; streams added by clients are lost then") from None
    return {stream.name: stream for stream in streams}
