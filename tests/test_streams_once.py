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


def two_tracks(path: Path, *, cover_first: bool, cover: str = "mjpeg") -> None:
    """A cover picture that no mark tells from a video, and a video."""
    with av.open(str(path), "w") as container:
        tracks = {}
        for kind in ("cover", "video") if cover_first else ("video", "cover"):
            tracks[kind] = container.add_stream(cover if kind == "cover" else "libx264", rate=10)
            tracks[kind].width, tracks[kind].height = (32, 32) if kind == "cover" else FRAMES[0].shape[1::-1]
            tracks[kind].pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}[cover] if kind == "cover" else "yuv420p"
        picture = np.full((32, 32, 3), 200, np.uint8)
        for kind, pictures in (("cover", [picture]), ("video", FRAMES)):
            for image in pictures:
                container.mux(tracks[kind].encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(tracks[kind].encode(None))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("cover_first", [True, False])
def test_a_cover_without_its_mark_is_not_taken_for_the_video(tmp_path: Path, name: str, cover_first: bool) -> None:
    two_tracks(tmp_path / name, cover_first=cover_first)
    with sd.open_stream(tmp_path / name) as stream:
        assert stream.size == FRAMES[0].shape[1::-1]
        assert len(list(stream)) == len(FRAMES)


def test_pictures_that_are_all_the_video_there_is_are_the_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        track = container.add_stream("mjpeg", rate=10)
        track.width, track.height, track.pix_fmt = 32, 32, "yuvj420p"
        for value in (10, 200):
            image = np.full((32, 32, 3), value, np.uint8)
            container.mux(track.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    assert len(images(tmp_path / "a.mkv")) == 2


def save_raw(path: Path, kind: str, image: np.ndarray) -> Path:
    with av.open(str(path), "w", format="nut") as container:
        track = container.add_stream("rawvideo", rate=10)
        track.height, track.width, track.pix_fmt = *image.shape[:2], kind
        for _ in range(2):
            container.mux(track.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=kind)))
    return path


CARD = np.full((45, 61, 3), 16, np.uint8)
CARD[10:30, 12:40] = 235


@pytest.mark.parametrize("kind", ["ya16le", "grayf32le", "p010le", "x2rgb10le", "yuv440p10le", "vuyx"])
def test_a_pixel_format_that_the_file_cannot_name_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(StreamError, match=r"a\.nut names .* bytes, not .*: write it with"):
        sd.open_stream(save_raw(tmp_path / "a.nut", kind, CARD))


@pytest.mark.parametrize("kind", ["rgb24", "monow", "monob", "gray", "gray16be", "ya8", "yuv420p", "nv12", "gbrpf32le"])
def test_pixel_formats_that_the_file_names_are_read(tmp_path: Path, kind: str) -> None:
    found = images(save_raw(tmp_path / "a.nut", kind, CARD))
    assert len(found) == 2
    inside, outside = found[0][15:25, 20:32], found[0][32:, 44:]
    assert inside.mean() - outside.mean() > 120


def test_a_device_is_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def open_camera(index: int) -> object:
        opened.append(index)
        raise StreamError("no camera here: connect one")

    monkeypatch.setattr("streamdrop.streams.sources.open_camera", open_camera)
    (tmp_path / "usb-camera").symlink_to("/dev/video12")
    for source in ("/dev/video0", Path("/dev/video3"), "file:///dev/video4", tmp_path / "usb-camera"):
        with pytest.raises(StreamError, match="no camera here"):
            sd.open_stream(source)
    assert opened == [0, 3, 4, 12]
    with pytest.raises(StreamError, match="does not exist"):
        sd.open_stream("/dev/video0.mp4")
