"""The daemon's sessions in a program of your own: a stream tracked in the background, as an iterator of events."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from streamdrop.boxes import as_box
from streamdrop.errors import OutputError, StoreError, StoreLockedError
from streamdrop.service.settings import SessionSettings, load_daemon, tracker_settings
from streamdrop.service.share import Share, watch_rounds
from streamdrop.service.stream_session import StreamSession
from streamdrop.store.lock import WriterLock
from streamdrop.types import Image

_BACKLOG = 4096


class Session:
    """One stream, read, tracked and learned in the background; iterate over it for its events.

    ``source`` as for ``open_stream``; ``box`` the target in the first frame (None: ``set_target`` later); ``state``: a
    folder from which a later session of that ``name`` goes on (None: nothing is kept); ``tracker``: keys of a
    TrackerConfig; ``options``: other keys of a stream in the daemon's YAML (``targets``, ``fps``, ``loop``, ``stale``,
    ``outputs``).
    Sessions of one process must share the machine: give each but the first one of the others as ``beside``.

    Events are those of ``events.jsonl``. A consumer too slow for them loses the oldest: ``missed`` counts. The iterator
    ends when the stream has ended or the session is closed. Raises ConfigError; OutputError, also where a session of
    another process has the folder.
    """

    def __init__(
        self,
        source: str | int | os.PathLike[str],
        box: object = None,
        *,
        name: str = "stream",
        state: str | os.PathLike[str] | None = None,
        tracker: Mapping[str, Any] | None = None,
        beside: Session | None = None,
        **options: Any,
    ) -> None:
        self._closing = contextlib.ExitStack()
        if state is None:
            state = self._closing.enter_context(tempfile.TemporaryDirectory(prefix="streamdrop-"))
        plain = source if isinstance(source, int) else os.fspath(source)
        given = None if box is None else [float(value) for value in as_box(box)]
        stream = {"name": name, "source": plain, "box": given, **options}
        config = load_daemon({"state": os.fspath(state), "tracker": dict(tracker or {}), "streams": [stream]})
        one = config.streams[0]
        settings = SessionSettings(one, tracker_settings(config, one), config.outputs, config.limits)
        self.share: Share = Share(config.limits.slots) if beside is None else beside.share
        self.missed = 0
        self._events: deque[dict[str, Any]] = deque(maxlen=_BACKLOG)
        self._entry = threading.RLock()  # a Condition, entered itself, stays locked where Ctrl-C comes into its methods
        self._changed = threading.Condition(self._entry)
        self._ended = False
        folder = Path(state) / name
        with contextlib.ExitStack() as undo:  # what is done so far, should it fail
            undo.callback(self._closing.close)
            if beside is None:
                self._closing.enter_context(watch_rounds(self.share))
            self._closing.callback(_locked(folder).drop)
            self._session = StreamSession(settings, folder, self.share)
            undo.pop_all()
        self._session.broadcast.listeners.append(self._heard)
        self._session.start()

    def _heard(self, event: dict[str, Any]) -> None:
        with self._entry:
            self.missed += len(self._events) == _BACKLOG
            self._events.append(event)
            self._ended = self._ended or event.get("event") in ("ended", "stopped")
            self._changed.notify_all()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every event from now on, waiting for each."""
        while True:
            with self._entry:
                self._changed.wait_for(lambda: self._events or self._ended)
                if not self._events:
                    return
                event = self._events.popleft()
            yield event

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        """The same for ``async for``; the event loop is never held up."""
        events = iter(self)
        while (event := await asyncio.to_thread(next, events, None)) is not None:
            yield event

    @property
    def status(self) -> dict[str, Any]:
        """What the daemon's API says about a stream: state, frame, target, cut, layers, round, loss, …"""
        return self._session.status()

    @property
    def image(self) -> Image | None:
        """The newest frame, uint8 H×W×3 RGB; None before the first."""
        picture = self._session.broadcast.pictures.newest
        return None if picture is None else picture.image

    def set_target(self, box: object, frame: int | None = None) -> int:
        """Learn the target in ``box`` of frame number ``frame`` (None: the newest), in place of the first one.

        Raises BoxError, ConflictError.
        """
        return self._session.set_target(as_box(box), frame)

    def clear_target(self) -> None:
        """Let go of the first target."""
        self._session.clear_target()

    def add_target(self, box: object, frame: int | None = None) -> int:
        """Learn one more target; returns its id. Raises BoxError, ConflictError."""
        return self._session.add_target(as_box(box), frame)[0]

    def remove_target(self, key: int) -> None:
        """Let go of the target of that id. Raises UnknownError."""
        self._session.remove_target(key)

    def pause(self) -> None:
        """Stop tracking and learning; a file stands still."""
        self._session.pause()

    def resume(self) -> None:
        """Go on."""
        self._session.resume()

    def checkpoint(self) -> None:
        """Save now. Raises ConflictError without a target, OutputError."""
        self._session.checkpoint()

    def close(self) -> None:
        """Save and end. Twice is fine."""
        self._session.stop()
        self._session.join(60.0)
        with self._entry:
            self._ended = True
            self._changed.notify_all()
        self._closing.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _locked(folder: Path) -> WriterLock:
    """No other process's session has the folder until this is dropped. Raises OutputError."""
    lock = WriterLock(folder)
    try:
        lock.take()
    except StoreLockedError:
        raise OutputError(f"{folder}: another session uses it: end that one, or choose another state or name") from None
    except StoreError as error:
        raise OutputError(f"{error}: choose another state folder") from None
    return lock
