"""For streams: makers of whole and broken sources, and a check of what every stream promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from streamdrop.errors import StreamError
from streamdrop.streams import Stream, VideoWriter
from streamdrop.types import Batch, Image


def make_frames(n: int = 12, size: tuple[int, int] = (64, 48)) -> list[Image]:
    """``n`` frames of (width, height), uint8 RGB: a light block moves to the right over a slope from red to blue."""
    width, height = size
    slope = np.linspace(0, 1, width)[None, :, None]
    ground = np.broadcast_to((1 - slope) * (180, 40, 30) + slope * (30, 60, 190), (height, width, 3))
    frames = []
    for i in range(n):
        frame = ground.astype(np.uint8)
        x = i * (width - 12) // max(1, n - 1)
        frame[height // 4 : height // 4 + 12, x : x + 12] = (235, 230, 120)
        frames.append(frame)
    return frames


def make_video(path: Path, n: int = 12, size: tuple[int, int] = (64, 48), fps: float = 25.0) -> list[Image]:
    """Writes ``make_frames`` as a video, nearly without loss; returns the frames."""
    frames = make_frames(n, size)
    options = {"crf": "10", "g": "4", "bf": "0"} if path.suffix in (".mp4", ".mov", ".mkv") else {}
    with VideoWriter(path, fps, size, options=options) as writer:
        for frame in frames:
            writer.write(frame)
    return frames


def make_folder(
    folder: Path, n: int = 12, size: tuple[int, int] = (64, 48), pattern: str = "img_%05d.png"
) -> list[Image]:
    """Writes ``make_frames`` as image files numbered from 1; returns the frames."""
    from PIL import Image as pillow

    folder.mkdir(parents=True, exist_ok=True)
    frames = make_frames(n, size)
    for i, frame in enumerate(frames, start=1):
        pillow.fromarray(frame).save(folder / (pattern % i))
    return frames


def cut_short(path: Path, share: float = 0.5) -> Path:
    """Leaves only the first ``share`` of a file's bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def damage(path: Path, start: float = 0.6, stop: float = 0.7, seed: int = 0) -> Path:
    """Overwrites the bytes between two shares of a file with noise."""
    data = bytearray(path.read_bytes())
    low, high = int(len(data) * start), int(len(data) * stop)
    data[low:high] = np.random.default_rng(seed).bytes(high - low)
    path.write_bytes(data)
    return path


def turn_sideways(path: Path) -> Path:
    """Tells players of an .mp4 to turn it a quarter clockwise, as phones do: the matrix in its track header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    quarter = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in quarter)
    path.write_bytes(data)
    return path


def check_stream(open_: Callable[[], Stream], frames: int | None = None, *, replays: bool = True) -> None:
    """Raises AssertionError where a stream breaks its promises.

    ``open_`` opens a fresh stream; ``frames`` is how many samples (or labelled images) it must yield; ``replays`` says
    that a second pass yields the same.
    """
    with open_() as stream:
        _check_attributes(stream)
        first = list(stream)
        _check_items(first, stream)
        if frames is not None:
            count = sum(len(item) if isinstance(item, Batch) else 1 for item in first)
            assert count == frames, f"{count} frames instead of {frames}"
        if replays:
            skipped = stream.skipped
            second = list(stream)
            assert _keys(second) == _keys(first), "a second pass yields other keys"
            assert stream.skipped == skipped, "a second pass counts other frames as skipped"
    stream.close()  # idempotent
    try:
        iter(stream)
    except StreamError:
        return
    raise AssertionError("a closed stream can be iterated")


def _check_attributes(stream: Stream) -> None:
    assert stream.fps is None or stream.fps > 0, f"fps {stream.fps} is neither None nor positive"
    assert stream.size is None or (min(stream.size) > 0 and len(stream.size) == 2), f"size {stream.size}"
    assert stream.length is None or stream.length > 0, f"length {stream.length} is neither None nor positive"
    assert stream.name, "a stream without a name"
    assert (stream.skipped, stream.dropped) == (0, 0), "frames are counted before the first was read"
    assert isinstance(stream.live, bool)


def _check_items(items: list[Any], stream: Stream) -> None:
    keys = _keys(items)
    assert keys == sorted(set(keys)), "keys are not in ascending order, or not unique"
    samples = [item for item in items if not isinstance(item, Batch)]
    if samples:
        indices = [sample.index for sample in samples]
        assert indices == sorted(set(indices)), "indices do not ascend"
        height, width, channels = samples[0].image.shape
        assert channels == 3, f"{channels} channels, not RGB"
        assert stream.size in (None, (width, height)), f"size is {stream.size}, the first frame {width}x{height}"
        assert all(sample.image.dtype == np.uint8 for sample in samples), "images are not uint8"
        assert all(sample.image.flags.c_contiguous for sample in samples), "images are not contiguous"


def _keys(items: list[Any]) -> list[bytes]:
    return [key for item in items for key in (item.keys if isinstance(item, Batch) else [item.key])]
