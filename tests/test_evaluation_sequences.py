"""Sequences on disk: what is read, what is refused."""

import math

import cv2
import numpy as np
import pytest

from streamdrop.errors import DataError
from streamdrop.evaluation.sequences import read_sequence, read_sequences, read_truth


def write_sequence(folder, lines, frames=None, suffix=".jpg", digits=8):
    (folder / "color").mkdir(parents=True)
    for i in range(len(lines) if frames is None else frames):
        cv2.imwrite(str(folder / "color" / f"{i + 1:0{digits}d}{suffix}"), np.full((24, 32, 3), i * 10, np.uint8))
    (folder / "groundtruth.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_frames_and_boxes_are_read(tmp_path):
    sequence = read_sequence(write_sequence(tmp_path / "cup", ["1,2,3,4", "1.5 2 3 4", "1\t2\t3\t4", "1, 2, 3, 4"]))
    assert (sequence.name, len(sequence), sequence.start) == ("cup", 4, 0)
    assert sequence.first_box == (1, 2, 3, 4)
    assert sequence.truth[1].tolist() == [1.5, 2, 3, 4]


def test_png_frames_in_the_order_of_their_numbers(tmp_path):
    sequence = read_sequence(write_sequence(tmp_path / "cup", ["1,2,3,4"] * 11, suffix=".png", digits=1))
    assert [p.stem for p in sequence.frames] == [str(i) for i in range(1, 12)]


@pytest.mark.parametrize("absent", ["NaN,NaN,NaN,NaN", "nan nan nan nan", "0,0,0,0", "5,5,-1,4", ",".join(["nan"] * 8)])
def test_an_absent_target_has_no_truth(tmp_path, absent):
    sequence = read_sequence(write_sequence(tmp_path / "cup", ["1,2,3,4", absent, "1,2,3,4"]))
    assert np.isnan(sequence.truth).all(axis=1).tolist() == [False, True, False]


def test_a_polygon_becomes_its_bounding_box(tmp_path):
    path = tmp_path / "groundtruth.txt"
    path.write_text("10,0,20,10,10,20,0,10\n")
    assert read_truth(path).tolist() == [[0, 0, 20, 20]]


def test_a_sequence_starts_at_its_first_true_box(tmp_path):
    sequence = read_sequence(write_sequence(tmp_path / "cup", ["nan,nan,nan,nan"] * 2 + ["1,2,3,4", "5,6,7,8"]))
    assert (sequence.start, len(sequence)) == (2, 2)
    assert sequence.first_box == (1, 2, 3, 4)
    assert sequence.frames[0].stem == "00000003"


def test_a_folder_of_sequences_in_order_chosen_and_shortened(tmp_path):
    for name in ("zebra", "ant"):
        write_sequence(tmp_path / name, ["1,2,3,4"] * 5)
    (tmp_path / "notes").mkdir()
    assert [s.name for s in read_sequences(tmp_path)] == ["ant", "zebra"]
    assert [(s.name, len(s)) for s in read_sequences(tmp_path, ["zebra"], frames=3)] == [("zebra", 3)]


@pytest.mark.parametrize(
    ("lines", "frames", "message"),
    [
        (["1,2,3,4"] * 3, 4, "3 lines for 4 frames"),
        (["1,2,3,4"] * 4, 3, "4 lines for 3 frames"),
        (["1,2,3,4", "1,2,3"], None, "line 2: 3 numbers"),
        (["1,2,3,4", "here"], None, "line 2: 'here' is not numbers"),
        (["1,2,3,4", "", "1,2,3,4"], None, "line 2"),
        (["nan,nan,nan,nan"] * 3, None, "no box at all"),
        (["nan,nan,nan,nan", "1,2,3,4"], None, "nothing to track"),
        ([], 3, "is empty"),
        (["1,2,3,4"], 0, "holds no .jpg or .png"),
    ],
)
def test_a_sequence_that_cannot_be_used_is_refused(tmp_path, lines, frames, message):
    with pytest.raises(DataError, match=message):
        read_sequence(write_sequence(tmp_path / "cup", lines, frames))


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        read_sequences(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no sequence"):
        read_sequences(tmp_path)
    (tmp_path / "cup" / "color").mkdir(parents=True)
    (tmp_path / "cup" / "color" / "1.jpg").touch()
    with pytest.raises(DataError, match=r"groundtruth\.txt is missing"):
        read_sequences(tmp_path)
    (tmp_path / "mug").mkdir()
    (tmp_path / "mug" / "groundtruth.txt").write_text("1,2,3,4\n")
    with pytest.raises(DataError, match="color is missing"):
        read_sequences(tmp_path, ["mug"])


def test_one_sequence_is_not_a_folder_of_sequences(tmp_path):
    with pytest.raises(DataError, match="is one sequence itself: give its parent"):
        read_sequences(write_sequence(tmp_path / "cup", ["1,2,3,4"] * 2))


def test_an_unknown_name_gets_the_nearest_one(tmp_path):
    write_sequence(tmp_path / "jogging-1", ["1,2,3,4"] * 2)
    with pytest.raises(DataError, match="did you mean 'jogging-1'"):
        read_sequences(tmp_path, ["joging-1"])
    with pytest.raises(DataError, match="there are jogging-1"):
        read_sequences(tmp_path, ["zzz"])
    with pytest.raises(DataError, match="no sequence is chosen"):
        read_sequences(tmp_path, [])


def test_one_frame_is_not_enough(tmp_path):
    write_sequence(tmp_path / "cup", ["1,2,3,4"] * 3)
    with pytest.raises(DataError, match="at least 2"):
        read_sequences(tmp_path, frames=1)


def test_a_truth_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "groundtruth.txt"
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(DataError, match="cannot be read"):
        read_truth(path)


def test_nan_in_one_number_is_no_truth(tmp_path):
    path = tmp_path / "groundtruth.txt"
    path.write_text("1,2,nan,4\n")
    assert all(math.isnan(v) for v in read_truth(path)[0])
