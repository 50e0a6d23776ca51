"""``streamdrop track`` with several boxes: files for each target and for all, resumed, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamdrop.boxes import iou
from streamdrop.cli import main
from streamdrop.streams import VideoWriter, open_stream
from streamdrop.testing.targets import moving_squares

QUICK = ("search.size=128", "first_frame.crops=8", "first_frame.steps=12", "first_frame.batch=6", "update.every=3",
         "update.steps=2", "box.samples=100", "drop.steps=2")  # fmt: skip
SET = [part for text in QUICK for part in ("--set", text)]
FRAMES = 10


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[list[str]], list[Any]]:
    """A short clip of two targets: its path, their ``--box`` arguments, their boxes by frame."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    images, boxes = moving_squares(FRAMES, count=2)
    with VideoWriter(path, 25, (160, 120)) as writer:
        for image in images:
            writer.write(image)
    return str(path), [["--box", ",".join(f"{v:g}" for v in one[0])] for one in boxes], boxes


def run(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    status = main([str(one) for one in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_for_each_target_and_for_all(clip, tmp_path, capsys):
    source, (one, two), boxes = clip
    for key, found in enumerate(boxes, 1):
        np.savetxt(tmp_path / f"truth{key}.txt", found, "%g", ",")
    status, out, err = run(
        capsys, "track", source, *one, *two, "--boxes", tmp_path / "b.txt", "--mot", tmp_path / "mot.txt",
        "--events", tmp_path / "e.jsonl", "--output", tmp_path / "o.mp4", "--report", tmp_path / "r.html",
        "--truth", tmp_path / "truth1.txt", "--truth", tmp_path / "truth2.txt", *SET,
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "10 frames, 2 targets" in out
    assert "target 2: 10 frames, 0 of them lost" in out
    told = [line.split(": ")[1] for line in out.splitlines() if line.startswith(("boxes: ", "report: "))]
    assert told == [str(tmp_path / name) for name in ("b.1.txt", "b.2.txt", "r.html", "r.1.html", "r.2.html")]
    assert not (tmp_path / "b.txt").exists()
    for key in (1, 2):
        found = np.loadtxt(tmp_path / f"b.{key}.txt", delimiter=",")
        assert iou(found, boxes[key - 1]).min() > 0.4
    mot = np.loadtxt(tmp_path / "mot.txt", delimiter=",")
    assert sorted(zip(mot[:, 0], mot[:, 1], strict=True)) == [(f, k) for f in range(1, FRAMES + 1) for k in (1, 2)]
    assert mot[0, 2:6] == pytest.approx([boxes[0][0].x + 1, boxes[0][0].y + 1, 20, 20])
    events = lines(tmp_path / "e.jsonl")
    assert [(e["frame"], e["target"]) for e in events if "frame" in e] == [
        (f, k) for f in range(FRAMES) for k in (1, 2)
    ]
    assert {event["target"] for event in events if "round" in event} == {1, 2}
    with open_stream(str(tmp_path / "o.mp4")) as stream:
        assert len(list(stream)) == FRAMES
    page = (tmp_path / "r.html").read_text()
    assert 'href="r.1.html"' in page
    assert "overlap (AO)" in page
    assert "<html" in (tmp_path / "r.2.html").read_text()


def test_no_file_of_a_target_is_written_over_another(clip, tmp_path, capsys):
    source, (one, two), _ = clip
    (tmp_path / "truth.txt").write_text("1,1,2,2\n")
    for outputs in (("--boxes", "b.txt", "--mot", "b.2.txt"), ("--boxes", "b.txt", "--truth", "b.1.txt")):
        named = [tmp_path / part if "." in part else part for part in outputs]
        truths = ("--truth", tmp_path / "truth.txt") if "--truth" in outputs else ()
        status, _, err = run(capsys, "track", source, *one, *two, *named, *truths, *SET)
        assert (status, "written over" in err) == (2, True)


def test_one_target_s_files_have_no_ids_but_in_mot(clip, tmp_path, capsys):
    source, (one, _), _ = clip
    names = ("--boxes", tmp_path / "b.txt", "--mot", tmp_path / "mot.txt", "--events", tmp_path / "e.jsonl")
    assert run(capsys, "track", source, *one, *names, *SET)[0] == 0
    assert (tmp_path / "b.txt").exists()
    assert not any("target" in event for event in lines(tmp_path / "e.jsonl"))
    mot = np.loadtxt(tmp_path / "mot.txt", delimiter=",", ndmin=2)
    assert set(mot[:, 1]) == {1}


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_boxes(clip, tmp_path, capsys, monkeypatch):
    source, (one, two), _ = clip
    track = ("track", source, *one, *two, *SET)
    assert run(capsys, *track, "--boxes", tmp_path / "whole.txt")[0] == 0
    monkeypatch.setattr("streamdrop.service.track_run.CHECKPOINT_SECONDS", 0.0)
    from streamdrop.tracking import Targets

    update, seen = Targets.update, []

    def stop(self: Targets, image: Any) -> Any:
        seen.append(image)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return update(self, image)

    monkeypatch.setattr(Targets, "update", stop)
    stored = (*track, "--store", tmp_path / "run", "--boxes", tmp_path / "b.txt")
    assert run(capsys, *stored)[0] == 130
    monkeypatch.setattr(Targets, "update", update)
    status, _, err = run(capsys, *stored)
    assert (status, "--resume" in err) == (1, True)
    status, _, err = run(capsys, "track", source, *one, *SET, "--store", tmp_path / "run", "--resume")
    assert (status, "another box" in err) == (1, True)
    status, _, err = run(capsys, *stored, "--resume")
    assert status == 0
    assert "going on after 6 frames" in err
    for key in (1, 2):
        assert (tmp_path / f"b.{key}.txt").read_bytes() == (tmp_path / f"whole.{key}.txt").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--truth", "a", "--truth", "b", "--truth", "c"], 2, "one for each --box"),
        (["--truth", "a"], 2, "one for each --box"),
        (["--box", "900,0,5,5"], 1, "outside"),
        (["--box", "1,1,5"], 2, "four"),
        (["--set", "targets.most=1"], 2, "targets.most is 1"),
        (["--fps", "25"], 2, "realtime.fps"),
        (["--boxes", "/nowhere/b.txt"], 1, "b.1.txt"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(clip, tmp_path, capsys, arguments, status, words):
    source, (one, two), _ = clip
    found, out, err = run(capsys, "track", source, *one, *two, "--events", tmp_path / "e.jsonl", *arguments, *SET)
    assert (found, out) == (status, "")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "e.jsonl").exists() or not (tmp_path / "e.jsonl").read_text()
