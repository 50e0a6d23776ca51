"""From what the user names to the source that reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from streamdrop.errors import ConfigError, StreamError
from streamdrop.streams.arrays import Arrays, LabelledArrays
from streamdrop.streams.images import (
    PRINTF,
    SUFFIXES,
    ImageFiles,
    files_in_folder,
    files_of_glob,
    files_of_pattern,
    images_in,
)
from streamdrop.streams.live import NETWORK, open_address, open_camera
from streamdrop.streams.stream import Prepare, Source, Stream
from streamdrop.streams.video import PipedVideo, Video, open_file

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")

DEVICE = re.compile(r"/dev/video(\d+)")
"""A camera as Linux names it; links to it, as in /dev/v4l/by-id, keep their names whatever its number is."""


def open_stream(
    source: object, prepare: Prepare | None = None, batch_size: int = 64, *, verbose: bool = False
) -> Stream:
    """Opens a source as an iterable of Samples, or of Batches for labelled data.

    ``source``: a video file, or a pipe that one comes through (which can be read once); an image file (several frames
    where it is animated or has several pages); a folder of images (natural order); a printf pattern (``img_%05d.jpg``)
    or a glob; a camera's number (``0`` or ``"0"``) or device (``/dev/video0``); an rtsp:// or http(s):// address; a
    .npz file with ``images`` uint8 [N, H, W(, C)] and ``labels`` [N]; or any Python iterable of arrays, Samples or
    Batches.

    Images are uint8 H×W×3 RGB, upright. ``prepare`` turns one into what the model takes. ``batch_size`` is that of
    labelled data. ``verbose`` lets the decoders speak on stderr.

    Raises StreamError or DataError before anything is yielded when the source cannot be read, ConfigError for a
    batch size below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}: give 1 or more")
    decoder_messages(verbose)
    if isinstance(source, int) and not isinstance(source, bool):
        return Stream(open_camera(source), prepare)
    if isinstance(source, str | os.PathLike):
        return _open_named(os.fspath(source), prepare, batch_size)
    if isinstance(source, Iterable) and not isinstance(source, bytes | dict):
        return Stream(Arrays(source), prepare)
    raise StreamError(
        f"a {type(source).__name__} is no stream: give a path, an address, a camera's number or an iterable of images"
    )


def decoder_messages(on: bool) -> None:
    """Lets FFmpeg and OpenCV write their own remarks to stderr, or not."""
    import av.logging
    import cv2

    av.logging.set_level(av.logging.WARNING if on else None)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_WARNING if on else cv2.utils.logging.LOG_LEVEL_SILENT)


def _open_named(text: Any, prepare: Prepare | None, batch_size: int) -> Stream:
    if not isinstance(text, str):
        text = os.fsdecode(text)
    if not text.strip() or "\0" in text:
        raise StreamError(f"source {text!r} is no name: give a video, a folder, a pattern, a camera or an address")
    if text.isdecimal():
        return Stream(open_camera(int(text)), prepare)
    address = ADDRESS.match(text)
    if address and address.group(1).lower() == "file":
        text = text[address.end() :]
    elif address and address.group(1).lower() in NETWORK:
        return Stream(open_address(text), prepare)
    elif address:
        raise StreamError(f"{address.group(0)} is not supported: give one of {', '.join(NETWORK)}")
    camera = DEVICE.fullmatch(os.path.realpath(text))
    if camera:
        return Stream(open_camera(int(camera.group(1))), prepare)
    path = Path(text).expanduser()
    if path.suffix.lower() == ".npz" and path.is_file():
        _check_file(path)
        return Stream(LabelledArrays(path, prepare, batch_size))
    return Stream(_open_path(path), prepare)


def _open_path(path: Path) -> Source:
    if path.is_dir():
        return ImageFiles(files_in_folder(path), path.resolve().name)
    if not path.exists():
        return _open_pattern(path)
    if path.is_fifo():
        return PipedVideo(path)
    _check_file(path)
    if path.suffix.lower() in SUFFIXES - {".gif"}:
        return images_in(path)
    return Video(lambda: open_file(path), path.name, str(path))


def _open_pattern(path: Path) -> Source:
    if PRINTF.search(path.name):
        return ImageFiles(files_of_pattern(str(path)), path.resolve().parent.name)
    if any(sign in str(path) for sign in "*?["):
        return ImageFiles(files_of_glob(str(path)), path.resolve().parent.name)
    raise StreamError(f"{path} does not exist: check the path of the video, folder or pattern")


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise StreamError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    if empty:
        raise StreamError(f"{path} is empty (0 bytes): give a whole file")
