"""Data sets as their benchmarks lay them out, on small trees: what is found, what is absent, what is refused."""

import cv2
import numpy as np
import pytest

from streamdrop.errors import DataError
from streamdrop.evaluation.sequences import read_sequence, read_sequences, read_truth

BOX = "4,4,10,8"


def write(folder, truth, place="", frames=None, name="groundtruth.txt", digits=8, **marks):
    """A sequence: frames in ``place``, truth in ``name``, other files by name (``__`` for the dot)."""
    (folder / place).mkdir(parents=True, exist_ok=True)
    for i in range(len(truth) if frames is None else frames):
        cv2.imwrite(str(folder / place / f"{i + 1:0{digits}d}.jpg"), np.full((24, 32, 3), i, np.uint8))
    (folder / name).write_text("\n".join(truth) + "\n")
    for mark, text in marks.items():
        (folder / mark.replace("__", ".")).write_text(text)
    return folder


def absent(sequence):
    return sequence.absent.tolist()


def test_vot_polygons_occlusion_tags_and_unknown_targets(tmp_path):
    truth = ["10,0,20,10,10,20,0,10", "0,0,8,0,4,6", "m4,5,6,7,0,3,2", "0", BOX]
    write(tmp_path / "bag", truth, "color", occlusion__tag="0\n0\n1\n0\n0\n")
    (sequence,) = read_sequences(tmp_path)
    assert (sequence.name, sequence.layout, len(sequence)) == ("bag", "VOT", 5)
    assert sequence.truth[[0, 1, 2, 4]].tolist() == [[0, 0, 20, 20], [0, 0, 8, 6], [4, 5, 6, 7], [4, 4, 10, 8]]
    assert absent(sequence) == [False, False, False, True, False]


def test_vot_of_the_first_years_keeps_frames_beside_the_truth(tmp_path):
    write(tmp_path / "ball", ["1,1,9,1,9,5,1,5"] * 3)
    (sequence,) = read_sequences(tmp_path)
    assert (sequence.layout, sequence.truth[0].tolist()) == ("VOT", [1, 1, 8, 4])


def test_a_line_of_one_nan_is_an_absent_target(tmp_path):
    path = tmp_path / "groundtruth.txt"
    path.write_text(f"{BOX}\nNaN\nnan,nan,nan,nan\n{BOX}\n")
    assert np.isnan(read_truth(path)).all(axis=1).tolist() == [False, True, True, False]


def test_signs_that_look_like_numbers_are_none(tmp_path):
    folder = write(tmp_path / "m²", [BOX] * 2)
    for frame in sorted(folder.glob("*.jpg")):
        frame.rename(folder / f"a1²{frame.name}")
    (folder / "groundtruth_rect.².txt").write_text(BOX)
    (sequence,) = read_sequences(tmp_path)
    assert [frame.name for frame in sequence.frames] == ["a1²00000001.jpg", "a1²00000002.jpg"]


@pytest.mark.parametrize("separator", [",", "\t", " ", ", ", " ,", ";", "\t\t"])
def test_otb_with_any_separator(tmp_path, separator):
    write(tmp_path / "Car4", [separator.join(["4", "4", "10", "8"])] * 3, "img", name="groundtruth_rect.txt", digits=4)
    (sequence,) = read_sequences(tmp_path)
    assert (sequence.layout, sequence.frames[0].name, sequence.first_box) == ("OTB", "0001.jpg", (4, 4, 10, 8))


def test_trailing_separators_and_a_byte_order_mark_are_no_numbers(tmp_path):
    path = tmp_path / "groundtruth_rect.txt"
    path.write_bytes("﻿4,4,10,8,\r\n4\t4\t10\t8\t\r\n".encode())
    assert read_truth(path).tolist() == [[4, 4, 10, 8]] * 2


def test_an_otb_sequence_with_two_targets_becomes_two(tmp_path):
    folder = write(tmp_path / "Jogging", [BOX] * 3, "img", name="groundtruth_rect.1.txt")
    write(folder, ["5,5,9,9"] * 3, "img", name="groundtruth_rect.2.txt")
    one, two = read_sequences(tmp_path)
    assert (one.name, two.name) == ("Jogging-1", "Jogging-2")
    assert (one.first_box, two.first_box) == ((4, 4, 10, 8), (5, 5, 9, 9))
    assert one.frames == two.frames
    with pytest.raises(DataError, match="has several targets"):
        read_sequence(folder)


def test_otb_sequences_whose_truth_speaks_of_some_frames_only(tmp_path):
    write(tmp_path / "Football1", [BOX] * 74, "img", frames=80, name="groundtruth_rect.txt", digits=4)
    write(tmp_path / "Other", [BOX] * 74, "img", frames=80, name="groundtruth_rect.txt", digits=4)
    assert len(read_sequences(tmp_path, ["Football1"])[0]) == 74
    with pytest.raises(DataError, match="74 lines for 80 frames"):
        read_sequences(tmp_path, ["Other"])


def test_got10k_absent_and_fully_covered_targets(tmp_path):
    marks = {"absence__label": "0\n0\n1\n0\n0\n", "cover__label": "8\n8\n0\n0\n1\n", "meta_info__ini": "[METAINFO]\n"}
    write(tmp_path / "val" / "GOT-10k_Val_000001", ["1.0,2.0,3.0,4.0"] * 5, **marks)
    (sequence,) = read_sequences(tmp_path / "val")
    assert sequence.layout == "GOT-10k"
    assert absent(sequence) == [False, False, True, True, False]
    assert np.isnan(sequence.truth[2:4]).all()
    with pytest.raises(DataError, match=r"holds the parts val: give one, .*val"):
        read_sequences(tmp_path)


def test_a_test_set_that_tells_the_first_box_only_has_unknown_truth_not_an_absent_target(tmp_path):
    write(tmp_path / "GOT-10k_Test_000001", [BOX], frames=4, meta_info__ini="[METAINFO]\n")
    (sequence,) = read_sequences(tmp_path)
    assert len(sequence) == 4
    assert np.isnan(sequence.truth[1:]).all()
    assert not sequence.absent.any()


def test_lasot_sorted_by_class_with_occlusion_and_out_of_view(tmp_path):
    marks = {"full_occlusion__txt": "0,1,0,0", "out_of_view__txt": "0,0,0,1", "nlp__txt": "a car"}
    write(tmp_path / "car" / "car-2", [BOX] * 4, "img", **marks)
    write(tmp_path / "airplane" / "airplane-1", [BOX] * 3, "img")
    (tmp_path / "testing_set.txt").write_text("airplane-1\ncar-2\n")
    plane, car = read_sequences(tmp_path)
    assert (plane.name, car.name, car.layout) == ("airplane-1", "car-2", "LaSOT")
    assert absent(car) == [False, True, False, True]


def test_frames_before_the_target_is_seen_are_left_out(tmp_path):
    write(tmp_path / "car-2", [BOX] * 4, "img", out_of_view__txt="1,0,0,1")
    (sequence,) = read_sequences(tmp_path)
    assert (sequence.start, len(sequence), absent(sequence)) == (1, 3, [False, False, True])
    assert sequence.head(2).absent.tolist() == [False, False]


def test_layouts_may_lie_side_by_side(tmp_path):
    write(tmp_path / "a", [BOX] * 2, "color")
    write(tmp_path / "b", [BOX] * 2, "img", name="groundtruth_rect.txt")
    write(tmp_path / "c", [BOX] * 2, absence__label="0\n0\n")
    write(tmp_path / "class" / "d", [BOX] * 2, "img")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / ".cache" / "e" / "color").mkdir(parents=True)
    assert [s.layout for s in read_sequences(tmp_path)] == ["VOT", "OTB", "GOT-10k", "LaSOT"]


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ({"full_occlusion__txt": "0,1"}, r"full_occlusion\.txt marks 2 frames of 3"),
        ({"out_of_view__txt": "0,maybe,0"}, r"out_of_view\.txt: holds something else than one whole number"),
        ({"absence__label": "1\n1\n1\n"}, "no box at all"),
        ({"cover__label": ""}, r"cover\.label: holds something else"),
    ],
)
def test_marks_that_do_not_fit_are_refused(tmp_path, marks, message):
    write(tmp_path / "car-1", [BOX] * 3, "img", **marks)
    with pytest.raises(DataError, match=message):
        read_sequences(tmp_path)


def test_two_sequences_of_one_name_are_refused(tmp_path):
    for kind in ("car", "bus"):
        write(tmp_path / kind / "first", [BOX] * 2, "img")
    with pytest.raises(DataError, match="have one name"):
        read_sequences(tmp_path)


@pytest.mark.parametrize("line", ["1,2,3,4,5", "1,2,3", "m1,2,3", "7"])
def test_a_line_of_the_wrong_length_is_named(tmp_path, line):
    with pytest.raises(DataError, match=r"line 2: . numbers"):
        read_truth(write(tmp_path / "s", [BOX, line], "color") / "groundtruth.txt")
