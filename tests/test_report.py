"""The report of a run: self-contained, complete, whatever is missing."""

import re
from dataclasses import replace

import numpy as np
import pytest
from test_evaluation_protocol import REPORT

from streamdrop.boxes import Box
from streamdrop.errors import DataError, OutputError
from streamdrop.evaluation.figures import Line, line_chart, nice_ticks, stacked_bars, thin
from streamdrop.evaluation.pictures import KeyFrames, encode
from streamdrop.evaluation.report import lost_spans, write_report
from streamdrop.types import Track

IMAGE = np.full((48, 64, 3), 90, np.uint8)


def make_tracks(count=30, lost=(), rounds=True):
    return [
        Track(
            i,
            Box(5 + i / 10, 6, 20, 10),
            0.8,
            i in lost,
            ms=900.0 if i == 0 else 20.0,
            report=replace(REPORT, round=i // 5, cut=i // 10, next_cut=i // 10)
            if rounds and i and i % 5 == 0
            else None,
        )
        for i in range(count)
    ]


def write(tmp_path, **changes):
    given = {"tracks": make_tracks(), "source": "clip.mp4", "key_frames": {0: IMAGE, 10: IMAGE}} | changes
    write_report(tmp_path / "report.html", **given)
    return (tmp_path / "report.html").read_text()


def test_the_page_needs_nothing_else(tmp_path):
    page = write(tmp_path, truth=np.tile([5.0, 6, 20, 10], (30, 1)))
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert not re.findall(r"https?://|url\(|@import|<link", page)
    assert page.count("data:image/jpeg;base64,") == 2


def test_the_page_shows_every_part(tmp_path):
    page = write(tmp_path, tracks=make_tracks(lost={12, 13}), truth=np.tile([5.0, 6, 20, 10], (30, 1)), layers=9)
    for text in ("Key frames", "Score", "Overlap with the truth", "Cut: layers dropped", "Milliseconds per frame"):
        assert text in page
    for text in ("Milliseconds per round", "Loss", "clip.mp4", "AUC", "Lost", "2 of 9", 'class="shade"'):
        assert text in page


def test_a_run_without_truth_and_rounds_says_so_and_has_no_such_charts(tmp_path):
    page = write(tmp_path, tracks=make_tracks(rounds=False))
    assert "the model was not updated" in page
    assert "Overlap with the truth" not in page
    assert "Milliseconds per round" not in page


def test_one_frame_is_enough(tmp_path):
    assert "frame 0" in write(tmp_path, tracks=make_tracks(1))


def test_text_from_outside_is_escaped(tmp_path):
    assert "<b>x</b>" not in write(tmp_path, source="<b>x</b>.mp4", title="<b>x</b>", hardware="<b>x</b>")


def test_truth_may_end_early_and_hold_nan(tmp_path):
    truth = np.tile([5.0, 6, 20, 10], (12, 1))
    truth[3] = np.nan
    assert "AUC" in write(tmp_path, truth=truth)
    assert "AUC" not in write(tmp_path, truth=np.full((30, 4), np.nan))


def test_what_cannot_be_reported_is_refused(tmp_path):
    with pytest.raises(DataError, match="no tracks"):
        write(tmp_path, tracks=[])
    with pytest.raises(DataError, match=r"truth of shape \(4,\)"):
        write(tmp_path, truth=[1, 2, 3, 4])
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(tmp_path / "nowhere" / "r.html", make_tracks(), source="x", key_frames={})


def test_boxes_are_drawn_where_they_are(tmp_path):
    page = write(tmp_path, key_frames={10: IMAGE}, tracks=make_tracks(lost={10}))
    assert 'viewBox="0 0 64 48"' in page
    assert '<rect class="target lost" x="6.0" y="6.0" width="20.0" height="10.0"/>' in page


def test_a_large_frame_is_shrunk_but_keeps_its_own_pixels():
    picture = encode(np.zeros((720, 1280, 3), np.uint8))
    assert (picture.width, picture.height) == (1280, 720)
    assert len(picture.jpeg) < 20_000


@pytest.mark.parametrize("length", [1, 5, 12, 13, 300, 5000])
def test_key_frames_are_spread_over_a_stream_of_any_length(length):
    chosen = KeyFrames(12)
    for i in range(length):
        chosen.offer(Track(i, Box(0, 0, 1, 1), 1.0, False), IMAGE[:4, :4])
    frames = list(chosen.pictures())
    assert len(frames) == min(length, 12)
    assert frames[0] == 0
    assert max(np.diff([*frames, length])) <= max(1, length / 4)


def test_key_frames_hold_the_moments_of_loss_and_return():
    chosen = KeyFrames(12)
    for i in range(500):
        chosen.offer(Track(i, Box(0, 0, 1, 1), 1.0, 203 <= i < 219), IMAGE[:4, :4])
    assert {203, 219} <= set(chosen.pictures())
    assert len(chosen.pictures()) == 12


def test_key_frames_stay_few_when_the_target_flickers():
    chosen = KeyFrames(6)
    for i in range(400):
        chosen.offer(Track(i, Box(0, 0, 1, 1), 1.0, i % 2 == 0), IMAGE[:4, :4])
    assert len(chosen.pictures()) == 6


def test_lost_spans_join_neighbours():
    assert lost_spans(make_tracks(10, lost={0, 3, 4, 9})) == [(-0.5, 0.5), (2.5, 4.5), (8.5, 9.5)]


@pytest.mark.parametrize(
    ("low", "high", "whole", "ticks"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 1, True, [0, 1]),
        (0, 300, False, [0, 100, 200, 300]),
        (0, 0.02, False, [0, 0.005, 0.01, 0.015, 0.02]),
    ],
)
def test_ticks_are_round(low, high, whole, ticks):
    assert nice_ticks(low, high, 5, whole) == ticks


def test_a_long_line_is_thinned_but_keeps_its_extremes():
    y = np.zeros(100_000)
    y[31_415], y[27_182], y[500:600] = 9.0, -9.0, np.nan
    xs, ys = thin(np.arange(100_000), y, 1000)
    assert len(xs) <= 1000
    assert (np.nanmax(ys), np.nanmin(ys)) == (9, -9)
    assert (np.diff(xs) > 0).all()


def test_a_gap_lifts_the_pen_and_flat_data_has_a_range():
    chart = line_chart("t", [Line("a", [0, 1, 2, 3], [1, 1, np.nan, 1])], x_label="x")
    assert re.search(r'd="(M[^M"]+)M[^M"]+"', chart.split('class="line"')[1])
    assert "nan" not in line_chart("t", [Line("a", [0], [0])], x_label="x").lower()
    assert "nan" not in stacked_bars("t", [1], [("a", [0.0], 0)], x_label="x").lower()
    assert "&lt;i&gt;" in line_chart("<i>", [Line("a", [], [])], x_label="x")
