"""The tracker on video it was not made for: clips rendered from other seeds, real sequences where they are at hand."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

import streamdrop as sd
from streamdrop.boxes import centre_distance, iou
from streamdrop.evaluation.protocol import one_pass
from streamdrop.evaluation.sequences import read_sequences
from streamdrop.testing import render_clip

DATA = os.environ.get("STREAMDROP_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="STREAMDROP_DATA is not set: real sequences are not tracked")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5, 6])
def test_a_clip_rendered_from_another_seed(seed):
    clip = list(itertools.islice(render_clip(seed, 300, (480, 360)), 60))
    tracks = list(sd.track([image for image, _ in clip], sd.Tracker(), clip[0][1]))
    seen = [(track.box, box) for track, (_, box) in zip(tracks, clip, strict=True) if box is not None]
    boxes, truth = map(np.array, zip(*seen, strict=True))
    size = np.sqrt(truth[:, 2] * truth[:, 3])
    assert iou(boxes, truth).mean() > 0.4
    assert (centre_distance(boxes, truth) < 0.5 * size).mean() > 0.9
    assert all(np.isfinite(track.box).all() and 0 <= track.score <= 1 for track in tracks)
    assert sum(track.report is not None for track in tracks) > 3


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["crossing", "bike"])
def test_the_beginning_of_a_real_sequence(name):
    (sequence,) = read_sequences(Path(DATA or "") / "sequences", [name], 40)
    run = one_pass(sd.Tracker(), sequence)
    overlaps = iou(np.array(run.boxes), sequence.truth)
    assert np.nanmean(overlaps) > 0.5
