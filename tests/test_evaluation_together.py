"""Several targets of one video in one pass: who is followed when, what is written, what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from small_tracker import SMALL
from test_evaluation_arms import Drifter
from test_evaluation_layouts import write
from test_evaluation_mot import lines, write_video

from streamdrop import Targets
from streamdrop.boxes import Box
from streamdrop.errors import ConfigError
from streamdrop.evaluation.arms import evaluate, group_builder
from streamdrop.evaluation.jobs import Protocols, schedule
from streamdrop.evaluation.sequences import read_sequences, read_truth
from streamdrop.evaluation.together import group_pass, most_at_once
from streamdrop.testing.targets import moving_squares
from streamdrop.types import Image, Track


class Stage:
    """Says of every target that it stays; notes who was on stage in which frame (by the frame's brightness)."""

    def __init__(self, lost: int = 0) -> None:
        self.boxes: dict[int, Box] = {}
        self.notes: list[str] = []
        self.lost, self.closed = lost, False

    def init(self, image: Image, boxes: Mapping[int, Any]) -> dict[int, Track]:
        self.notes.append("init")
        self.boxes = {}
        return {key: self.add(image, box, key) for key, box in boxes.items()}

    def add(self, image: Image, box: Any, key: int) -> Track:
        self.notes.append(f"{self._frame(image)}: +{key}")
        self.boxes[key] = box
        return Track(0, box, 1.0, False)

    def update(self, image: Image) -> dict[int, Track]:
        self.notes.append(f"{self._frame(image)}: {','.join(map(str, sorted(self.boxes)))}")
        return {key: Track(0, box, 0.5, key == self.lost) for key, box in self.boxes.items()}

    def remove(self, key: int) -> None:
        self.notes.append(f"-{key}")
        del self.boxes[key]

    def close(self) -> None:
        self.closed = True

    @staticmethod
    def _frame(image: Image) -> int:
        return round(float(image.mean()) / 20)


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Target 3 in frames 1 … 4, target 5 in frames 0 … 2, target 8 in frames 6 and 7; frame 5 shows nobody."""
    told = [*lines(3, range(1, 5)), *lines(5, range(3)), *lines(8, range(6, 8))]
    write_video(tmp_path / "s" / "street", told, frames=9)
    return tmp_path / "s"


def test_targets_come_in_their_first_true_frame_and_go_after_their_last(street: Path) -> None:
    targets = dict(enumerate(read_sequences(street, ["street"]), 1))
    stage = Stage()
    runs = group_pass(stage, targets, {key: one.first_box for key, one in targets.items()})
    assert stage.notes == [
        "init", "0: +2", "1: 2", "1: +1", "2: 1,2", "-2", "3: 1", "4: 1", "-1", "6: +3", "7: 3",
    ]  # fmt: skip
    assert {key: len(run.boxes) for key, run in runs.items()} == {1: 4, 2: 3, 3: 2}
    assert runs[1].boxes[0].tolist() == [2, 2, 8, 6]
    assert runs[1].ms[1] == runs[2].ms[2]  # frame 2 took both the same
    assert most_at_once(list(targets.values())) == 2


def test_results_and_files_carry_the_ids(street: Path, tmp_path: Path) -> None:
    stages: list[Stage] = []

    def group(arm: str, seed: int) -> Stage:
        stages.append(Stage(lost=1))
        return stages[-1]

    write(street / "cup", ["4,4,10,8"] * 3, "color")
    out = tmp_path / "out"
    formats = ["mot", "got10k"]
    evaluate(
        street,
        ["drop"],
        output=out,
        together=True,
        build=lambda *_: Drifter(0, False),
        build_group=group,
        formats=formats,
    )
    results = json.loads((out / "results.json").read_text())
    assert [(r["name"], r["video"], r["target"], r["start"], r["frames"]) for r in results["sequences"]] == [
        ("cup", "cup", None, 0, 3), ("street-3", "street", 3, 1, 4), ("street-5", "street", 5, 0, 3),
        ("street-8", "street", 8, 6, 2),
    ]  # fmt: skip
    assert [stage.closed for stage in stages] == [True]
    assert results["settings"]["together"] is True
    assert np.isnan(read_truth(out / "drop" / "street-3_0.txt")[0]).all()
    assert (out / "got10k" / "drop" / "street-8" / "street-8_001.txt").is_file()
    assert (
        (out / "mot" / "drop_0" / "data" / "cup.txt").read_text().startswith("1,1,5.0,5.0,10.0,8.0,1.0000,-1,-1,-1\n")
    )
    assert (out / "mot" / "drop_0" / "data" / "street.txt").read_text().splitlines() == [
        "1,5,2.0,3.0,8.0,6.0,1.0000,-1,-1,-1",  # target 3 is lost after its first frame
        "2,3,3.0,3.0,8.0,6.0,1.0000,-1,-1,-1", "2,5,2.0,3.0,8.0,6.0,0.5000,-1,-1,-1",
        "3,5,2.0,3.0,8.0,6.0,0.5000,-1,-1,-1",
        "7,8,8.0,3.0,8.0,6.0,1.0000,-1,-1,-1", "8,8,8.0,3.0,8.0,6.0,0.5000,-1,-1,-1",
    ]  # fmt: skip
    assert "street-5" in (out / "report.html").read_text()


def test_without_together_each_target_has_a_run_of_its_own(street: Path, tmp_path: Path) -> None:
    results = evaluate(street, ["drop"], output=tmp_path / "out", build=lambda *_: Drifter(0, False), formats=["mot"])
    assert [r["target"] for r in results["sequences"]] == [3, 5, 8]
    ids = [line.split(",")[1] for line in (tmp_path / "out/mot/drop_0/data/street.txt").read_text().splitlines()]
    assert ids == ["5", "3", "5", "3", "5", "3", "3", "8", "8"]


def test_rivals_follow_one_target_at_a_time(street: Path) -> None:
    jobs = schedule(read_sequences(street), ["drop", "none"], ["csrt"], [0], Protocols(perturb=1, together=True))
    told = [(job.arm, job.sequence.name, len(job.targets), job.variant) for job in jobs]
    assert told[:4] == [
        (arm, "street-3", 3, variant)
        for variant, arms in ((0, ("drop", "none")), (1, ("none", "drop")))
        for arm in arms
    ]
    assert told[4:] == [("csrt", f"street-{key}", 0, variant) for key in (3, 5, 8) for variant in (0, 1)]
    assert str(jobs[0]) == "street, 3 targets, drop, seed 0"
    assert jobs[0].frames == 7


def test_numbered_truth_of_otb_is_followed_together_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "s" / "Jogging", ["4,4,10,8"] * 3, "img", name="groundtruth_rect.1.txt")
    write(folder, ["5,5,9,9"] * 3, "img", name="groundtruth_rect.2.txt")
    stage = Stage()
    results = evaluate(
        tmp_path / "s", ["drop"], output=tmp_path / "out", together=True, build=lambda *_: Drifter(0, False),
        build_group=lambda *_: stage,
    )  # fmt: skip
    assert [(r["name"], r["target"], r["auc"]) for r in results["sequences"]] == [
        ("Jogging-1", 1, pytest.approx(20 / 21, abs=1e-6)), ("Jogging-2", 2, pytest.approx(20 / 21, abs=1e-6)),
    ]  # fmt: skip


def test_what_cannot_be_followed_together_is_refused(street: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"targets together, and real time: .* leave one out"):
        evaluate(street, ["drop"], output=out, together=True, realtime=25)
    with pytest.raises(ConfigError, match=r"2 targets, targets\.most is 1: raise it"):
        evaluate(street, ["drop"], output=out, together=True, overrides=["targets.most=1"])
    with pytest.raises(ConfigError, match="give build_group too"):
        evaluate(street, ["drop"], output=out, together=True, build=lambda *_: Drifter(0, False))
    assert not out.exists()


@pytest.mark.slow
def test_the_tracker_follows_two_squares_one_of_which_comes_later(tmp_path: Path) -> None:
    images, boxes = moving_squares(10)
    folder = tmp_path / "s" / "squares"
    (folder / "img1").mkdir(parents=True)
    (folder / "gt").mkdir()
    for index, image in enumerate(images):
        cv2.imwrite(str(folder / "img1" / f"{index + 1:06d}.png"), image[..., ::-1])
    spans = {1: range(10), 2: range(3, 9)}
    told = [
        f"{i + 1},{key},{boxes[key - 1][i].x + 1},{boxes[key - 1][i].y + 1},20,20" for key in spans for i in spans[key]
    ]
    (folder / "gt" / "gt.txt").write_text("\n".join(told))
    results = evaluate(tmp_path / "s", ["drop"], output=tmp_path / "out", config=SMALL, together=True)
    assert [(r["target"], r["frames"]) for r in results["sequences"]] == [(1, 10), (2, 6)]
    assert all(r["ao"] > 0.6 for r in results["sequences"])
    assert sum(r["rounds"] for r in results["sequences"]) > 2
    build = group_builder(SMALL, [], read_sequences(tmp_path / "s"))
    tracker = build("none", 4)
    assert isinstance(tracker, Targets)
    assert (tracker.config.strategy, tracker.config.seed) == ("none", 4)
