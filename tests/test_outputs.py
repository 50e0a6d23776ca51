"""The files of a run where one cannot be written, or the run is refused: the others are whole, old ones stay."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamdrop.boxes import Box
from streamdrop.errors import OutputError
from streamdrop.service.group_recorder import GroupRecorder
from streamdrop.service.lines import Lines
from streamdrop.service.recorder import Recorder
from streamdrop.streams import open_stream
from streamdrop.types import Track

FRAMES = [np.full((24, 32, 3), value, np.uint8) for value in (40, 80, 120)]
TRACK = Track(0, Box(4.0, 5.0, 6.0, 7.0), 1.0, False)


def test_a_file_begins_anew_with_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "boxes.txt"
    path.write_text("an earlier, longer result\n")
    lines = Lines(path)
    assert path.read_text() == "an earlier, longer result\n"
    lines.write("one\n")
    assert path.read_text() == "one\n"
    lines.write("two\n")
    lines.close()
    lines.close()
    assert path.read_text() == "one\ntwo\n"


def test_a_file_without_a_line_is_not_there_and_one_that_was_there_stays(tmp_path: Path) -> None:
    old = tmp_path / "old.txt"
    old.write_text("old")
    for path in (old, tmp_path / "new.txt"):
        Lines(path).close()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.txt", "old")]


def test_a_file_that_is_open_already_is_written_to_as_it_is() -> None:
    file = io.StringIO("before ")
    file.seek(0, io.SEEK_END)
    Lines(file).write("after")
    assert file.getvalue() == "before after"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_what_cannot_be_written_is_named_and_the_other_outputs_are_whole(tmp_path: Path) -> None:
    video, report, events = (tmp_path / name for name in ("out.mp4", "out.html", "out.jsonl"))
    recorder = Recorder(open_stream(FRAMES), mot="/dev/full", events=events, video=video, report=report)
    with recorder:
        frames = iter(recorder)
        for _ in range(2):  # lost ones leave no line in a file of MOT's
            next(frames)
            recorder.add(replace(TRACK, lost=True))
        next(frames)
        with pytest.raises(OutputError, match=r"/dev/full: cannot be written .*free some space"):
            recorder.add(TRACK)
    assert len(events.read_text().splitlines()) == 2
    assert len(list(open_stream(video))) == 2
    assert "</html>" in report.read_text()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("group", [False, True], ids=["one target", "two"])
def test_a_recorder_that_is_refused_leaves_everything_as_it_was(group: bool, tmp_path: Path) -> None:
    old = {name: tmp_path / name for name in ("boxes.txt", "boxes.1.txt", "mot.txt")}
    for path in old.values():
        path.write_text("earlier")
    outputs = {"boxes": tmp_path / "boxes.txt", "mot": old["mot.txt"], "events": tmp_path / "e.jsonl"}
    stream = open_stream(FRAMES)
    for wrong in ({"video": tmp_path / "out.unknown"}, {"report": tmp_path / "no" / "r.html"}):
        with pytest.raises(OutputError):
            Recorder(stream, **outputs, **wrong) if not group else GroupRecorder(stream, [1, 2], **outputs, **wrong)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(old)
    assert {path.read_text() for path in old.values()} == {"earlier"}
