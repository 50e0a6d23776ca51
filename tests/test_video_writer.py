"""Videos out: they play, they are whole or not there, and say why not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamdrop as sd
from streamdrop.errors import OutputError
from streamdrop.streams import VideoWriter, annotate
from streamdrop.testing.streams import make_frames


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "h264"), (".mov", "h264"), (".mkv", "h264"), (".webm", "vp8")])
def test_what_browsers_play(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"out{suffix}"
    with VideoWriter(path, 30, (64, 48)) as writer:
        for frame in make_frames(5):
            writer.write(frame)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == (codec, "yuv420p")
    if suffix == ".mp4":
        data = path.read_bytes()
        assert data.index(b"moov") < data.index(b"mdat"), "not made to start before it is loaded whole"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("size", [(63, 47), (64, 47), (1, 1), (17, 300)])
def test_odd_sizes_gain_a_row_or_column(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = make_frames(3, (max(size[0], 13), max(size[1], 60)))
    frames = [frame[: size[1], : size[0]] for frame in frames]
    with VideoWriter(tmp_path / "a.mp4", 25, size) as writer:
        for frame in frames:
            writer.write(frame)
    images = [s.image for s in sd.open_stream(tmp_path / "a.mp4")]
    assert len(images) == 3
    assert images[0].shape == (size[1] + size[1] % 2, size[0] + size[0] % 2, 3)
    assert np.abs(images[0][: size[1], : size[0]].astype(float) - frames[0]).mean() < 16


@pytest.mark.parametrize(
    ("fps", "read"), [(25, 25), (29.97, 30000 / 1001), (23.976, 24000 / 1001), (12.5, 12.5), (None, 25), (0, 25)]
)
def test_rates(tmp_path: Path, fps: float | None, read: float) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps, (16, 16)) as writer:
        for _ in range(4):
            writer.write(np.zeros((16, 16, 3), np.uint8))
    assert sd.open_stream(tmp_path / "a.mp4").fps == pytest.approx(read, rel=1e-4)


def test_frames_of_another_size_are_scaled(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 25, (64, 48)) as writer:
        writer.write(make_frames(1)[0])
        writer.write(make_frames(1, (128, 96))[0])
    assert [s.image.shape for s in sd.open_stream(tmp_path / "a.mp4")] == [(48, 64, 3)] * 2


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"what was there before")
    writer = VideoWriter(path, 25, (64, 48))
    writer.write(make_frames(1)[0])
    assert path.read_bytes() == b"what was there before"
    writer.close()
    writer.close()
    assert len(list(sd.open_stream(path))) == 1
    with pytest.raises(OutputError, match="closed"):
        writer.write(make_frames(1)[0])


def test_without_a_frame_there_is_no_file(tmp_path: Path) -> None:
    VideoWriter(tmp_path / "a.mp4", 25, (64, 48)).close()
    assert os.listdir(tmp_path) == []


class Interrupted(Exception):
    """As Ctrl-C raises it, wherever the program is."""


def test_however_often_it_is_interrupted_every_frame_is_there(tmp_path: Path) -> None:
    writing = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal writing
        if writing:
            writing = False
            raise Interrupted

    before, interruptions = signal.signal(signal.SIGALRM, interrupt), 0
    with VideoWriter(tmp_path / "a.mp4", 25, (64, 48)) as writer:
        try:
            for number, frame in enumerate(make_frames(20) * 15):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0001 * 1.5 ** (number % 20))  # some come too late to matter
                    writing = True
                    writer.write(frame)
                except Interrupted:
                    interruptions += 1
                writing = False
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    stream = sd.open_stream(tmp_path / "a.mp4")
    assert len(list(stream)) == writer.frames >= 300 - interruptions
    assert not stream.truncated


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_it_is_valid_killed_it_is_not_there(tmp_path: Path, how: signal.Signals) -> None:
    program = textwrap.dedent(
        f"""
        from streamdrop.streams import VideoWriter
        from streamdrop.testing.streams import make_frames
        with VideoWriter({str(tmp_path / "a.mp4")!r}, 25, (64, 48)) as writer:
            for i, frame in enumerate(make_frames(20) * 5000):
                writer.write(frame)
                if i == 50:
                    print("going", flush=True)
        """
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    assert child.stdout.readline() == b"going\n"
    child.send_signal(how)
    child.communicate(timeout=250)
    if how == signal.SIGINT:
        stream = sd.open_stream(tmp_path / "a.mp4")
        assert len(list(stream)) >= 51
        assert not stream.truncated
    else:
        assert os.listdir(tmp_path) == ["a.mp4.partial"]


def test_words_do_not_hide_a_small_frame() -> None:
    image = np.full((32, 48, 3), 90, np.uint8)
    drawn = annotate(image, (10, 8, 16, 12), 0.9, False, "round 3  cut 4")
    assert (drawn[:5] == 90).all()
    assert (drawn[23:] == 90).all()
    assert (drawn[8:20, 10:26] != 90).any()
    large = np.full((480, 640, 3), 90, np.uint8)
    assert (annotate(large, (100, 100, 90, 90), 0.9, False, "round 3")[-8:] != 90).any()


@pytest.mark.parametrize("name", ["a.txt", "a", "a.mp5", "a.gif"])
def test_unknown_formats_name_the_known(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"\.mp4.*\.webm"):
        VideoWriter(tmp_path / name, 25, (64, 48))


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    for path in (tmp_path / "nowhere" / "a.mp4", tmp_path / "file" / "a.mp4", tmp_path / "folder.mp4"):
        with pytest.raises(OutputError, match=r"\.mp4") as caught:
            VideoWriter(path, 25, (64, 48))
        assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match="0x48"):
        VideoWriter(tmp_path / "a.mp4", 25, (0, 48))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full: /dev/full (Linux)")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.mkv.partial").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="full"):  # noqa: PT012 - it may show at any of these
        writer = VideoWriter(tmp_path / "a.mkv", 25, (64, 48))
        for frame in make_frames(300):
            writer.write(frame)
        writer.close()
    assert not (tmp_path / "a.mkv").exists()


# drawing


def test_a_track_is_drawn_into_a_copy() -> None:
    image = make_frames(1, (160, 120))[0]
    before = image.copy()
    drawn = annotate(image, (40, 30, 50, 40), 0.9, False, "round 3")
    assert (image == before).all()
    assert drawn.shape == image.shape
    assert (drawn[34:66, 45:85] == image[34:66, 45:85]).mean() > 0.95, "the target stays visible"
    green, red = drawn[30, 60], annotate(image, (40, 30, 50, 40), 0.9, True)[30, 43]
    assert green[1] > green[0]
    assert red[0] > red[1]


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*[st.floats(-1e6, 1e6) | st.just(float("nan"))] * 4),
    st.floats(0, 1) | st.just(float("nan")),
    st.booleans(),
)
def test_any_box_can_be_drawn(box: tuple[float, ...], score: float, lost: bool) -> None:
    image = make_frames(1, (40, 30))[0]
    assert annotate(image, box, score, lost, "a long line of text that does not fit").shape == image.shape
