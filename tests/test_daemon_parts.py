"""The parts of a stream in the daemon, each by itself: frames, reader, journal, state, files, the shared machine."""

from __future__ import annotations

import json
import queue
import resource
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from daemons import SECONDS, until

from streamdrop.boxes import Box
from streamdrop.errors import CheckpointError, ConfigError, OutputError, StreamError
from streamdrop.service.capture import Capture, Signal, backoff
from streamdrop.service.files import OutputFiles
from streamdrop.service.frames import Arrival, FrameBuffer
from streamdrop.service.http.permitted import permitted_source
from streamdrop.service.journal import Journal, last_events
from streamdrop.service.pictures import Pictures, encode
from streamdrop.service.settings import LimitsConfig, OutputsConfig, StreamConfig, TargetConfig
from streamdrop.service.share import Share, watch_rounds
from streamdrop.service.state import StateFolder, StreamState, TargetState, as_text, remembered
from streamdrop.service.stats import Counters, Histogram
from streamdrop.streams import VideoWriter
from streamdrop.testing import make_folder, make_video
from streamdrop.types import Track


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


IMAGE = np.zeros((4, 5, 3), np.uint8)


def arrive(buffer: FrameBuffer, clock: Clock, count: int, period: float = 0.1) -> None:
    first = (buffer.kept() or (0, -1))[1] + 1
    for number in range(first, first + count):
        buffer.put(Arrival(number, number, IMAGE, clock.now))
        clock.now += period


# -------------------------------------------------------------------- frames


def test_frames_in_time_are_taken_in_order():
    clock = Clock()
    buffer = FrameBuffer(10, 1e9, 0.35, clock)
    arrive(buffer, clock, 3)
    assert [buffer.take(0).number for _ in range(3)] == [0, 1, 2]
    assert buffer.take(0) is None


def test_late_frames_are_passed_over_but_never_all_of_them():
    clock = Clock()
    buffer = FrameBuffer(10, 1e9, 0.25, clock)
    arrive(buffer, clock, 10)
    assert buffer.take(0).number == 5  # half of what waited
    assert buffer.take(0).number == 8
    clock.now += 5
    assert buffer.take(0).number == 9  # too late too, but there is no newer one


def test_after_a_rewind_the_present_is_reached_in_strides():
    clock = Clock()
    buffer = FrameBuffer(100, 1e9, 0.25, clock)
    arrive(buffer, clock, 100)
    assert buffer.take(0).number == 50
    buffer.rewind(40)
    taken = []
    while (frame := buffer.take(0)) is not None:
        taken.append(frame.number)
    assert taken[0] > 41
    assert taken[-1] == 99
    assert np.diff([40, *taken]).max() <= 5
    assert len(taken) <= 13


def test_the_present_is_reached_though_frames_come_faster_than_they_are_taken():
    clock = Clock()
    buffer = FrameBuffer(100, 1e9, 0.25, clock)
    arrive(buffer, clock, 40)
    buffer.rewind(0)
    for _ in range(12):
        last = buffer.take(0)
        arrive(buffer, clock, 8)
    assert buffer.kept()[1] - last.number <= 8


def test_the_buffer_is_bounded_by_time_and_bytes_and_finds_what_it_keeps():
    clock = Clock()
    buffer = FrameBuffer(1.0, 1e9, 0.25, clock)
    arrive(buffer, clock, 50)
    assert buffer.kept() == (39, 49)
    assert buffer.find(45).number == 45
    assert buffer.find(3) is None
    small = FrameBuffer(1e9, 3 * IMAGE.nbytes, 0.25, clock)
    arrive(small, clock, 10)
    assert small.kept() == (7, 9)


def test_frames_that_a_rewind_needs_are_kept_however_old():
    clock = Clock()
    buffer = FrameBuffer(1.0, 1e9, 0.25, clock)
    arrive(buffer, clock, 5)
    buffer.keep(2)
    clock.now += 60
    arrive(buffer, clock, 2)
    assert buffer.kept() == (2, 6)
    buffer.rewind(2)
    assert buffer.take(0).number == 4


# -------------------------------------------------------------------- the reader


class Heard:
    """Collects what a Capture delivers."""

    def __init__(self, config: StreamConfig, **options: object) -> None:
        self.frames: list[Arrival] = []
        self.signals: list[tuple[bool, str | None]] = []
        self.shown: list[Arrival] = []
        limits = LimitsConfig(retry_first=0.01, retry_most=0.02)
        self.capture = Capture(config, limits, self.frames.append, self.changed, self.shown.append, **options)

    def changed(self, signal: Signal) -> None:
        self.signals.append((signal.up, signal.error))

    def __enter__(self) -> Heard:
        self.capture.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.capture.stop()
        self.capture.join(SECONDS)


def test_a_file_is_played_to_its_end(tmp_path):
    make_video(tmp_path / "a.mp4", 6)
    with Heard(StreamConfig("a", str(tmp_path / "a.mp4"), fps=500)) as heard:
        until(lambda: heard.capture.signal.ended, "the end")
    assert [frame.number for frame in heard.frames] == list(range(6))
    assert heard.signals == [(True, None), (False, None)]


def test_a_looped_file_starts_again_and_numbers_go_on(tmp_path):
    make_folder(tmp_path / "a", 3)
    with Heard(StreamConfig("a", str(tmp_path / "a"), fps=500, loop=True)) as heard:
        until(lambda: len(heard.frames) >= 7, "three rounds")
    assert [frame.number for frame in heard.frames[:7]] == list(range(7))
    assert [frame.position for frame in heard.frames[:7]] == [0, 1, 2, 0, 1, 2, 0]


def test_a_file_goes_on_where_it_was(tmp_path):
    make_folder(tmp_path / "a", 5)
    with Heard(StreamConfig("a", str(tmp_path / "a"), fps=500, loop=True), number=100, position=3) as heard:
        until(lambda: len(heard.frames) >= 4, "frames")
    assert [(f.number, f.position) for f in heard.frames[:4]] == [(100, 3), (101, 4), (102, 0), (103, 1)]


def test_a_file_stands_still_while_it_is_held_and_shows_its_next_frame(tmp_path):
    make_folder(tmp_path / "a", 5)
    heard = Heard(StreamConfig("a", str(tmp_path / "a"), fps=500))
    heard.capture.hold("starting")
    heard.capture.hold("paused")
    with heard:
        until(lambda: heard.shown, "a preview")
        heard.capture.release("paused")
        assert not heard.frames
        heard.capture.release("starting")
        until(lambda: heard.capture.signal.ended, "the end")
    assert len(heard.frames) == 5


def test_a_source_that_is_missing_is_tried_again_until_it_is_there(tmp_path):
    with Heard(StreamConfig("a", str(tmp_path / "a"), fps=500)) as heard:
        until(lambda: len(heard.signals) >= 2, "two failures")
        assert "does not exist" in heard.capture.signal.error
        make_folder(tmp_path / "b", 3)
        (tmp_path / "b").rename(tmp_path / "a")
        until(lambda: heard.capture.signal.ended, "the end")
    assert heard.capture.signal.reconnects == 1
    assert len(heard.frames) == 3


def test_bad_frames_are_skipped_and_counted(tmp_path):
    make_folder(tmp_path / "a", 5)
    (tmp_path / "a" / "img_00003.png").write_bytes(b"no image")
    with Heard(StreamConfig("a", str(tmp_path / "a"), fps=500)) as heard:
        until(lambda: heard.capture.signal.ended, "the end")
    assert len(heard.frames) == 4
    assert heard.capture.signal.skipped == 1


class Camera:
    """A live stream that gives a few frames, then nothing until it is closed."""

    live, fps, size, skipped, name = True, 30.0, (5, 4), 0, "camera"

    def __init__(self) -> None:
        self.closed = threading.Event()

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed.set()

    def __iter__(self):
        from streamdrop.types import Sample

        for index in (0, 1, 4):  # two frames came while the reader was busy
            yield Sample(b"", IMAGE, index)
        assert self.closed.wait(SECONDS)


def test_a_live_source_that_freezes_is_opened_again_and_missed_frames_have_numbers(monkeypatch):
    monkeypatch.setattr("streamdrop.service.capture.open_stream", lambda source: Camera())
    with Heard(StreamConfig("a", 0, stale=0.05)) as heard:
        until(lambda: heard.capture.check() or heard.capture.signal.reconnects >= 1, "a second connection")
        until(lambda: len(heard.frames) >= 6, "frames")
    assert [frame.number for frame in heard.frames[:6]] == [0, 1, 4, 5, 6, 9]
    assert any("no frame for 0.05 s" in (error or "") for _, error in heard.signals)


def test_a_live_source_that_freezes_is_closed_once_and_nobody_waits_for_it(monkeypatch):
    closing, go_on = [], threading.Event()

    class Hanging(Camera):
        def close(self) -> None:
            closing.append(threading.current_thread())
            go_on.wait(SECONDS)
            super().close()

    monkeypatch.setattr("streamdrop.service.capture.open_stream", lambda source: Hanging())
    with Heard(StreamConfig("a", 0, stale=0.05)) as heard:
        until(lambda: heard.capture.check() or closing, "the end of a silent source")
        for _ in range(3):
            heard.capture.check()
        assert len(closing) == 1
        assert closing[0] is not threading.current_thread()
        go_on.set()


def test_a_file_stands_still_where_one_reason_goes_while_another_comes(tmp_path):
    make_folder(tmp_path / "a", 5)
    heard = Heard(StreamConfig("a", str(tmp_path / "a"), fps=500))
    capture = heard.capture
    holding = threading.Thread(target=lambda: capture.hold("learning"))

    class Watched(set):
        """Between the last look at the reasons and what follows from it, another one may come."""

        def __len__(self) -> int:
            if holding.ident is None:
                holding.start()
                holding.join(0.1)
                return 0
            return super().__len__()

    capture._holds = Watched(["starting"])
    capture.hold("starting")
    capture.release("starting")
    holding.join(SECONDS)
    with heard:
        until(lambda: heard.shown, "a preview")
        assert not heard.frames
        capture.release("learning")
        until(lambda: heard.frames, "frames")


def test_a_reader_that_is_held_once_more_when_it_is_to_end_ends(tmp_path):
    make_folder(tmp_path / "a", 5)
    heard = Heard(StreamConfig("a", str(tmp_path / "a"), fps=500))
    capture = heard.capture

    def end(arrival: Arrival) -> None:
        """While it stands still, as a worker that was learning may do."""
        capture.stop()
        capture.hold("learning")

    capture._preview = end
    capture.hold("starting")
    capture.start()
    capture.join(SECONDS)
    assert not capture._thread.is_alive()


def test_whatever_a_decoder_raises_stays_in_the_reader_and_holds_no_secret(monkeypatch):
    def broken(source: object) -> Camera:
        raise ZeroDivisionError("at rtsp://u:secret@cam/x")

    monkeypatch.setattr("streamdrop.service.capture.open_stream", broken)
    with Heard(StreamConfig("a", "rtsp://u:secret@cam/x")) as heard:
        until(lambda: heard.signals, "a failure")
    assert "ZeroDivisionError" in heard.capture.signal.error
    assert "secret" not in heard.capture.signal.error


def test_waits_grow_and_are_bounded():
    assert 0.8 <= backoff(1, 1, 30) <= 1.2
    assert 6.4 <= backoff(4, 1, 30) <= 9.6
    assert 24 <= backoff(1000, 1, 30) <= 36


# -------------------------------------------------------------------- journal and state


def test_a_torn_line_is_cut_off_and_events_go_on(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"frame": 0}\n{"frame": 1}\n{"fra')
    journal = Journal(path, 1e9, 2)
    journal.write({"frame": 2})
    journal.close()
    assert [json.loads(line)["frame"] for line in path.read_text().splitlines()] == [0, 1, 2]
    assert [event["frame"] for event in last_events(path)] == [0, 1, 2]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * 200_000)
    Journal(path, 1e9, 2).close()
    assert path.read_bytes() == b""


def test_events_files_are_set_aside_and_bounded(tmp_path):
    journal = Journal(tmp_path / "events.jsonl", 40, 3)
    for frame in range(20):
        journal.write({"frame": frame, "score": 0.5})
    journal.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events.1.jsonl", "events.2.jsonl", "events.jsonl"]
    assert all(last_events(p) or not p.stat().st_size for p in tmp_path.iterdir())


def test_a_full_disk_is_an_error_and_leaves_whole_lines(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "events.jsonl", 1e9, 2)
    journal.write({"frame": 0})

    class Full:
        def __init__(self, file: object) -> None:
            self.file = file

        def write(self, line: bytes) -> int:
            return self.file.write(line[:5])

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    journal._file = Full(journal._file)
    with pytest.raises(OutputError, match="free some space"):
        journal.write({"frame": 1})
    assert (tmp_path / "events.jsonl").read_text() == '{"frame": 0}\n'


def test_after_several_failures_on_a_full_disk_lines_are_whole_and_it_goes_on(tmp_path):
    """Twice a part of a line gets in: cutting it off must not take the place of the first for the end."""
    path = tmp_path / "events.jsonl"
    journal = Journal(path, 1e9, 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal.write({"frame": 0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 7, before[1]))
    try:
        for _ in range(3):
            with pytest.raises(OutputError, match="free some space"):
                journal.write({"frame": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal.write({"frame": 2})
    journal.close()
    assert path.read_text() == '{"frame": 0}\n{"frame": 2}\n'


def test_a_file_that_cannot_be_set_aside_is_told_and_tried_again(tmp_path):
    journal = Journal(tmp_path / "events.jsonl", 30, 2)
    blocker = tmp_path / "events.1.jsonl"
    blocker.mkdir()
    (blocker / "x").touch()
    journal.write({"frame": 0})
    for frame in (1, 2):
        with pytest.raises(OutputError, match=r"events\.jsonl"):
            journal.write({"frame": frame, "score": 0.5})
    (blocker / "x").unlink()
    blocker.rmdir()
    journal.write({"frame": 3})
    journal.close()
    assert [event["frame"] for event in last_events(blocker)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="closed"):
        journal.write({"frame": 4})


def test_state_is_read_as_it_was_written_and_damage_is_said(tmp_path):
    folder = StateFolder(tmp_path / "a")
    assert folder.read() is None
    targets = {1: TargetState([1.0, 2.0, 3.0, 4.0], 0.5, learned=True), 4: TargetState([5.0, 6.0, 7.0, 8.0], lost=True)}
    state = StreamState(number=7, position=3, targets=targets, newest=4, given={"source": "x"})
    folder.write(as_text(state))
    assert folder.read() == state
    none = '"targets": {}, "number"'
    torn = ('"targets": {"1": {"box": [1, 2, 0, 4]}}', '"targets": {"x": {"box": [1, 2, 3, 4]}}', '"targets": [1]', "")
    for text in (
        "",
        "{}",
        "[1]",
        f'{{"format": 2, {none}: -1}}',
        *(f'{{"format": 2{", " * bool(t)}{t}}}' for t in torn),
    ):
        (tmp_path / "a" / "stream.json").write_text(text)
        with pytest.raises(CheckpointError, match="remove it"):
            folder.read()


def test_another_source_or_box_is_another_target():
    stream = StreamConfig("a", "x.mp4", box=(1, 2, 3, 4))
    state = remembered(None, stream)
    assert state.targets == {1: TargetState([1, 2, 3, 4])}
    state.targets, state.position = {1: TargetState([9.0, 9.0, 9.0, 9.0], learned=True)}, 5
    assert remembered(state, stream).targets == {1: TargetState([9, 9, 9, 9], learned=True)}
    other = remembered(state, StreamConfig("a", "x.mp4", box=(5, 5, 5, 5)))
    assert (other.targets, other.position) == ({1: TargetState([5, 5, 5, 5])}, 0), "a box of the file's first frame"
    gone = remembered(other, StreamConfig("a", "y.mp4"))
    assert (gone.targets, gone.position) == ({}, 0)
    several = StreamConfig("a", "y.mp4", targets=(TargetConfig((1, 2, 3, 4)), TargetConfig((5, 6, 7, 8), id=7)))
    assert {key: one.box for key, one in remembered(gone, several).targets.items()} == {
        1: [1, 2, 3, 4],
        7: [5, 6, 7, 8],
    }
    assert gone.newest == 7


@pytest.mark.parametrize("name", ["a\udcff.mp4", "a b\n😀.mp4"])
def test_a_source_may_have_any_name_that_a_system_gives(name):
    state = remembered(None, StreamConfig("a", name, box=(1, 2, 3, 4)))
    state.position = 5
    assert remembered(state, StreamConfig("a", name, box=(1, 2, 3, 4))).position == 5
    assert remembered(state, StreamConfig("a", f"b{name}")).position == 0


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(OutputError, match="choose another"):
        StateFolder(tmp_path / "a")


def test_box_files_and_videos(tmp_path):
    config = OutputsConfig(boxes=("xywh", "mot", "got10k"), video_minutes=1)
    files = OutputFiles(config, tmp_path, 25)
    image = np.zeros((48, 64, 3), np.uint8)
    files.add(0, image, {1: Track(0, Box(1, 2, 3, 4), 0.5, False)})
    files.add(1, image, {1: Track(1, Box(1.25, 2, 3, 4), 0.1, True)})
    files.close()
    files.close()
    assert (tmp_path / "boxes.txt").read_text() == "0,1.0,2.0,3.0,4.0,0.5000,0\n1,1.25,2.0,3.0,4.0,0.1000,1\n"
    assert (tmp_path / "boxes.mot.txt").read_text() == "1,1,2.0,3.0,3.0,4.0,0.5000,-1,-1,-1\n"
    assert (tmp_path / "boxes.got10k.txt").read_text() == "1.0,2.0,3.0,4.0\n1.25,2.0,3.0,4.0\n"
    assert len(list((tmp_path / "video").glob("*.mp4"))) == 1


def test_a_clock_that_is_set_back_costs_no_video(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "20261025-020000")
    for _ in range(3):
        files = OutputFiles(OutputsConfig(video_minutes=1), tmp_path, 10)
        files.add(0, np.zeros((32, 32, 3), np.uint8), {1: Track(0, Box(1, 2, 3, 4), 1.0, False)})
        files.close()
    names = sorted(path.name for path in (tmp_path / "video").iterdir())
    assert names == ["20261025-020000-1.mp4", "20261025-020000-2.mp4", "20261025-020000.mp4"]


@pytest.mark.parametrize("kept", [1, 2])
def test_so_many_videos_are_kept_the_newest_among_them(tmp_path, monkeypatch, kept):
    for number in range(4):
        monkeypatch.setattr(time, "strftime", lambda *_, number=number: f"20261025-02000{number}")
        files = OutputFiles(OutputsConfig(video_minutes=1, videos=kept), tmp_path, 10)
        files.add(0, np.zeros((32, 32, 3), np.uint8), {1: Track(0, Box(1, 2, 3, 4), 1.0, False)})
        files.close()
    names = sorted(path.name for path in (tmp_path / "video").iterdir())
    assert names == [f"20261025-02000{number}.mp4" for number in range(4 - kept, 4)]


def test_a_video_that_did_not_fit_is_followed_by_another(tmp_path, monkeypatch):
    files = OutputFiles(OutputsConfig(video_minutes=1), tmp_path, 10)
    tracks, image = {1: Track(0, Box(1, 2, 3, 4), 1.0, False)}, np.zeros((32, 32, 3), np.uint8)

    def full(self: VideoWriter, image: object) -> None:
        self._abandon()
        raise OutputError("cannot be written (no space left): is the disk full?")

    with monkeypatch.context() as patch:
        patch.setattr(VideoWriter, "write", full)
        with pytest.raises(OutputError):
            files.add(0, image, tracks)
    files.add(1, image, tracks)
    files.close()
    assert len(list((tmp_path / "video").iterdir())) == 1


def test_counters_come_back_and_nonsense_is_left_out():
    assert Counters.restored({"dropped": 4, "x": 1, "rounds": "many"}) == Counters(dropped=4)
    histogram = Histogram()
    histogram.add(0.005)
    histogram.add(99)
    assert (histogram.counts[0], histogram.counts[-1], histogram.total) == (1, 1, 99.005)


# -------------------------------------------------------------------- the shared machine


def in_threads(*jobs: object) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()


def test_videos_that_a_killed_process_left_are_removed_and_no_others(tmp_path):
    videos = tmp_path / "video"
    videos.mkdir()
    own = ["20260102-030405.mp4.partial", "20260102-030405-2.mp4.partial"]
    others = [
        "20260102-030405.mp4",
        "holiday.mp4.partial",
        "20260102-030405.mkv.partial",
        "x20260102-030405.mp4.partial",
    ]
    for name in (*own, *others):
        (videos / name).write_bytes(b"...")
    files = OutputFiles(OutputsConfig(video_minutes=1.0), tmp_path, 25.0)
    assert sorted(path.name for path in videos.iterdir()) == sorted(others)
    files.add(0, np.zeros((32, 32, 3), np.uint8), {1: Track(0, Box(1, 1, 4, 4), 1.0, False)})
    (growing,) = (path for path in videos.glob("*.partial") if path.name not in others)
    OutputFiles(OutputsConfig(), tmp_path, 25.0).close()  # the next start, had this one been killed
    assert not growing.exists()


def test_no_more_than_the_slots_compute_at_once():
    share, inside, most = Share(2), [], []

    def job(name: str) -> None:
        for _ in range(50):
            with share.turn(name):
                inside.append(name)
                most.append(len(inside))
                inside.remove(name)

    in_threads(*(lambda name=name: job(name) for name in "abcd"))
    assert max(most) <= 2


def test_slots_that_come_and_go_count_from_the_next_turn_on():
    share, entered = Share(1), queue.SimpleQueue()
    done = {name: threading.Event() for name in "abcd"}

    def job(name: str) -> None:
        with share.turn(name) if name != "d" else share.alone(name):
            entered.put(name)
            assert done[name].wait(SECONDS)

    threads = [threading.Thread(target=job, args=(name,), daemon=True) for name in "abcd"]
    threads[0].start()
    assert entered.get(timeout=SECONDS) == "a"
    threads[1].start()
    until(lambda: share._waiting, "b waits")
    share.resize(2)
    assert entered.get(timeout=SECONDS) == "b"
    share.resize(1)
    threads[2].start()
    until(lambda: share._waiting, "c waits")
    done["a"].set()
    threads[0].join(SECONDS)
    assert entered.empty()  # b holds the one that is left
    done["b"].set()
    assert entered.get(timeout=SECONDS) == "c"
    threads[3].start()
    until(lambda: share._waiting, "d waits")
    done["c"].set()
    assert entered.get(timeout=SECONDS) == "d"
    share.resize(8)
    later = threading.Thread(target=job, args=("a",), daemon=True)
    later.start()
    until(lambda: share._waiting, "a waits")  # for one that is alone, however many slots there are
    assert entered.empty()
    done["d"].set()
    assert entered.get(timeout=SECONDS) == "a"


def test_alone_means_alone():
    share, inside, seen = Share(3), [], []

    def job(name: str) -> None:
        for n in range(40):
            with share.alone(name) if n % 8 == 0 else share.turn(name):
                inside.append(name)
                if n % 8 == 0:
                    seen.append(len(inside))
                inside.remove(name)

    in_threads(*(lambda name=name: job(name) for name in "abc"))
    assert seen == [1] * len(seen)


def test_who_has_used_the_least_goes_first():
    clock = Clock()
    share, order = Share(1, clock), []
    for name, seconds in (("a", 1.2), ("b", 1.0), ("c", 1.1)):
        share._used[name] = seconds
    holding, entered = threading.Event(), threading.Event()

    def holder() -> None:
        with share.turn("a"):
            entered.set()
            assert holding.wait(SECONDS)

    def other(name: str) -> None:
        with share.turn(name):
            order.append(name)

    first = threading.Thread(target=holder)
    first.start()
    assert entered.wait(SECONDS)
    others = [threading.Thread(target=other, args=(name,)) for name in "acb"]
    for thread in others:
        thread.start()
    until(lambda: len(share._waiting) == 3, "three waiting")
    holding.set()
    for thread in (first, *others):
        thread.join(SECONDS)
    assert order == ["b", "c", "a"]


def test_what_was_used_long_ago_counts_for_little():
    clock = Clock()
    share = Share(1, clock)
    with share.turn("b"):
        clock.now += 1.0
    with share.turn("a"):  # as learning a target does
        clock.now += 10.0
    share._level("a")
    assert 0 < share._used["a"] - share._used["b"] < 0.5
    assert share.used() == {"a": 10.0, "b": 1.0}


def test_a_round_lets_a_waiting_frame_go_first_and_then_goes_on():
    share, order = Share(1), []
    started, waiting = threading.Event(), threading.Event()

    def learner() -> None:
        with share.turn("a"):
            started.set()
            assert waiting.wait(SECONDS)
            share.between()
            order.append("round goes on")

    def looker() -> None:
        with share.turn("b"):
            order.append("frame")

    learning, looking = threading.Thread(target=learner), threading.Thread(target=looker)
    learning.start()
    assert started.wait(SECONDS)
    looking.start()
    until(lambda: share._waiting, "a frame that waits")
    waiting.set()
    learning.join(SECONDS)
    looking.join(SECONDS)
    assert order == ["frame", "round goes on"]
    share.between()  # in a thread without a turn: nothing


def test_rounds_are_not_starved():
    """A round that has let every other stream pass once ranks before frames."""
    share = Share(1)
    share._used.update(a=0.0, b=5.0)
    from streamdrop.service.share import FRAME, ROUND, _Waiter

    waiter, frame = _Waiter("b", ROUND), _Waiter("a", FRAME)
    assert share._rank(frame) < share._rank(waiter)
    waiter.passed = 1
    assert share._rank(waiter) < share._rank(frame)


def test_every_optimiser_step_is_a_place_to_yield_and_may_interrupt():
    import torch

    share, parameter = Share(1), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    parameter.grad = torch.ones(1)

    def stop() -> None:
        raise StreamError("enough")

    with watch_rounds(share):
        with pytest.raises(StreamError), share.turn("a", stop):
            optimizer.step()
        with share.turn("a"):
            optimizer.step()
    with share.turn("a", stop):
        optimizer.step()  # nobody watches any more
    assert share._busy == 0


# -------------------------------------------------------------------- what clients may name


def test_sources_inside_the_roots_are_permitted(tmp_path):
    root = tmp_path / "root"
    make_folder(root / "images", 2)
    make_video(root / "a.mp4", 2)
    assert permitted_source(str(root / "a.mp4"), [str(root)]) == str(root / "a.mp4")
    assert permitted_source(str(root / "images" / ".." / "images"), [str(root)]) == str(root / "images")
    assert permitted_source("3", [3]) == 3
    assert permitted_source("rtsp://u:p@cam/one/a", ["rtsp://cam/one/"]) == "rtsp://u:p@cam/one/a"


def test_nothing_else_is(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    make_folder(root / "images", 2)
    make_folder(outside, 2)
    make_video(outside / "a.mp4", 2)
    (root / "list.mp4").write_bytes(b"#EXTM3U\n/etc/passwd\n")
    (root / "list.m3u8").write_bytes(b"#EXTM3U\n")
    (root / "note.txt").write_text("hello")
    (root / "link.mp4").symlink_to(outside / "a.mp4")
    (root / "linked").symlink_to(outside)
    (root / "images" / "img_00009.png").symlink_to(outside / "img_00001.png")
    roots = [str(root), "rtsp://cam/one/", 3]
    sources = [
        *("/etc/passwd", str(outside / "a.mp4"), f"{root}/../outside/a.mp4", str(root / "missing.mp4"), ""),
        *(str(root / name) for name in ("list.mp4", "list.m3u8", "note.txt", "link.mp4", "linked", "images")),
        *(f"{root}/images/*.png", f"{root}/images/img_%05d.png", "a\0b", "x" * 5000, f"{root}x"),
        *("file:///etc/passwd", "concat:/etc/passwd", "http://cam/one/a", "rtsp://cam/two", "rtsp://cam.evil/one/"),
        *("rtsp://cam:99/one/", "rtsp://cam/one/../two", "rtsp://cam@evil/one/", 4, "0"),
        *("rtsp://[cam/one/", "rtsp://cam:99999/one/", "rtsp://cam:x/one/", "rtsp://cam/one/%2e%2e/two"),
    ]
    for source in sources:
        with pytest.raises(ConfigError, match="they may name"):
            permitted_source(source, roots)
    with pytest.raises(ConfigError, match="set roots"):
        permitted_source(str(root / "a.mp4"), [])
    with pytest.raises(ConfigError, match="they may name"):
        permitted_source("rtsp://cam/one/a", ["rtsp://[cam/one/"])


def test_a_refusal_holds_no_secret(tmp_path):
    with pytest.raises(ConfigError) as caught:
        permitted_source("rtsp://me:secret@cam/x?key=1", [])
    assert "secret" not in str(caught.value)
    assert Path(tmp_path).exists()


def test_the_live_view_shows_the_newest_picture_and_encodes_it_once():
    pictures = Pictures()

    def look():
        shown = pictures.live()  # nobody holds on to the picture: the next may lie where it lay
        assert pictures.encoded() is shown
        return shown.number, shown.data

    for number in range(6):
        image = np.full((8, 8, 3), 40 * number, np.uint8)
        pictures.put(number, image, [])
        if number % 2 == 0:
            shown = look()
            assert shown == (number, encode(image))
            assert look()[1] is shown[1]
