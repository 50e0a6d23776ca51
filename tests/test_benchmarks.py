"""The parts of benchmarks that claims rest on: changed frames and backbones, verdicts, the long video."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from streamdrop.errors import DataError
from streamdrop.evaluation.sequences import VideoSequence
from streamdrop.testing.targets import moving_square

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # not a package: its programs import their parts so

import conditions
import jumps
import long_video
import played
from conditionbench import backbones, verdicts
from conditionbench.frames import FRAMES, Seen, changed

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.mark.parametrize("name", FRAMES)
def test_a_condition_changes_every_frame_and_gives_the_same_one_again(name: str) -> None:
    kept = IMAGE.copy()
    seen = changed(FRAMES[name], IMAGE, "bag", 3)
    assert (seen.shape, seen.dtype) == (IMAGE.shape, np.uint8)
    assert np.array_equal(seen, changed(FRAMES[name], IMAGE, "bag", 3))
    assert np.array_equal(seen, IMAGE) == (name == "plain")
    assert np.array_equal(IMAGE, kept)


@pytest.mark.parametrize("name", ["low light", "noise", "thermal"])
def test_chance_differs_from_frame_to_frame_and_between_sequences(name: str) -> None:
    seen = changed(FRAMES[name], IMAGE, "bag", 3)
    assert not np.array_equal(seen, changed(FRAMES[name], IMAGE, "bag", 4))
    assert not np.array_equal(seen, changed(FRAMES[name], IMAGE, "ball1", 3))


def test_conditions_do_what_their_names_say() -> None:
    grey = changed(FRAMES["grey"], IMAGE, "a", 0)
    assert np.array_equal(grey[..., 0], grey[..., 2])
    assert np.array_equal(changed(FRAMES["inverted"], IMAGE, "a", 0), 255 - IMAGE)
    assert changed(FRAMES["low light"], IMAGE, "a", 0).mean() < 0.5 * IMAGE.mean()
    assert changed(FRAMES["blur"], IMAGE, "a", 0).std() < 0.5 * IMAGE.std()
    assert changed(FRAMES["noise"], np.full_like(IMAGE, 128), "a", 0).std() == pytest.approx(25, abs=1)
    flat = changed(FRAMES["low light"], np.full((64, 64, 3), 255, np.uint8), "a", 0)  # 100 photons: a tenth is chance
    assert flat.mean() == pytest.approx(0.1 ** (1 / 2.2) * 255, rel=0.02)
    assert flat.std() == pytest.approx(flat.mean() * 0.1 / 2.2, rel=0.1)


class _Watcher:
    """Remembers what it is shown."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def init(self, image: Any, box: Any) -> Any:
        self.shown.append(image)

    def update(self, image: Any) -> Any:
        self.shown.append(image)


def test_a_tracker_sees_each_frame_with_its_own_chance_from_any_start() -> None:
    watcher = _Watcher()
    seen = Seen(watcher, FRAMES["noise"], "bag")
    for _ in range(2):
        seen.init(IMAGE, None)  # type: ignore[arg-type]
        seen.update(IMAGE)
    seen.close()
    expected = [changed(FRAMES["noise"], IMAGE, "bag", index) for index in (0, 1, 0, 1)]
    assert all(map(np.array_equal, watcher.shown, expected))


def test_altered_backbones_are_the_same_every_time_and_differ_where_they_say() -> None:
    whole = backbones.read_weights()
    top = backbones.untrained_top(whole)
    differing = {name for name, value in whole.items() if not torch.equal(value, top[name])}
    assert {name.split(".")[1] for name in differing} == {"11", "12", "13"}
    assert all(torch.equal(top[name].flatten().sort()[0], whole[name].flatten().sort()[0]) for name in differing)
    for make in backbones.BACKBONES.values():
        one, other = make(whole), make(whole)
        assert all(torch.equal(one[name], other[name]) for name in whole)


@pytest.mark.slow
def test_statistics_are_those_of_the_pictures() -> None:
    whole = backbones.read_weights()
    crops = backbones.pictures()[:4]
    assert (crops.shape, crops.dtype) == ((4, 256, 256, 3), torch.uint8)
    settled = backbones.settled(whole, crops)
    assert settled.keys() == whole.keys()
    moved = {name for name, value in whole.items() if not torch.equal(value, settled[name])}
    assert {name.rsplit(".")[-1] for name in moved} == {"running_mean", "running_var", "num_batches_tracked"}


def interval(low: float | None, mean: float, high: float | None) -> dict[str, float | None]:
    return {"low": low, "mean": mean, "high": high}


@pytest.mark.parametrize(
    ("gain", "word"),
    [
        (interval(0.005, 0.02, 0.04), "pays"),
        (interval(0.001, 0.004, 0.02), "undecided"),
        (interval(-0.01, 0.02, 0.05), "undecided"),
        (interval(-0.01, 0.0, 0.009), "does not"),
        (interval(0.001, 0.004, 0.008), "does not"),
        (interval(-0.03, -0.02, -0.01), "costs"),
        (interval(None, 0.2, None), "undecided"),
    ],
)
def test_the_verdict_follows_its_rule(gain: dict[str, float | None], word: str) -> None:
    assert verdicts.verdict(gain) == word


def record(name: str, arm: str, seed: int, auc: float) -> dict[str, Any]:
    scores = {"auc": auc, "precision": 1.0, "ao": auc, "sr50": 1.0}
    return {"name": name, "arm": arm, "seed": seed, **scores, "init_s": 2.0, "round_ms": [50.0, 60.0]}


def test_gains_are_taken_on_the_same_sequence_and_seed_only() -> None:
    records = [record(name, "fixed", seed, 0.5) for name in "abc" for seed in (0, 1)]
    records += [record("a", "drop", 0, 0.6), record("b", "drop", 0, 0.61), record("b", "drop", 2, 0.1)]
    rows = {row["arm"]: row for row in verdicts.summarise(records, "fixed")}
    assert "gain" not in rows["fixed"]
    drop = rows["drop"]
    assert (drop["n"], drop["pairs"], drop["verdict"]) == (3, 2, "pays")
    assert drop["gain"]["mean"] == pytest.approx(0.105)
    assert drop["standard_error"] == pytest.approx(0.005)
    text = verdicts.table({"plain": list(rows.values())}, "fixed")
    assert "+0.105 (95 %: +0.041 … +0.169)" in text


def sequence(folder: Path) -> Path:
    images, boxes = moving_square(6)
    (folder / "square" / "color").mkdir(parents=True)
    for index, image in enumerate(images):
        cv2.imwrite(str(folder / "square" / "color" / f"{index:08d}.png"), image[..., ::-1])
    lines = [",".join(map(str, tuple(box))) for box in boxes]
    (folder / "square" / "groundtruth.txt").write_text("\n".join(lines) + "\n")
    return folder


QUICK = ["search.size=128", "first_frame.crops=8", "first_frame.steps=24", "first_frame.batch=6", "box.samples=200"]


@pytest.mark.slow
def test_runs_that_are_known_are_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = str(sequence(tmp_path / "data")), tmp_path / "out"
    settings = [word for setting in QUICK for word in ("--set", setting)]
    own = ["--frames", "4", "--output", str(output), "--conditions", "noise", *settings]
    monkeypatch.setattr(sys, "argv", ["conditions.py", folder, *own, "--arms", "fixed"])
    assert conditions.main() == 0
    first = json.loads((output / "conditions.json").read_text())["runs"]
    monkeypatch.setattr(sys, "argv", ["conditions.py", folder, *own, "--arms", "fixed,drop"])
    assert conditions.main() == 0
    runs = json.loads((output / "conditions.json").read_text())["runs"]
    assert (runs[:1], [run["arm"] for run in runs]) == (first, ["fixed", "drop"])
    assert "undecided" in capsys.readouterr().out  # one pair has no interval


def test_a_long_video_has_no_jump() -> None:
    order = long_video.forth_and_back(5)
    assert order == [0, 1, 2, 3, 4, 3, 2, 1]
    assert np.abs(np.diff(order * 3)).max() == 1


@pytest.mark.slow
def test_loops_of_a_long_video_are_compared(tmp_path: Path) -> None:
    folder = sequence(tmp_path) / "square"
    options = argparse.Namespace(frames=25, set=QUICK)
    with long_video.opened(folder) as opened:
        loops = list(long_video.play(opened, options))
    assert [loop.frames for loop in loops] == [10, 10, 10]
    assert loops[0].auc > 0.5
    assert loops[0].remembered < loops[-1].remembered <= 8 + 40
    found = long_video.drift(loops)
    assert found["auc"] == pytest.approx(loops[2].auc - loops[0].auc)
    assert "MB per 1,000 frames" in long_video.in_words(found)
    assert len(long_video.table(loops).splitlines()) == 5


def test_a_video_is_played_from_its_first_known_box_either_way() -> None:
    truth = np.array([[i, 0, 4, 4] for i in range(9)], float)
    truth[7:] = np.nan
    frames = tuple(Path(f"{i}.jpg") for i in range(9))
    sequence = VideoSequence("a", frames, truth, np.isnan(truth).any(1))
    shown = {play: [int(path.stem) for path in played.played(sequence, play).frames] for play in played.PLAYS}
    assert shown["forwards"] == list(range(9))
    assert shown["backwards"] == [6, 5, 4, 3, 2, 1, 0]
    assert shown["every 3rd"] == [0, 3, 6]
    assert shown["every 2nd backwards"] == [6, 4, 2, 0]
    turned = played.played(sequence, "every 4th backwards")
    assert turned.first_box == (4, 0, 4, 4)
    assert turned.truth[:, 0].tolist() == [4, 0]
    assert not turned.absent.any()
    with pytest.raises(DataError, match="a, backwards: fewer"):
        played.played(sequence.head(1), "backwards")


# ---------------------------------------------------------------- jumps


def strolling(tmp_path: Path, frames: int = 12) -> VideoSequence:
    """A bright square that strolls over a frame of noise, on disk."""
    paths, boxes = [], []
    for index in range(frames):
        image = np.random.default_rng(5).integers(0, 120, (90, 120, 3), np.uint8)
        x, y = 20 + 3 * index, 30 + 2 * index
        image[y : y + 16, x : x + 16] = 250
        paths.append(tmp_path / f"{index}.png")
        cv2.imwrite(str(paths[-1]), image)
        boxes.append([x, y, 16.0, 16.0])
    return VideoSequence("stroll", tuple(paths), np.array(boxes), np.zeros(frames, bool))


def test_the_seam_of_a_jump_cuts_no_true_box_and_boxes_come_back_where_they_belong(tmp_path: Path) -> None:
    sequence = strolling(tmp_path)
    case = jumps.jumping(sequence, 2)
    assert case.starts == (4, 8)
    assert case.shifts[:4] == ((0, 0),) * 4
    assert len(set(case.shifts)) == 3
    assert jumps.apart(case.shifts[4], case.shifts[8], 120, 90) > 0.3

    class Bright:
        """Finds the square, and is wrong where a seam cuts it."""

        def init(self, image: Any, box: Any) -> Any:
            return self.update(image)

        def update(self, image: Any) -> Any:
            rows, columns = np.nonzero(image.min(2) > 240)
            assert (rows.max() - rows.min(), columns.max() - columns.min()) == (15, 15)
            return jumps.Track(0, jumps.Box(float(columns.min()), float(rows.min()), 16.0, 16.0), 1.0, False, 1.0)

    tracker = jumps.Rolled(Bright(), case.shifts)
    images = [cv2.imread(str(path)) for path in sequence.frames]
    tracks = [tracker.init(images[0], None), *(tracker.update(image) for image in images[1:])]
    assert [[t.box.x, t.box.y, t.box.w, t.box.h] for t in tracks] == pytest.approx(sequence.truth)
    tracker.close()


def test_jumps_need_frames_and_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="12 frames are too few for 6 jumps"):
        jumps.jumping(strolling(tmp_path), 6)
    facts = {"name": "a", "seed": 0, "spans": [10, 10], "lost": 3}
    runs = [
        facts | {"arm": "glance", "auc": 0.5, "after": [2, 4]},
        facts | {"arm": "sweep", "auc": 0.25, "after": [None, 3]},
    ]
    lines = [line.split() for line in jumps.table(runs, ["glance", "sweep"]).splitlines()]
    assert lines[2:] == [["glance", "1", "0.500", "100%", "3"], ["sweep", "1", "0.250", "50%", "6.5"]]
