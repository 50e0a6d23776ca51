"""Files of several pictures, pipes, covers: sources that are videos, or are not, by what is in them."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image as pillow

import streamdrop as sd
from streamdrop.errors import StreamError
from streamdrop.testing.streams import make_frames

FRAMES = make_frames(5)


def images(path: Path) -> list[np.ndarray]:
    with sd.open_stream(path) as stream:
        return [sample.image for sample in stream]


def save_pictures(path: Path, **options: object) -> Path:
    first, *rest = [pillow.fromarray(frame) for frame in FRAMES]
    first.save(path, save_all=True, append_images=rest, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options", "fps"),
    [
        ("a.png", {"duration": 50}, 20),
        ("a.webp", {"duration": 50, "lossless": True}, 20),
        ("a.webp", {"duration": [20, 60, 40, 40, 40], "lossless": True}, 25),
        ("a.tiff", {}, None),
    ],
)
def test_every_picture_of_a_file_is_a_frame(
    name: str, options: dict[str, object], fps: float | None, tmp_path: Path
) -> None:
    path = save_pictures(tmp_path / name, **options)
    stream = sd.open_stream(path)
    assert (stream.length, stream.size, stream.fps) == (len(FRAMES), FRAMES[0].shape[1::-1], fps)
    for _ in range(2):
        assert [sample.image.tolist() for sample in stream] == [frame.tolist() for frame in FRAMES]
    assert [sample.index for sample in stream] == list(range(len(FRAMES)))


def test_sixteen_bit_pages_are_shown_in_the_range_of_the_first(tmp_path: Path) -> None:
    values = [np.arange(1000, 1000 + 48, dtype=np.uint16).reshape(6, 8) + 5 * number for number in range(3)]
    pages = [pillow.fromarray(each) for each in values]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    shown = images(tmp_path / "a.tif")
    np.testing.assert_array_equal(shown, [sample.image for sample in sd.open_stream(values)])


def test_a_page_that_does_not_decode_keeps_its_number(tmp_path: Path) -> None:
    path = save_pictures(tmp_path / "a.tiff", compression="tiff_deflate")
    with pillow.open(path) as file:
        file.seek(2)
        at, count = file.tag_v2[273][0], file.tag_v2[279][0]
    data = bytearray(path.read_bytes())
    data[at : at + count] = bytes(count)
    path.write_bytes(data)
    stream = sd.open_stream(path)
    assert [sample.index for sample in stream] == [0, 1, 3, 4]
    assert stream.skipped == 1


def test_a_photo_that_carries_another_is_one_picture(tmp_path: Path) -> None:
    first, second = (pillow.fromarray(frame) for frame in FRAMES[:2])
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert len(images(tmp_path / "a.jpg")) == 1


def as_mpeg(frames: list[np.ndarray]) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def piped(path: Path, data: bytes) -> threading.Thread:
    """A pipe that something writes into."""
    os.mkfifo(path)
    thread = threading.Thread(target=path.write_bytes, args=(data,))
    thread.start()
    return thread


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_read_once_every_frame_of_it(tmp_path: Path) -> None:
    writer = piped(tmp_path / "pipe", as_mpeg(FRAMES))
    with sd.open_stream(tmp_path / "pipe") as stream:
        assert (stream.size, stream.live) == (FRAMES[0].shape[1::-1], False)
        assert [sample.image.tolist() for sample in stream] == [frame.tolist() for frame in FRAMES]
        with pytest.raises(StreamError, match="pipe and was read already"):
            list(stream)
    writer.join()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_without_a_video_says_what_to_send(tmp_path: Path) -> None:
    writer = piped(tmp_path / "pipe", b"this is no video")
    with pytest.raises(StreamError, match=r"pipe cannot be opened as a video .*Matroska or MPEG-TS"):
        sd.open_stream(tmp_path / "pipe")
    writer.join()


def test_a_cover_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        cover, sound = container.add_stream("mjpeg", rate=1), container.add_stream("aac", rate=8000)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 200, np.uint8), format="rgb24")
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        tone.sample_rate = 8000
        for stream, frame in ((cover, picture), (sound, tone)):
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    with pytest.raises(StreamError, match="holds no video"):
        sd.open_stream(tmp_path / "song.mp4")
