"""Videos that browsers play: H.264 in .mp4, .mov and .mkv, VP8 in .webm; MPEG-4 in .avi."""

from __future__ import annotations

import contextlib
import math
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from streamdrop.errors import OutputError
from streamdrop.interrupts import held
from streamdrop.pixels import as_rgb
from streamdrop.types import Image

DEFAULT_FPS = 25.0


class Format(NamedTuple):
    """How one kind of file is written: container, its options, codec, its options."""

    container: str
    container_options: dict[str, str]
    codec: str
    codec_options: dict[str, str]


_H264 = {"preset": "superfast", "crf": "23"}
FORMATS = {
    ".mp4": Format("mp4", {"movflags": "+faststart"}, "libx264", _H264),
    ".mov": Format("mov", {"movflags": "+faststart"}, "libx264", _H264),
    ".mkv": Format("matroska", {}, "libx264", _H264),
    ".webm": Format("webm", {}, "libvpx", {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "4M"}),
    ".avi": Format("avi", {}, "mpeg4", {"qscale": "4", "flags": "+qscale", "global_quality": "472"}),
}


class VideoWriter:
    """Writes uint8 RGB frames; the file appears under its name when it is whole, at ``close``.

    Until then it grows beside it as NAME.partial, so what a killed process leaves never looks like a result.
    ``close`` in a ``finally`` (or a ``with``) after an interruption keeps every frame written so far.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float | None,
        size: tuple[int, int],
        *,
        threads: int = 1,
        options: dict[str, str] | None = None,
    ) -> None:
        """``fps`` None or not positive: 25. ``size``: (width, height); odd sizes gain a row or column (4:2:0 needs it).
        ``options`` go to the encoder over the format's own, such as ``{"crf": "18"}``.

        Raises OutputError for a suffix that is no video's, and for a folder that cannot be written.
        """
        self.path = Path(path)
        self.frames = 0
        self.size = size
        self._format = _format_of(self.path)
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._container: Any = None
        if size[0] < 1 or size[1] < 1:
            raise OutputError(f"{self.path}: a video of {size[0]}x{size[1]} pixels cannot be written")
        if self.path.is_dir():
            raise OutputError(f"{self.path} is a folder: give the name of a video file")
        self._rate = _rate(fps)
        self._open(threads, options or {})

    def _open(self, threads: int, options: dict[str, str]) -> None:
        import av

        try:
            self._partial.touch()  # FFmpeg would find out only at the first frame
            self._container = av.open(
                str(self._partial), "w", format=self._format.container, options=self._format.container_options
            )
        except OSError as error:
            self._remove_partial()
            raise OutputError(f"{self.path} cannot be written ({error.strerror}): check the folder") from error
        codec, options = self._format.codec, {**self._format.codec_options, **options}
        self._stream = self._container.add_stream(codec, rate=self._rate, options=options)
        self._stream.width, self._stream.height = (side + side % 2 for side in self.size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.thread_count = threads

    def write(self, image: Image) -> None:
        """Appends a frame; one of another size is scaled to the video's. Raises OutputError when the disk is full."""
        import av

        if self._container is None:
            raise OutputError(f"{self.path} is closed: open a new VideoWriter")
        frame = av.VideoFrame.from_ndarray(_fitted(as_rgb(image, what="frame"), self.size), format="rgb24")
        with held():  # a packet lost between encoder and file would cost the frames that build on it
            self._append(frame)

    def _append(self, frame: Any) -> None:
        frame.pts = self.frames
        frame.time_base = 1 / self._rate
        self._encode(frame)
        self.frames += 1

    def _encode(self, frame: Any) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except OSError as error:
            self._abandon()
            raise OutputError(f"{self.path} cannot be written ({error.strerror}): is the disk full?") from error

    def close(self) -> None:
        """Finishes the file and puts it in place; without a frame there is none. Idempotent. Raises OutputError."""
        with held():
            if self._container is not None:
                self._finish()

    def _finish(self) -> None:
        if not self.frames:
            self._abandon()
            return
        self._encode(None)
        container, self._container = self._container, None
        try:
            container.close()
            os.replace(self._partial, self.path)
        except OSError as error:
            self._remove_partial()
            raise OutputError(f"{self.path} cannot be finished ({error.strerror}): is the disk full?") from error

    def _abandon(self) -> None:
        container, self._container = self._container, None
        with contextlib.suppress(OSError):  # already reported, or nothing worth keeping
            container.close()
        self._remove_partial()

    def _remove_partial(self) -> None:
        with contextlib.suppress(OSError):  # its name says what it is
            self._partial.unlink()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _format_of(path: Path) -> Format:
    if path.suffix.lower() not in FORMATS:
        given = f"ending {path.suffix}" if path.suffix else "a name without an ending"
        raise OutputError(f"{path}: no video format for {given}: use one of {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def _rate(fps: float | None) -> Fraction:
    """A rate with a denominator that every container holds: 29.97 becomes 30000/1001."""
    if fps is None or not math.isfinite(fps) or fps <= 0:
        fps = DEFAULT_FPS
    for exact in (Fraction(round(fps)), Fraction(round(fps * 1.001) * 1000, 1001)):
        if abs(float(exact) - fps) < 1e-3 and exact > 0:
            return exact
    return Fraction(fps).limit_denominator(1000) or Fraction(1, 1000)


def _fitted(image: Image, size: tuple[int, int]) -> Image:
    import cv2

    width, height = size
    if image.shape[:2] != (height, width):
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    if width % 2 or height % 2:
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(image)
