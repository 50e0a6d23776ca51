"""The sample data: as the script renders it, with truth that fits."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import streamdrop as sd
from streamdrop.boxes import Box
from streamdrop.testing.scenes import CLASSES, FPS, PAN, drift_stream, hiding_place, plan, render_clip

SAMPLES = Path(__file__).parent.parent / "data_samples"


def truth() -> np.ndarray:
    return np.loadtxt(SAMPLES / "clip.txt", delimiter=",")


def test_the_clip_is_what_it_should_be() -> None:
    stream = sd.open_stream(SAMPLES / "clip.mp4")
    assert (stream.fps, stream.size, stream.length) == (25.0, (480, 360), 300)
    boxes = truth()
    assert boxes.shape == (300, 4)
    hidden = np.flatnonzero(np.isnan(boxes[:, 0]))
    assert 12 <= len(hidden) <= 20, "hidden for about 0.6 s"
    assert (np.diff(hidden) == 1).all(), "hidden once"
    assert hidden[0] > 50
    seen = boxes[~np.isnan(boxes[:, 0])]
    assert (seen[:, :2] >= 0).all()
    assert (seen[:, 0] + seen[:, 2] <= 480).all()
    assert (seen[:, 1] + seen[:, 3] <= 360).all()
    area = np.sqrt(seen[:, 2] * seen[:, 3])
    assert area.max() / area.min() > 1.8, "the scale changes"
    assert np.nanmax(np.abs(np.diff(boxes[:, :2] + boxes[:, 2:] / 2, axis=0))) < 20


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in SAMPLES.iterdir()) < 3e6


@pytest.mark.slow
def test_rendering_again_gives_the_clip_in_the_repository() -> None:
    rendered = islice(render_clip(0, 300, (480, 360)), 5)
    for (image, box), sample, line in zip(rendered, sd.open_stream(SAMPLES / "clip.mp4"), truth(), strict=False):
        assert np.abs(image.astype(float) - sample.image).mean() < 9, "codec"
        assert box == pytest.approx(Box(*line), abs=1.01)


def test_a_clip_depends_on_its_seed_alone() -> None:
    one, same, other = (list(islice(render_clip(seed, 40, (160, 120)), 2)) for seed in (5, 5, 6))
    assert (one[1][0] == same[1][0]).all()
    assert one[1][1] == same[1][1]
    assert not (one[1][0] == other[1][0]).all()
    assert one[0][0].dtype == np.uint8
    assert one[0][0].shape == (120, 160, 3)
    assert one[0][1] is not None


def test_other_seeds_hide_the_target_once_and_show_it_first() -> None:
    for seed in range(1, 9):
        route, (when, radius) = plan(np.random.default_rng(seed), PAN * np.arange(300) / FPS, (480, 360))
        assert 60 < when < 240
        assert radius < 110
        assert hiding_place(route)[2] > 0


def test_the_drifting_stream_in_the_repository() -> None:
    stream = sd.open_stream(SAMPLES / "drift.npz", batch_size=500)
    batches = list(stream)
    assert stream.length == 2000
    labels = np.concatenate([b.targets.numpy() for b in batches])
    assert (np.bincount(labels, minlength=len(CLASSES)) > 150).all()
    means = [b.images.mean().item() for b in batches]
    assert means == sorted(means, reverse=True), "the light fades"
    assert means[0] - means[-1] > 0.1


def test_drift_is_rendered_again_the_same() -> None:
    images, labels = drift_stream(3, 20)
    again, _ = drift_stream(3, 20)
    assert (images == again).all()
    assert images.shape == (20, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (20,)
    assert not (drift_stream(4, 20)[0] == images).all()
