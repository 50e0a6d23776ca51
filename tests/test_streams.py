"""Sources that can be read: what comes out of each, and what every stream promises."""

from __future__ import annotations

import shutil
import socket
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as pillow

import streamdrop as sd
from streamdrop.errors import ConfigError, DataError, StreamError
from streamdrop.pixels import Tones, as_rgb
from streamdrop.streams import Stream, sample_key
from streamdrop.streams.live import Live, without_secrets
from streamdrop.testing.streams import (
    check_stream,
    cut_short,
    damage,
    make_folder,
    make_frames,
    make_video,
    turn_sideways,
)


def far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


# video


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi"])
def test_a_video_comes_back_frame_by_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    frames = make_video(path, 12)
    check_stream(lambda: sd.open_stream(path), 12)
    stream = sd.open_stream(str(path))
    samples = list(stream)
    assert (stream.fps, stream.size, stream.length, stream.live) == (25.0, (64, 48), 12, False)
    assert (stream.skipped, stream.truncated, stream.notice, stream.name) == (0, False, None, f"clip{suffix}")
    assert all(far(s.image, f) < 14 for s, f in zip(samples, frames, strict=True))  # chroma is halved
    assert far(samples[0].image[..., ::-1], frames[0]) > 30, "BGR"
    assert [s.index for s in samples] == list(range(12))
    assert samples[3].seconds == pytest.approx(3 / 25, abs=0.002)


def test_a_phone_video_stands_upright(tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    frames = make_video(path, 3)
    stream = sd.open_stream(turn_sideways(path))
    assert stream.size == (48, 64)
    assert far(next(iter(stream)).image, np.rot90(frames[0], -1)) < 14


def test_a_video_cut_short_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "short.mp4"
    make_video(path, 40)
    stream = sd.open_stream(cut_short(path, 0.7))
    count = len(list(stream))
    assert 5 < count < 40
    assert stream.truncated
    assert "header says 40 frames" in (stream.notice or "")
    assert str(path) in (stream.notice or "")
    check_stream(lambda: sd.open_stream(path), count)


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".avi"])
def test_other_containers_cut_short_are_noticed_too(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"short{suffix}"
    make_video(path, 60)
    stream = sd.open_stream(cut_short(path, 0.6))
    assert 0 < len(list(stream)) < 60
    assert stream.truncated


def test_a_damaged_middle_is_survived_and_the_rest_read(tmp_path: Path) -> None:
    path = tmp_path / "holes.mp4"
    make_video(path, 60)
    stream = sd.open_stream(damage(path, 0.6, 0.75))
    samples = list(stream)
    assert len(samples) + stream.skipped >= 55
    assert len(samples) >= 30


def test_decoders_stay_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_video(tmp_path / "a.mp4", 30)
    list(sd.open_stream(cut_short(tmp_path / "a.mp4", 0.7)))
    make_video(tmp_path / "b.mp4", 30)
    list(sd.open_stream(damage(tmp_path / "b.mp4")))
    make_folder(tmp_path / "c", 4, pattern="%d.jpg")
    make_folder(tmp_path / "c", 4, pattern="%d.png")
    for path in (tmp_path / "c").glob("2.*"):
        cut_short(path)
    for path in (tmp_path / "c").glob("3.*"):
        damage(path)
    list(sd.open_stream(tmp_path / "c"))
    with pytest.raises(StreamError):
        sd.open_stream("99")
    assert capfd.readouterr() == ("", "")


def test_a_change_of_size_in_mid_video_does_not_end_it(tmp_path: Path) -> None:
    path = tmp_path / "two.ts"
    parts = []
    for i, size in enumerate(((64, 48), (96, 64))):
        make_video(tmp_path / f"{i}.mp4", 4, size)
        with av.open(str(tmp_path / f"{i}.mp4")) as source, av.open(str(tmp_path / f"{i}.h264"), "w", "h264") as out:
            stream = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
        parts.append((tmp_path / f"{i}.h264").read_bytes())
    path.with_suffix(".h264").write_bytes(b"".join(parts))
    shapes = {sample.image.shape for sample in sd.open_stream(path.with_suffix(".h264"))}
    assert shapes == {(48, 64, 3), (64, 96, 3)}


def test_two_passes_may_run_at_once(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 5)
    stream = sd.open_stream(tmp_path / "a.mp4")
    assert all(a.key == b.key and (a.image == b.image).all() for a, b in zip(stream, stream, strict=True))


# images


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    frames = make_folder(tmp_path / "shots", 12, pattern="img%d.png")
    (tmp_path / "shots" / "notes.txt").write_text("not an image")
    (tmp_path / "shots" / ".hidden.png").write_bytes(b"")
    check_stream(lambda: sd.open_stream(tmp_path / "shots"), 12)
    stream = sd.open_stream(tmp_path / "shots")
    assert (stream.name, stream.size, stream.length, stream.fps) == ("shots", (64, 48), 12, None)
    assert all((s.image == f).all() for s, f in zip(stream, frames, strict=True))


def test_a_printf_pattern_starts_where_the_numbers_start(tmp_path: Path) -> None:
    frames = make_folder(tmp_path, 12, pattern="img_%05d.png")
    make_folder(tmp_path, 3, pattern="other_%05d.png")
    for i in (1, 2):
        (tmp_path / f"img_{i:05d}.png").unlink()
    samples = list(sd.open_stream(str(tmp_path / "img_%05d.png")))
    assert [s.index for s in samples] == list(range(10))
    assert (samples[0].image == frames[2]).all()


def test_a_glob_and_a_single_image(tmp_path: Path) -> None:
    frames = make_folder(tmp_path, 11, pattern="%d.bmp")
    samples = list(sd.open_stream(str(tmp_path / "*.bmp")))
    assert all((s.image == f).all() for s, f in zip(samples, frames, strict=True))
    check_stream(lambda: sd.open_stream(tmp_path / "3.bmp"), 1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "ppm"])
def test_image_formats(tmp_path: Path, suffix: str) -> None:
    frames = make_folder(tmp_path / "x", 2, pattern=f"%d.{suffix}")
    assert far(next(iter(sd.open_stream(tmp_path / "x"))).image, frames[0]) < 12


def test_grey_alpha_and_palette_become_rgb(tmp_path: Path) -> None:
    frame = make_frames(1)[0]
    picture = pillow.fromarray(frame)
    grey = np.asarray(picture.convert("L"))
    picture.convert("L").save(tmp_path / "1.png")
    picture.convert("RGBA").save(tmp_path / "2.png")
    picture.convert("P").save(tmp_path / "3.png")
    images = [s.image for s in sd.open_stream(tmp_path)]
    assert all(image.shape == (48, 64, 3) and image.dtype == np.uint8 for image in images)
    assert (images[1] == frame).all()
    assert (images[0] == grey[..., None]).all()


def thermal_frames(count: int) -> list[np.ndarray]:
    """Frames as a thermal sensor gives them: 16 bits of which few values are used, the later ones warmer."""
    grey = [np.asarray(pillow.fromarray(frame).convert("L"), np.uint16) for frame in make_frames(count)]
    return [7000 + image * 3 + 20 * number for number, image in enumerate(grey)]


def lossless_video(path: Path, frames: list[np.ndarray]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "gray16le"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray16le")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("kind", ["png", "tif", "video", "arrays", "generator"])
def test_sixteen_bits_are_shown_in_the_first_frames_range(tmp_path: Path, kind: str) -> None:
    frames = thermal_frames(3)
    source: object = tmp_path
    if kind in ("png", "tif"):
        for number, frame in enumerate(frames):
            pillow.fromarray(frame).save(tmp_path / f"{number}.{kind}")
    elif kind == "video":
        source = lossless_video(tmp_path / "thermal.mkv", frames)
    else:
        source = frames if kind == "arrays" else iter(frames)
    shown = [sample.image for sample in sd.open_stream(source)]
    tones = Tones.of(frames[0])
    assert all((image == as_rgb(frame, tones)).all() for image, frame in zip(shown, frames, strict=True))
    assert np.ptp(shown[0]) > 100  # high bytes alone would leave three values
    assert shown[2].mean() > shown[0].mean() + 5


def test_a_link_to_a_frame_that_is_gone_keeps_its_number(tmp_path: Path) -> None:
    make_folder(tmp_path, 4, pattern="%d.png")
    (tmp_path / "2.png").unlink()
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    stream = sd.open_stream(tmp_path)
    numbers = [sample.index for sample in stream]
    assert len(numbers) == 3
    assert (stream.skipped, stream.seen) == (1, 4)
    assert numbers == [i for i, path in enumerate(sorted(tmp_path.iterdir())) if path.exists()]


def test_frames_that_the_decoder_made_up_in_part_are_told(tmp_path: Path) -> None:
    clip = Path(__file__).parent.parent / "data_samples" / "clip.mp4"
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packet = next(packet for packet in container.demux(video=0) if packet.size)
    middle = packet.pos + packet.size // 3
    data[middle : middle + 60] = np.random.default_rng(0).bytes(60)
    (tmp_path / "b.mp4").write_bytes(data)
    stream = sd.open_stream(tmp_path / "b.mp4")
    assert len(list(stream)) == stream.length
    assert stream.damaged == 1
    assert "1 frame(s) are damaged" in (stream.notice or "")
    whole = sd.open_stream(clip)
    list(whole)
    assert (whole.damaged, whole.notice) == (0, None)


def test_exif_orientation_is_obeyed(tmp_path: Path) -> None:
    picture = pillow.fromarray(make_frames(1)[0])
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "phone.png", exif=exif)
    stream = sd.open_stream(tmp_path)
    assert stream.size == (48, 64)
    assert (next(iter(stream)).image == np.rot90(make_frames(1)[0], -1)).all()


def test_an_unreadable_image_is_skipped_counted_and_keeps_its_number(tmp_path: Path) -> None:
    make_folder(tmp_path, 6, pattern="%d.jpg")
    cut_short(tmp_path / "2.jpg")
    (tmp_path / "4.jpg").write_text("text")
    (tmp_path / "5.jpg").write_bytes(b"")
    stream = sd.open_stream(tmp_path)
    assert [s.index for s in stream] == [0, 2, 5]
    assert stream.skipped == 3
    assert "3 frame(s)" in (stream.notice or "")
    assert not stream.truncated
    check_stream(lambda: sd.open_stream(tmp_path), 3)


# arrays


def test_any_iterable_of_arrays_is_a_stream() -> None:
    frames = make_frames(4)
    check_stream(lambda: sd.open_stream(frames), 4)
    check_stream(lambda: sd.open_stream(np.stack(frames)), 4)
    check_stream(lambda: sd.open_stream(iter(frames)), 4, replays=False)
    assert sd.open_stream(frames).size == (64, 48)
    assert all((s.image == f).all() for s, f in zip(sd.open_stream(frames), frames, strict=True))


def test_an_iterator_that_was_read_says_so() -> None:
    stream = sd.open_stream(frame for frame in make_frames(2))
    assert len(list(stream)) == 2
    with pytest.raises(StreamError, match="already read"):
        list(stream)


def test_samples_and_batches_pass_through() -> None:
    samples = [sd.Sample(b"a", make_frames(1)[0], 7), sd.Sample(b"b", make_frames(1)[0], 9)]
    assert list(sd.open_stream(samples)) == samples
    batch = sd.Batch([b"k"], torch.zeros(1, 3, 4, 4), torch.zeros(1))
    assert list(sd.open_stream([batch])) == [batch]


def test_prepare_makes_what_the_model_takes(tmp_path: Path) -> None:
    def prepare(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image).permute(2, 0, 1).float()

    images = [s.image for s in sd.open_stream(make_frames(2), prepare=prepare)]
    assert [tuple(image.shape) for image in images] == [(3, 48, 64)] * 2
    sample = sd.Sample(b"a", make_frames(1)[0], 7)
    assert next(iter(sd.open_stream([sample], prepare=prepare))).image.shape == (3, 48, 64)


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        ("a string", "str"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_image_is_named(bad: object, word: str) -> None:
    with pytest.raises(DataError, match=f"frame 0 .*{word}"):
        sd.open_stream([bad])
    with pytest.raises(DataError, match=f"frame 1 .*{word}"):
        list(sd.open_stream([make_frames(1)[0], bad]))


def test_as_rgb() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert (as_rgb(grey) == as_rgb(grey[..., None])).all()
    assert as_rgb(grey.astype(np.uint16) * 257).tolist() == as_rgb(grey).tolist()
    assert as_rgb(torch.zeros(3, 4, 3, dtype=torch.uint8)).shape == (3, 4, 3)
    assert as_rgb(np.zeros((3, 4, 4), np.uint8)).shape == (3, 4, 3)


# labelled arrays


def write_npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_a_labelled_file_becomes_batches(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)
    path = write_npz(tmp_path / "data.npz", images=images, labels=np.arange(10, dtype=np.uint8))
    check_stream(lambda: sd.open_stream(path, batch_size=4), 10)
    stream = sd.open_stream(path, batch_size=4)
    batches = list(stream)
    assert (stream.length, stream.size, stream.name) == (10, (5, 6), "data.npz")
    assert [len(b) for b in batches] == [4, 4, 2]
    assert batches[0].images.dtype == torch.float32
    assert torch.equal(batches[1].targets, torch.arange(4, 8))
    back = torch.cat([b.images for b in batches]).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    assert (back == images).all()


def test_grey_labelled_images_keep_one_channel_and_prepare_sees_each_image(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "d.npz", images=np.zeros((3, 6, 5), np.uint8), labels=np.zeros((3, 2)))
    batch = next(iter(sd.open_stream(path)))
    assert batch.images.shape == (3, 1, 6, 5)
    assert (batch.targets.shape, batch.targets.dtype) == ((3, 2), torch.float32)
    seen: list[tuple[int, ...]] = []

    def prepare(image: np.ndarray) -> torch.Tensor:
        seen.append(image.shape)
        return torch.ones(1, 2, 2)

    assert next(iter(sd.open_stream(path, prepare=prepare))).images.shape == (3, 1, 2, 2)
    assert seen == [(6, 5, 1)] * 3


IMAGES = np.zeros((3, 6, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"x": IMAGES, "y": np.zeros(3)}, "no array images and no labels"),
        ({"images": IMAGES}, "no array labels"),
        ({"images": IMAGES.astype(float), "labels": np.zeros(3)}, "float64"),
        ({"images": IMAGES[0, 0], "labels": np.zeros(5)}, "shape"),
        ({"images": np.zeros((3, 6, 5, 7), np.uint8), "labels": np.zeros(3)}, "shape"),
        ({"images": IMAGES[:0], "labels": np.zeros(0)}, "at least one"),
        ({"images": IMAGES, "labels": np.zeros(4)}, "one label per image"),
        ({"images": IMAGES, "labels": np.int64(4)}, "one label per image"),
        ({"images": IMAGES, "labels": np.array([1, 2, np.nan])}, "finite"),
        ({"images": IMAGES, "labels": np.array(["a", "b", "c"])}, "integers"),
        ({"images": IMAGES, "labels": np.array([{}, None, 1], dtype=object)}, "Python objects"),
    ],
)
def test_labelled_files_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], word: str) -> None:
    path = write_npz(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=word) as caught:
        sd.open_stream(path)
    assert str(path) in str(caught.value)


def test_damaged_npz(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "bad.npz", images=IMAGES, labels=np.zeros(3))
    whole = path.read_bytes()
    for text in (b"not a zip", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(text)
        with pytest.raises(StreamError, match=r"bad\.npz"):
            sd.open_stream(path)
    np.save(tmp_path / "single.npy", IMAGES)
    shutil.copy(tmp_path / "single.npy", path)
    with pytest.raises(StreamError, match=r"bad\.npz"):
        sd.open_stream(path)


# sources that cannot be read


def bad_files(folder: Path) -> dict[str, str]:
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "empty.npz").write_bytes(b"")
    (folder / "text.mp4").write_text("1,2,3,4\n" * 50)
    (folder / "notes.txt").write_text("hello\n" * 50)
    (folder / "noise.avi").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "bad.jpg").write_text("no image")
    (folder / "nothing").mkdir()
    make_folder(folder / "outer" / "color", 1)
    make_video(folder / "whole.mp4", 4)
    (folder / "headless.mp4").write_bytes((folder / "whole.mp4").read_bytes()[:300])
    return {
        "empty.mp4": "empty",
        "empty.npz": "empty",
        "text.mp4": "cannot be opened as a video",
        "notes.txt": "cannot be opened as a video",
        "noise.avi": "cannot be opened as a video",
        "headless.mp4": "holds no video",
        "bad.jpg": "cannot be read",
        "nothing": "holds no images",
        "outer": "did you mean",
        "missing.mp4": "does not exist",
        "missing.npz": "does not exist",
        "img_%04d.png": "matches no file",
        "*.png": "matches no image",
    }


def test_each_unreadable_source_says_what_where_and_the_remedy(tmp_path: Path) -> None:
    for name, word in bad_files(tmp_path).items():
        with pytest.raises(StreamError, match=word) as caught:
            sd.open_stream(tmp_path / name)
        message = str(caught.value)
        assert str(tmp_path / name) in message, message
        assert ": " in message, message
        assert "\n" not in message


def test_sound_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.wav"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        for packet in [*stream.encode(frame), *stream.encode()]:
            out.mux(packet)
    with pytest.raises(StreamError, match="holds no video"):
        sd.open_stream(tmp_path / "sound.wav")


def test_a_video_without_frames(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 6)
    damage(tmp_path / "a.mp4", 0.45, 1.0)
    try:
        samples = list(sd.open_stream(tmp_path / "a.mp4"))
    except StreamError:
        return
    assert len(samples) < 6


@pytest.mark.parametrize("source", [None, 3.5, b"x", {"a": 1}, True, "", " ", "a\0b", "ftp://x/y", []])
def test_what_is_no_source(source: object) -> None:
    with pytest.raises(StreamError):
        sd.open_stream(source)


def test_batch_size_is_checked() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        sd.open_stream(make_frames(1), batch_size=0)


@pytest.mark.parametrize("camera", [99, "99"])
def test_a_camera_that_is_not_there(camera: object) -> None:
    with pytest.raises(StreamError, match="camera 99"):
        sd.open_stream(camera)


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_an_address_that_does_not_answer_keeps_its_secrets(scheme: str) -> None:
    with pytest.raises(StreamError, match="refused") as caught:
        sd.open_stream(f"{scheme}://user:secret@127.0.0.1:1/live?token=hidden")
    assert f"{scheme}://127.0.0.1:1/live" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("user", "secret", "hidden"))
    assert without_secrets("rtsp://a:b@c@host:554/x?y=z@w") == "rtsp://host:554/x"


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_silent_server_is_given_up(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdrop.streams.live.TIMEOUT", (0.3, 0.3))
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(StreamError, match=r"within 0\.3 s"):
        sd.open_stream(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/x")


def test_file_addresses(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 3)
    assert len(list(sd.open_stream(f"file://{tmp_path}/a.mp4"))) == 3


# live sources


def test_a_live_source_hands_out_the_newest_and_counts_the_rest() -> None:
    frames, gate, finished = make_frames(6), threading.Event(), threading.Event()
    waiting = iter(frames)

    def read() -> np.ndarray | None:
        image = next(waiting, None)
        if image is frames[1]:
            assert gate.wait(120)
        if image is None:
            finished.set()
        return image

    stream = Stream(Live(read, lambda: None, "camera0", "camera 0"))
    assert stream.live
    assert stream.size == (64, 48)
    samples = iter(stream)
    assert next(samples).index == 0
    gate.set()
    assert finished.wait(120)
    last = next(samples)
    assert (last.index, stream.dropped) == (5, 4)
    assert (last.image == frames[5]).all()
    assert list(samples) == []
    stream.close()


def test_a_live_source_without_frames_is_an_error_and_is_released() -> None:
    released: list[bool] = []
    with pytest.raises(StreamError, match="camera 3 delivers no frames"):
        Live(lambda: None, lambda: released.append(True), "camera3", "camera 3")
    assert released


# keys


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2))
def test_keys_sort_by_arrival(frames: list[int]) -> None:
    keys = [sample_key("clip.mp4", "ball", frame) for frame in frames]
    assert sorted(keys) == [sample_key("clip.mp4", "ball", frame) for frame in sorted(frames)]


def test_keys_tell_targets_apart_and_fit_a_store() -> None:
    assert sample_key("a/b", 1, 0) != sample_key("a", "b1", 0)
    assert len(sample_key("é" * 400, "t", 0)) < 300
    for bad in ({"target": "a/b", "frame": 0}, {"target": 0, "frame": -1}):
        with pytest.raises(ValueError, match=r"slash|frame"):
            sample_key("s", **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [-1, 10**11])
def test_a_camera_number_that_is_none_is_refused(number):
    with pytest.raises(StreamError, match="numbers from 0 on"):
        sd.open_stream(number)
