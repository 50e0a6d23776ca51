"""Video files, and videos served over HTTP, as streams (PyAV)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamdrop.errors import StreamError
from streamdrop.pixels import Tones, as_rgb
from streamdrop.streams.stream import Frame
from streamdrop.types import Image

FASTEST = 1000.0
"""Frames per second above which a header is not believed."""

PIPE = "send one that can be read from its start, such as Matroska or MPEG-TS, or save it as a file"
"""What to do where a pipe brings no video: most MP4 files have their index at the end."""

ATTACHED_PICTURE = 0x0400
"""FFmpeg's mark of a cover."""

STILL = frozenset(("bmp", "jpeg2000", "jpegls", "mjpeg", "png", "tiff", "webp"))
"""FFmpeg's names of the kinds of pictures that may be a cover without its mark; videos are made of them, too."""

LARGE = 1920 * 1080
"""Pixels above which frames are decoded ahead on two threads. Below that one thread is as fast (2 ms a frame at 360p,
5 ms at 720p), leaves the cores to the tracker, and loses no good frame beside a broken one."""


class Video:
    """A video that can be read from its start as often as wanted."""

    def __init__(self, open_container: Callable[[], Any], name: str, where: str) -> None:
        """``open_container`` returns an open PyAV container; ``where`` names the source in messages.

        Decodes the first frame. Raises StreamError when there is none.
        """
        self.name = name
        self.live = False
        self.notice: str | None = None
        self._open = open_container
        self._where = where
        with open_container() as container:
            stream = video_stream(container, where)
            self.fps = frames_per_second(stream)
            self._seconds = _duration(container, stream)
            self.length: int | None = stream.frames or _frames_in(self._seconds, self.fps)
            self._counted: int = stream.frames
            first = next((f.image for f in decode(container, stream, where) if f.image is not None), None)
        if first is None:
            raise StreamError(f"{where} holds no frame that can be decoded: is the file whole?")
        self.size: tuple[int, int] | None = (first.shape[1], first.shape[0])

    def frames(self) -> Iterator[Frame]:
        """Every frame from the first. Sets ``notice`` when the video ends before its header says."""
        self.notice = None
        count, first, last = 0, None, None
        with self._open() as container:
            for frame in decode(container, video_stream(container, self._where), self._where):
                count += 1
                if frame.seconds is not None:
                    first, last = frame.seconds if first is None else first, frame.seconds
                yield frame
        played = None if first is None or last is None or self.fps is None else last - first + 1 / self.fps
        if self._ended_early(count, played):
            expected = f"{self.length} frames" if self.length else f"{self._seconds:.1f} s"
            self.notice = f"{self._where} ends after {count} frames, its header says {expected}: is the file whole?"

    def _ended_early(self, count: int, played: float | None) -> bool:
        """Fewer frames than the header counts, or less playing time where it does not count.

        Edit lists hide frames that the header counts, so a count alone is believed only without times.
        """
        if self._counted and count >= self._counted:
            return False
        if self._seconds is None or played is None or self.fps is None:
            return bool(self._counted)
        tolerance = 0.5 / self.fps if self._counted else max(2.5 / self.fps, 0.02 * self._seconds)
        return played < self._seconds - tolerance

    def close(self) -> None:
        """Nothing is held open between passes."""


class PipedVideo:
    """A video that comes through a pipe: it is read once, from its start, every frame in turn."""

    def __init__(self, path: Path) -> None:
        """Waits for the first frame. Raises StreamError when none comes."""
        self.name = path.name
        self.live = False
        self.notice: str | None = None
        self.length: int | None = None
        self._where = str(path)
        self._container = open_file(path, PIPE)
        stream = video_stream(self._container, self._where)
        self.fps = frames_per_second(stream)
        self._rest = decode(self._container, stream, self._where)
        self._first: list[Frame] = []
        for frame in self._rest:
            self._first.append(frame)
            if frame.image is not None:
                self.size: tuple[int, int] | None = (frame.image.shape[1], frame.image.shape[0])
                return
        raise StreamError(f"{self._where} holds no frame that can be decoded: {PIPE}")

    def frames(self) -> Iterator[Frame]:
        """Every frame; raises StreamError when they were read already."""
        if not self._first:
            raise StreamError(f"{self._where} is a pipe and was read already: save it as a file to read it again")
        first, self._first = self._first, []
        return itertools.chain(first, self._rest)

    def close(self) -> None:
        """Lets go of the pipe."""
        self._container.close()


def open_file(path: Path, remedy: str = "is it a video file, and is it whole?") -> Any:
    """An open PyAV container; raises StreamError, which ends with the ``remedy``, for a file that is no video."""
    import av

    try:
        return av.open(str(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise StreamError(f"{path} cannot be opened as a video ({reason(error)}): {remedy}") from error


def reason(error: Exception) -> str:
    """What FFmpeg says, without the address (it may hold a password)."""
    return str(getattr(error, "strerror", None) or type(error).__name__)


def video_stream(container: Any, where: str) -> Any:
    """The container's first video stream that is no cover picture, raises StreamError when it has none."""
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not streams:
        raise StreamError(f"{where} holds no video (sound only, or cut off): give a whole video file")
    stream = min(streams, key=_may_be_cover)
    large = stream.codec_context.width * stream.codec_context.height > LARGE
    stream.thread_type = "FRAME" if large else "SLICE"
    stream.codec_context.thread_count = 2 if large else 1
    return stream


def _is_cover(stream: Any) -> bool:
    """A still picture of what the file holds, as music and films carry one."""
    return bool(int(getattr(stream, "disposition", 0)) & ATTACHED_PICTURE)


def _may_be_cover(stream: Any) -> bool:
    """A single frame, or of a picture's kind where the header counts none: the video, where there is another stream."""
    return bool(stream.frames == 1 or (not stream.frames and stream.codec_context.name in STILL))


def decode(container: Any, stream: Any, where: str) -> Iterator[Frame]:
    """Frames in order; a packet that does not decode is a frame without an image; a broken container ends.

    16-bit grey is shown in the range of the first frame, so that frames stay comparable.
    """
    import av

    packets = container.demux(stream)
    tones: Tones | None = None
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError):
            return
        if packet is None:
            return
        try:
            decoded = packet.decode()
        except (av.FFmpegError, ValueError):
            yield Frame(None)
            continue
        for frame in decoded:
            if tones is None:
                _check_raw(container, packet, frame, where)
            values = _values(frame)
            tones = tones or Tones.of(values)
            yield Frame(_upright(as_rgb(values, tones), frame), frame.time, damaged=frame.is_corrupt)


def _check_raw(container: Any, packet: Any, frame: Any, where: str) -> None:
    """Raises StreamError where uncompressed frames in NUT have another size than those of the format that it names.

    FFmpeg writes formats that NUT has no name for under that of another, and reads noise.
    """
    import av

    if container.format.name != "nut" or packet.stream.codec_context.name != "rawvideo":
        return
    raw: Any = av.CodecContext.create("rawvideo", "w")
    raw.width, raw.height, raw.pix_fmt, raw.time_base = frame.width, frame.height, frame.format.name, frame.time_base
    size = sum(part.size for part in raw.encode(frame))
    if packet.size != size:
        raise StreamError(
            f"{where} names {frame.format.name} for its pixels, but has frames of {packet.size} bytes, not {size}: "
            "it was written in a format that NUT cannot name: write it with -pix_fmt rgb24 or gray16le"
        )


def _values(frame: Any) -> npt.NDArray[Any]:
    """uint8 H×W×3 RGB, or uint16 H×W of sensors (thermal ones), which seldom use all values."""
    return np.asarray(frame.to_ndarray(format="gray16le" if frame.format.name.startswith("gray16") else "rgb24"))


def _upright(image: Image, frame: Any) -> Image:
    """An image turned the way the video's display matrix says (phones film sideways)."""
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


def frames_per_second(stream: Any) -> float | None:
    """The header's average rate, None when it is missing, zero or beyond belief."""
    for rate in (stream.average_rate, stream.guessed_rate):
        value = float(rate) if rate else 0.0
        if math.isfinite(value) and 0 < value <= FASTEST:
            return value
    return None


def _duration(container: Any, stream: Any) -> float | None:
    """Seconds that the header promises; the container's own only where nothing but the video can have set it."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if container.duration and len(container.streams) == 1:
        return float(container.duration) / 1_000_000
    return None


def _frames_in(seconds: float | None, fps: float | None) -> int | None:
    return None if seconds is None or fps is None else max(1, round(seconds * fps))
