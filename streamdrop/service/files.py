"""The files that a stream leaves beside its events: boxes in formats that others read, annotated videos in parts."""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from streamdrop.boxes import mot_line
from streamdrop.errors import OutputError
from streamdrop.service.settings import OutputsConfig
from streamdrop.streams import VideoWriter, annotate
from streamdrop.types import Image, Track

log = logging.getLogger("streamdrop")

_OWN = re.compile(r"\d{8}-\d{6}(-\d+)?\.mp4(\.partial)?")
"""What a video of ``_unused``'s names is called until it is whole."""

NAMES = {"xywh": "boxes.txt", "mot": "boxes.mot.txt", "got10k": "boxes.got10k.txt"}


class OutputFiles:
    """Writes what ``config`` asks for into ``folder``. Raises OutputError; the other files are written all the same.

    Lines are appended: a restart goes on. A video that a killed process left, which no player opens, is removed.
    ``xywh``: ``frame,x,y,w,h,score,lost`` (0-based pixels, frame from 0); ``mot``: ``frame,id,x,y,w,h,score,-1,-1,-1``
    (1-based, as MOT challenge), none while lost; ``got10k``: ``x,y,w,h`` of every frame tracked. ``mot`` is one file
    for all targets; of the others each target but the first (id 1) has its own, ``boxes.2.txt`` and so on.
    """

    def __init__(self, config: OutputsConfig, folder: Path, fps: float | None) -> None:
        self._config, self._folder, self._fps = config, folder, fps
        self._lines: dict[str, IO[str]] = {}
        self._video: VideoWriter | None = None
        self._until = 0.0
        for kind in config.boxes:
            self._file(kind, 1)
        _remove_left(folder / "video")

    def add(self, number: int, image: Image, tracks: Mapping[int, Track], film: bool = True) -> None:
        """One tracked frame; ``film``: into the video too."""
        for kind in self._config.boxes:
            for key, track in tracks.items():
                file = self._file(kind, key)
                try:
                    file.write(box_line(kind, number, track, key))
                except OSError as error:
                    raise OutputError(f"{file.name}: cannot be written ({error.strerror}): free some space") from None
        if film and self._config.video_minutes:
            for key, track in tracks.items():
                name = str(key) if len(tracks) > 1 else ""
                image = annotate(image, track.box, track.score, track.lost, name=name)
            self._film(image)

    def _file(self, kind: str, key: int) -> IO[str]:
        """The open file of one format and target."""
        name = NAMES[kind] if key == 1 or kind == "mot" else NAMES[kind].replace(".txt", f".{key}.txt")
        if name not in self._lines:
            try:
                self._lines[name] = (self._folder / name).open("a", encoding="utf-8", buffering=1)
            except OSError as error:
                raise OutputError(f"{self._folder / name}: cannot be written ({error.strerror}): free it") from None
        return self._lines[name]

    def _film(self, image: Image) -> None:
        if self._video is not None and time.monotonic() > self._until:
            self._finish()
        if self._video is None:
            videos = self._folder / "video"
            videos.mkdir(exist_ok=True)
            there = sorted(path for path in videos.glob("*.mp4") if _OWN.fullmatch(path.name))
            for old in there[: max(0, len(there) + 1 - self._config.videos)]:  # the new one counts
                old.unlink(missing_ok=True)
            self._video = VideoWriter(_unused(videos), self._fps, (image.shape[1], image.shape[0]))
            self._until = time.monotonic() + 60 * self._config.video_minutes
        try:
            self._video.write(image)
        except OutputError:
            self._video = None  # another one may fit again
            raise

    def _finish(self) -> None:
        video, self._video = self._video, None
        if video is not None:
            video.close()

    def close(self) -> None:
        """Finish the files. Twice is fine."""
        for file in self._lines.values():
            file.close()
        self._lines = {}
        self._finish()


def _remove_left(folder: Path) -> None:
    for path in sorted(folder.glob("*.partial")):
        if _OWN.fullmatch(path.name):
            path.unlink(missing_ok=True)
            log.warning("%s: removed: the process that wrote it was killed, and it lacks its index", path)


def _unused(folder: Path) -> Path:
    """A name by the time of day that no video has yet: clocks are set back."""
    name = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    ends = itertools.chain([""], (f"-{number}" for number in itertools.count(1)))
    return next(path for end in ends if not (path := folder / f"{name}{end}.mp4").exists())


def box_line(kind: str, number: int, track: Track, target: int = 1) -> str:
    """One target's line of a frame in the format ``kind``; empty where the format leaves lost frames out."""
    x, y, w, h = (round(float(value), 3) for value in track.box)
    if kind == "xywh":
        return f"{number},{x},{y},{w},{h},{track.score:.4f},{int(track.lost)}\n"
    if kind == "mot":
        return "" if track.lost else f"{mot_line(number, target, track.box, track.score)}\n"
    return f"{x},{y},{w},{h}\n"
