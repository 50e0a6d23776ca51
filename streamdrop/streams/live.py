"""Cameras and network streams: the newest frame always, those missed counted."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from streamdrop.errors import StreamError
from streamdrop.streams.stream import Frame
from streamdrop.streams.video import Video, decode, frames_per_second, reason, video_stream
from streamdrop.types import Image

TIMEOUT = (5.0, 5.0)
"""Seconds allowed for connecting, and for each read."""

CLOSING = 1.0
"""Seconds that ``close`` waits for a read under way; one that hangs gives its device back later."""

NETWORK = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp", "srt", "rtp")
"""Addresses that are opened."""


class Live:
    """Frames that come when they come: a thread always reads, and only the newest waits for the consumer."""

    def __init__(self, read: Callable[[], Image | None], release: Callable[[], None], name: str, where: str) -> None:
        """``read`` blocks for the next frame, None at the end. Raises StreamError when no first frame comes."""
        self.name = name
        self.fps: float | None = None
        self.length: int | None = None
        self.live = True
        self.notice: str | None = None
        self._read, self._release, self._where = read, release, where
        first = read()
        if first is None:
            release()
            raise StreamError(f"{where} delivers no frames: check that it is on and not in use by another program")
        self.size: tuple[int, int] | None = (first.shape[1], first.shape[0])
        self._newest: Image | None = first
        self._missed = 0
        self._ended = False
        self._entry = threading.RLock()  # a Condition, entered itself, stays locked where Ctrl-C comes into its methods
        self._changed = threading.Condition(self._entry)
        self._thread = threading.Thread(target=self._follow, name=f"streamdrop {name}", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            while not self._ended:
                image = self._read()
                with self._entry:
                    if image is None:
                        break
                    self._missed += self._newest is not None
                    self._newest = image
                    self._changed.notify()
        finally:
            with self._entry:
                self._ended = True
                self._changed.notify()
            self._release()

    def frames(self) -> Iterator[Frame]:
        """The newest frame each time, from now on, until the source ends or is closed."""
        while True:
            with self._entry:
                self._changed.wait_for(lambda: self._newest is not None or self._ended)
                image, dropped = self._newest, self._missed
                self._newest, self._missed = None, 0
            if image is None:
                return
            yield Frame(image, dropped=dropped)

    def close(self) -> None:
        """Stops reading and ends ``frames`` at once; the device is released when the read under way returns."""
        with self._entry:
            self._ended, self._newest = True, None
            self._changed.notify_all()
        self._thread.join(timeout=CLOSING)


def open_camera(index: int) -> Live:
    """A camera of this machine by its number; raises StreamError when it is not there."""
    import cv2

    where = f"camera {index}"
    if not 0 <= index < 2**31:  # OpenCV dies of others
        raise StreamError(f"{where}: cameras have numbers from 0 on: give one of these")
    capture = cv2.VideoCapture(index)
    if not capture.isOpened():
        capture.release()
        raise StreamError(f"{where} cannot be opened: check that it is connected, or give another number")

    def read() -> Image | None:
        ok, image = capture.read()
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if ok else None  # type: ignore[return-value]

    fps = capture.get(cv2.CAP_PROP_FPS)
    live = Live(read, capture.release, f"camera{index}", where)
    live.fps = fps if 0 < fps <= 1000 else None
    return live


def open_address(url: str) -> Live | Video:
    """A network stream, or a whole video behind an address; raises StreamError, within TIMEOUT."""
    where = without_secrets(url)
    name = where.split("://", 1)[-1]
    container = _connect(url, where)
    if container.duration:
        container.close()
        return Video(lambda: _connect(url, where), name, where)
    try:
        stream = video_stream(container, where)
    except StreamError:
        container.close()
        raise
    frames = (frame.image for frame in decode(container, stream, where) if frame.image is not None)
    live = Live(lambda: next(frames, None), container.close, name, where)
    live.fps = frames_per_second(stream)
    return live


def _connect(url: str, where: str) -> Any:
    import av

    options = {"rtsp_transport": "tcp"} if url.lower().startswith("rtsp") else {}
    start = time.monotonic()
    try:
        return av.open(url, timeout=TIMEOUT, options=options)
    except (av.FFmpegError, OSError, ValueError) as error:
        silent = time.monotonic() - start >= TIMEOUT[0]
        why = f"no answer within {TIMEOUT[0]:g} s" if silent else reason(error)
        raise StreamError(
            f"{where} cannot be opened ({why}): check the address, and that it answers from this machine"
        ) from error


def without_secrets(url: str) -> str:
    """The address without user, password and query."""
    return re.sub(r"://[^/]*@", "://", url.split("?", 1)[0])
