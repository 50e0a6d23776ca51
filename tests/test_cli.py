"""The command line as a user meets it: what it writes, what it says, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamdrop.cli import main
from streamdrop.store import LmdbStore
from streamdrop.streams import VideoWriter, open_stream
from streamdrop.testing.targets import moving_square
from streamdrop.testing.tuners import labelled_batch

QUICK = [
    "search.size=128",
    "first_frame.crops=8",
    "first_frame.steps=12",
    "first_frame.batch=6",
    "update.every=3",
    "update.steps=2",
    "box.samples=100",
    "drop.steps=2",
]
SET = [part for text in QUICK for part in ("--set", text)]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A short clip of a moving target and its first box."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    images, boxes = moving_square(frames=12)
    height, width = images[0].shape[:2]
    with VideoWriter(path, 25, (width, height)) as writer:
        for image in images:
            writer.write(image)
    return str(path), ",".join(f"{v:g}" for v in boxes[0])


def run(capsys, *arguments):
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_track_writes_everything_it_was_asked_for(video, tmp_path, capsys):
    source, box = video
    files = {name: tmp_path / name for name in ("boxes.txt", "events.jsonl", "out.mp4", "report.html")}
    status, out, err = run(
        capsys, "track", source, "--box", box, "--boxes", files["boxes.txt"], "--events", files["events.jsonl"],
        "--output", files["out.mp4"], "--report", files["report.html"], *SET,
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "12 frames" in out
    boxes = np.loadtxt(files["boxes.txt"], delimiter=",")
    assert boxes.shape == (12, 4)
    assert np.allclose(boxes[0], [float(v) for v in box.split(",")])
    events = [json.loads(line) for line in files["events.jsonl"].read_text().splitlines()]
    frames = [event for event in events if "frame" in event]
    rounds = [event for event in events if "round" in event]
    assert [event["frame"] for event in frames] == list(range(12))
    assert {"box", "score", "lost", "ms"} <= set(frames[0])
    assert rounds
    assert {"round", "cut", "loss", "ms", "samples"} <= set(rounds[0])
    with open_stream(str(files["out.mp4"])) as stream:
        assert len(list(stream)) == 12
    page = files["report.html"].read_text()
    assert "<html" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("at_once", ["", "1"])
def test_an_answer_that_cannot_be_written_is_a_failure(at_once, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", at_once)
    command = [sys.executable, "-m", "streamdrop", "weights", "list"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("streamdrop: error: the output cannot be written (No space left on device): ")
    assert len(done.stderr.splitlines()) == 1


def frames_folder(folder: Path, broken: set[int]) -> tuple[Path, str]:
    """Twelve frames as files, some of which do not decode, and the first box."""
    images, boxes = moving_square(frames=12)
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    for number in broken:
        (folder / f"{number:02d}.png").write_bytes(b"no picture")
    return folder, ",".join(f"{v:g}" for v in boxes[0])


def test_frames_that_do_not_decode_have_boxes_and_pictures_too(tmp_path, capsys):
    source, box = frames_folder(tmp_path / "frames", {4, 5, 11})
    files = ("--boxes", tmp_path / "b.txt", "--output", tmp_path / "o.mp4", "--events", tmp_path / "e.jsonl")
    status, _, err = run(capsys, "track", source, "--box", box, *files, *SET)
    assert (status, "3 frame(s)" in err) == (0, True)
    boxes = (tmp_path / "b.txt").read_text().splitlines()
    assert len(boxes) == 12
    assert boxes[3] == boxes[4] == boxes[5] != boxes[6]
    events = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [event["frame"] for event in events if event.get("lost")] == [4, 5, 11]
    with open_stream(str(tmp_path / "o.mp4")) as stream:
        shown = [sample.image.astype(int) for sample in stream]
    assert len(shown) == 12
    still = [np.abs(shown[at] - shown[at - 1]).mean() for at in range(1, 12)]
    assert still[4] < min(still[1], still[5]) / 3  # frame 5 shows what 4 does


def test_true_boxes_of_another_count_are_told(video, tmp_path, capsys):
    source, box = video
    (tmp_path / "truth.txt").write_text(f"{box}\n" * 9)
    status, _, err = run(capsys, "track", source, "--box", box, "--truth", tmp_path / "truth.txt", *SET)
    assert status == 0
    assert f"{tmp_path / 'truth.txt'} has 9 lines for 12 frames: the overlap is of the first 9" in err


def test_a_dash_stands_for_the_standard_output(video, capsys):
    source, box = video
    status, out, err = run(capsys, "track", source, "--box", box, "--boxes", "-", *SET)
    assert status == 0
    assert np.loadtxt(out.splitlines(), delimiter=",").shape == (12, 4)
    assert "12 frames" in err
    for outputs in (("--output", "-"), ("--boxes", "-", "--events", "-"), ("--boxes", "-", "--box", "1,1,9,9")):
        status, out, err = run(capsys, "track", source, "--box", box, *outputs, *SET)
        assert (status, out, err.count("\n")) == (2, "", 1)
    assert not Path("-").exists()


def test_what_a_policy_says_is_told(video, tmp_path, capsys):
    source, box = video
    asks = ("--set", "drop.policy=if-it-pays", "--fps", "0.05")  # time in plenty
    status, out, _ = run(capsys, "track", source, "--box", box, "--events", tmp_path / "e.jsonl", *SET, *asks)
    assert status == 0
    said = "deeper training is not tried: rounds make way for frames"
    assert f"policy: {said}" in out
    events = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert {event["why"] for event in events if "why" in event} == {said}


def test_same_seed_same_boxes_and_folders_work_as_sources(video, tmp_path, capsys):
    source, box = video
    for name in ("a", "b"):
        assert run(capsys, "track", source, "--box", box, "--boxes", tmp_path / name, "--seed", 4, *SET)[0] == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--box", "1,2,3"], 2, ["four"]),
        (["--box", "1,2,0,5"], 2, ["area"]),
        (["--box", "1,2,-4,5"], 2, ["area"]),
        (["--box", "1,2,nan,5"], 2, ["finite"]),
        (["--box", "5000,5000,10,10"], 1, ["outside", "frame"]),
        ([], 2, ["--box"]),
        (["--box", "5,5,20,20", "--set", "seeed=3"], 2, ["seeed", "seed"]),
        (["--box", "5,5,20,20", "--set", "update.every=often"], 2, ["update.every", "whole number"]),
        (["--box", "5,5,20,20", "--set", "drop.policy=papper"], 2, ["papper", "paper"]),
        (["--box", "5,5,20,20", "--config", "nowhere.yaml"], 2, ["nowhere.yaml"]),
        (["--box", "5,5,20,20", "--set", "weights=/nowhere.pt"], 1, ["/nowhere.pt"]),
        (["--box", "5,5,20,20", "--output", "/proc/nothing/out.mp4"], 1, ["/proc/nothing"]),
        (["--box", "5,5,20,20", "--output", "out.xyz"], 1, ["out.xyz"]),
        (["--box", "5,5,20,20", "--boxes", "/proc/nothing/b.txt"], 1, ["/proc/nothing"]),
        (["--box", "5,5,20,20", "--resume"], 2, ["--store"]),
        (["--box", "5,5,20,20", "--store", ""], 2, ["--store", "empty"]),
        (["--box", "5,5,20,20", "--boxes", " "], 2, ["--boxes", "empty"]),
        (["--box", "5,5,20,20", "--nonsense"], 2, ["--nonsense"]),
    ],
)
def test_bad_arguments_end_in_one_line_that_says_what_to_do(video, capsys, arguments, status, words):
    got, _, err = run(capsys, "track", video[0], *arguments)
    assert got == status, err
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def make_bad_source(kind: str, folder: Path) -> str:
    path = folder / f"{kind}.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no video")
    elif kind == "labels":
        path = folder / "labels.npz"
        np.savez(path, images=np.zeros((3, 8, 8), np.uint8), labels=np.zeros(3, int))
    elif kind == "folder":
        path.mkdir()
    return str(path)


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "folder", "labels"])
def test_bad_sources_end_in_one_line_and_leave_old_outputs_alone(kind, tmp_path, capsys):
    (tmp_path / "boxes.txt").write_text("of an earlier run\n")
    source = make_bad_source(kind, tmp_path)
    status, _, err = run(capsys, "track", source, "--box", "1,1,5,5", "--boxes", tmp_path / "boxes.txt")
    assert (status, err.count("\n")) == (1, 1), err
    assert (tmp_path / "boxes.txt").read_text() == "of an earlier run\n"


def test_a_run_that_is_refused_leaves_old_outputs_alone(video, tmp_path, capsys):
    source, box = video
    files = {name: tmp_path / name for name in ("boxes.txt", "events.jsonl")}
    command = ["track", source, "--box", box, "--boxes", files["boxes.txt"], "--events", files["events.jsonl"], *SET]
    assert run(capsys, *command, "--store", tmp_path / "run")[0] == 0
    before = {path: path.read_bytes() for path in files.values()}
    for more, why in (([], "earlier run"), (["--resume", "--seed", "7"], "another configuration.seed:")):
        status, _, err = run(capsys, *command, "--store", tmp_path / "run", *more)
        assert (status, err.count("\n")) == (1, 1), err
        assert why in err
        assert {path: path.read_bytes() for path in files.values()} == before


def test_a_run_does_not_go_on_with_another_video_of_its_name(tmp_path, capsys):
    images, boxes = moving_square(frames=4)
    (tmp_path / "frames").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "frames" / f"{number}.png")
    command = ["track", tmp_path / "frames", "--box", ",".join(map(str, boxes[0])), "--store", tmp_path / "run", *SET]
    assert run(capsys, *command)[0] == 0
    assert run(capsys, *command, "--resume")[0] == 0
    Image.fromarray(255 - images[0]).save(tmp_path / "frames" / "0.png")
    status, _, err = run(capsys, *command, "--resume")
    assert (status, err.count("\n")) == (1, 1), err
    assert "was started with another first frame" in err


def test_show_without_a_display_says_to_give_the_box(video, capsys, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    status, _, err = run(capsys, "track", video[0], "--show")
    assert status == 1
    assert "--box" in err


def test_a_truncated_video_is_tracked_as_far_as_it_goes(video, tmp_path, capsys):
    from streamdrop.testing.streams import cut_short

    source, box = video
    short = tmp_path / "short.mkv"
    with open_stream(source) as stream, VideoWriter(short, 25, stream.size) as writer:
        for sample in stream:
            writer.write(sample.image)
    cut_short(short, 0.7)
    status, _, err = run(capsys, "track", short, "--box", box, "--boxes", tmp_path / "b.txt", *SET)
    assert status == 0, err
    assert 1 <= len((tmp_path / "b.txt").read_text().splitlines()) <= 12


def started(video, tmp_path, *more):
    source, box = video
    command = [sys.executable, "-c", SLOWED, "track", source, "--box", box, "--boxes", str(tmp_path / "b.txt")]
    return subprocess.Popen([*command, *SET, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


SLOWED = """
import sys, threading
import torch; torch.set_num_threads(1)
from streamdrop.cli import main
from streamdrop.service import track_run
track_run.CHECKPOINT_SECONDS = 0.0
from streamdrop.tracking import Tracker
update = Tracker.update
def held(self, image):
    track = update(self, image)
    if self.frames == 8 and "--resume" not in sys.argv:
        print("eight", flush=True)
        threading.Event().wait(250)
    return track
Tracker.update = held
sys.exit(main())
"""


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == line


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_boxes(video, tmp_path, capsys):
    source, box = video
    whole = tmp_path / "whole.txt"
    assert run(capsys, "track", source, "--box", box, "--boxes", whole, *SET)[0] == 0
    process = started(video, tmp_path, "--store", str(tmp_path / "run"))
    wait_for(process, "eight")
    process.send_signal(signal.SIGKILL)
    process.wait(250)
    resumed = ["track", source, "--box", box, "--boxes", tmp_path / "b.txt", "--output", tmp_path / "o.mp4"]
    status, _, err = run(capsys, *resumed, "--store", tmp_path / "run", "--resume", *SET)
    assert status == 0, err
    assert "after 7 frames" in err
    assert (tmp_path / "b.txt").read_text() == whole.read_text()
    with open_stream(str(tmp_path / "o.mp4")) as stream:
        assert len(list(stream)) == 12
    again = run(capsys, "track", source, "--box", box, "--store", tmp_path / "run", *SET)
    assert again[0] == 1
    assert "--resume" in again[2]
    other = run(capsys, "track", source, "--box", "1,1,9,9", "--store", tmp_path / "run", "--resume", *SET)
    assert (other[0], "box" in other[2]) == (1, True)
    assert LmdbStore(tmp_path / "run" / "features", read_only=True).cut > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_whole_files(video, tmp_path, number):
    process = started(video, tmp_path, "--output", str(tmp_path / "o.mp4"))
    wait_for(process, "eight")
    process.send_signal(number)
    _, err = process.communicate(timeout=250)
    assert process.returncode == 128 + number
    assert err.count("\n") == 1
    assert "Traceback" not in err
    with open_stream(str(tmp_path / "o.mp4")) as stream:
        assert len(list(stream)) == len((tmp_path / "b.txt").read_text().splitlines()) == 7


def test_a_run_whose_window_is_closed_goes_on_after_the_last_frame_seen(video, tmp_path, capsys, monkeypatch):
    source, box = video

    class Window:
        def __init__(self, title):
            self.shown = 0

        def __enter__(self):
            return self

        def __exit__(self, *raised):
            pass

        def show(self, image):
            self.shown += 1
            return self.shown < 7

    monkeypatch.setattr("streamdrop.streams.Window", Window)
    stored = ("track", source, "--box", box, "--store", tmp_path / "run", *SET)
    assert run(capsys, *stored, "--show")[0] == 0
    status, out, err = run(capsys, *stored, "--resume")
    assert status == 0
    assert "going on after 7 frames" in err
    assert "12 frames" in out


def test_store_info_and_verify(tmp_path, capsys):
    batch = labelled_batch(4)
    with LmdbStore(tmp_path / "s") as store:
        store.put_many({key: (batch.images[i],) for i, key in enumerate(batch.keys)})
    status, out, _ = run(capsys, "store", "info", tmp_path / "s", "--json")
    assert status == 0
    assert (json.loads(out)["samples"], json.loads(out)["cut"]) == (4, 0)
    assert "samples" in run(capsys, "store", "info", tmp_path / "s")[1]
    assert run(capsys, "store", "verify", tmp_path / "s")[0] == 0
    status, _, err = run(capsys, "store", "info", tmp_path / "nowhere")
    assert (status, err.count("\n")) == (1, 1)
    assert not (tmp_path / "nowhere").exists()


def test_no_command_shows_the_help(capsys):
    status, out, _ = run(capsys)
    assert status == 2
    assert "track" in out


def test_version(capsys):
    assert run(capsys, "--version")[0] == 0


def test_a_pipe_that_closes_is_no_traceback():
    code = "from streamdrop.cli import main; import sys; sys.exit(main(['track', '--help']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.wait(250)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (["--output", "in.mp4"], "written over in.mp4"),
        (["--truth", "truth.txt", "--boxes", "truth.txt"], "written over truth.txt"),
        (["--boxes", "same", "--events", "./same"], "written over the boxes"),
        (["--boxes", "old.txt", "--set", "drop.policy={schedule: {1: 99}}"], "99"),
    ],
)
def test_nothing_that_was_there_is_written_over(video, outputs, words, tmp_path, monkeypatch, capsys):
    path, box = video
    monkeypatch.chdir(tmp_path)
    there = {"in.mp4": Path(path).read_bytes(), "truth.txt": b"1,1,2,2\n", "old.txt": b"precious"}
    for name, content in there.items():
        Path(name).write_bytes(content)
    assert main(["track", "in.mp4", "--box", box, *outputs, *SET]) == 2
    assert words in capsys.readouterr().err
    assert {name: Path(name).read_bytes() for name in there} == there


def test_no_frame_is_written_over(video, tmp_path, capsys):
    frame = tmp_path / "frames" / "0001.png"
    frame.parent.mkdir()
    frame.write_bytes(b"a picture")
    assert main(["track", str(frame.parent), "--box", "1,1,9,9", "--boxes", str(frame), *SET]) == 2
    assert "is a frame of" in capsys.readouterr().err
    assert frame.read_bytes() == b"a picture"


def test_a_table_is_printed_whatever_the_output_can_spell():
    code = "from streamdrop.cli.process import spell_out; spell_out(); print('saved \\u0394T', '\\udcff')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "saved \\u0394T \\udcff\n"


def test_a_working_folder_that_is_gone_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    status, _, err = run(capsys, "store", "info", tmp_path / "store")
    assert (status, err.count("\n")) == (1, 1)
    assert "change to one that exists" in err


@pytest.mark.slow
def test_a_name_that_the_locale_lacks_is_said(tmp_path):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = f"from streamdrop.cli import main; raise SystemExit(main(['store', 'info', {str(tmp_path / 'ü')!a}]))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "run with PYTHONUTF8=1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_closed_standard_streams_lead_nowhere_and_no_file_takes_their_place(tmp_path):
    code = """
import os, sys
from streamdrop.cli.process import open_closed
from streamdrop.cli.terminal import Progress, note
open_closed()
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    with Progress("frame", 1) as bar:
        bar.advance("x")
    note("said to nobody")
    print("as is this")
    os.write(2, b"or this")
    file.write("done")
"""
    command = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(["bash", "-c", command, "bash", sys.executable, "-c", code, tmp_path / "f"], cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "f").read_text() == "done"
