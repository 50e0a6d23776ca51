"""Videos with several targets, as the MOT challenge lays them out: what is found, what is left out, what is refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from streamdrop.errors import DataError
from streamdrop.evaluation.sequences import read_sequence, read_sequences


def write_video(folder: Path, lines: list[str], frames: int = 6) -> Path:
    """Frames in ``img1``, true boxes in ``gt/gt.txt``."""
    (folder / "img1").mkdir(parents=True)
    (folder / "gt").mkdir()
    for index in range(frames):
        cv2.imwrite(str(folder / "img1" / f"{index + 1:06d}.jpg"), np.full((24, 32, 3), 20 * index, np.uint8))
    (folder / "gt" / "gt.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


def lines(target: int, frames: range, more: str = ",1,1,1") -> list[str]:
    """Boxes that move a pixel a frame, the first at (1, 2) 0-based."""
    return [f"{frame + 1},{target},{frame + 2},3,8,6{more}" for frame in frames]


def test_each_target_is_followed_from_its_first_true_box_to_its_last(tmp_path: Path) -> None:
    write_video(tmp_path / "street", [*lines(7, range(2, 5)), *lines(12, range(6))])
    first, second = read_sequences(tmp_path)
    assert [(s.name, s.video, s.target, s.layout) for s in (second, first)] == [
        ("street-7", "street", 7, "MOT"), ("street-12", "street", 12, "MOT"),
    ]  # fmt: skip
    assert (second.start, [path.stem for path in second.frames]) == (2, ["000003", "000004", "000005"])
    assert second.truth.tolist() == [[3, 2, 8, 6], [4, 2, 8, 6], [5, 2, 8, 6]]
    assert len(first) == 6


def test_gaps_are_frames_in_which_the_target_is_absent(tmp_path: Path) -> None:
    write_video(tmp_path / "street", [*lines(1, range(2)), *lines(1, range(4, 6)), *lines(2, range(6))])
    sequence = read_sequences(tmp_path, ["street-1"])[0]
    assert sequence.absent.tolist() == [False, False, True, True, False, False]
    assert np.isnan(sequence.truth[2:4]).all()


def test_what_is_not_to_be_judged_or_seen_is_left_out(tmp_path: Path) -> None:
    hidden = lines(1, range(6))
    hidden[3] = "4,1,5,3,8,6,1,1,0"
    ignored, brief, flat = lines(2, range(6), ",0,8,1"), lines(3, range(1)), ["1,4,3,3,0,6", "2,4,3,3,0,6"]
    write_video(tmp_path / "street", [*hidden, *ignored, *brief, *flat])
    (sequence,) = read_sequences(tmp_path)  # one target: the video's own name
    assert (sequence.name, sequence.video, sequence.target) == ("street", "street", None)
    assert sequence.absent.tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize("more", ["", ",1", ",1,-1,-1,-1", ",1,1,0.4"])
def test_columns_after_the_box_may_be_missing_or_mean_nothing(tmp_path: Path, more: str) -> None:
    write_video(tmp_path / "street", lines(1, range(6), more))
    assert len(read_sequence(tmp_path / "street")) == 6


def test_the_name_of_a_video_stands_for_all_its_targets_in_order_of_ids(tmp_path: Path) -> None:
    write_video(tmp_path / "street", [*lines(10, range(6)), *lines(9, range(6))])
    write_video(tmp_path / "other", lines(1, range(6)))
    assert [s.name for s in read_sequences(tmp_path, ["street"])] == ["street-9", "street-10"]
    assert [s.name for s in read_sequences(tmp_path, ["street-10", "street"])] == ["street-10", "street-9"]
    with pytest.raises(DataError, match="has several targets"):
        read_sequence(tmp_path / "street")


def test_the_first_frames_are_the_videos_and_leave_out_who_is_not_there_yet(tmp_path: Path) -> None:
    write_video(tmp_path / "street", [*lines(1, range(6)), *lines(2, range(1, 6)), *lines(3, range(3, 6))])
    assert [(s.name, s.start, len(s)) for s in read_sequences(tmp_path, frames=3)] == [
        ("street-1", 0, 3), ("street-2", 1, 2),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"none of the targets in .* is seen twice in the first 2 frames: give more"):
        read_sequences(tmp_path, ["street-3"], frames=2)


def test_parts_are_given_one_by_one(tmp_path: Path) -> None:
    write_video(tmp_path / "train" / "street", lines(1, range(6)))
    assert [s.name for s in read_sequences(tmp_path / "train")] == ["street"]
    with pytest.raises(DataError, match="holds the parts train: give one"):
        read_sequences(tmp_path)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (["1,1,2,3"], "line 1: '1,1,2,3' does not fit: give frame,id,x,y,w,h"),
        (["1,1,2,3,4,here"], "line 1: .* does not fit"),
        (["0,1,2,3,8,6"], "line 1: frame 0, target 1: give frame,id"),
        (["1,1,2,3,8,6"] * 2, "line 2: target 1 has a box in frame 1 already: keep one"),
        (["1,1,2,3,8,6"], "has no target that can be followed"),
        ([], "has no target that can be followed"),
        (["1,1,2,3,8,6", "9,1,2,3,8,6"], "has a box in frame 9 of 6"),
    ],
)
def test_truth_that_cannot_be_used_is_refused(told: list[str], message: str, tmp_path: Path) -> None:
    write_video(tmp_path / "street", told)
    with pytest.raises(DataError, match=message):
        read_sequences(tmp_path)


def test_a_test_set_without_truth_is_refused(tmp_path: Path) -> None:
    (write_video(tmp_path / "street", []) / "gt" / "gt.txt").unlink()
    with pytest.raises(DataError, match=r"gt\.txt is missing: frames in img1/ need it"):
        read_sequences(tmp_path)
