"""Kept augmentation: views of a sample are fixed, differ, and a pass trains on one of each."""

from __future__ import annotations

import pytest
import torch

from streamdrop.errors import ConfigError
from streamdrop.evaluation.views import OneViewEach, ViewsConfig, view_key, view_of
from streamdrop.policies import SchedulePolicy
from streamdrop.rounds import generator_of
from streamdrop.testing.tuners import check_drop_equals_freeze, labelled_batch, small_tuner

BATCH = labelled_batch(25)
VIEWS = ViewsConfig(count=3, shift=2, flip=True)


def test_the_first_view_is_the_image_and_others_are_fixed_by_seed_and_key():
    assert view_of(BATCH, 0, VIEWS, 0) is BATCH
    one, again, other = (view_of(BATCH, 1, VIEWS, seed) for seed in (0, 0, 1))
    assert torch.equal(one.images, again.images)
    assert not torch.equal(one.images, other.images)
    assert not torch.equal(one.images, view_of(BATCH, 2, VIEWS, 0).images)
    assert one.images.shape == BATCH.images.shape
    assert one.targets is BATCH.targets
    assert len({*BATCH.keys, *one.keys, *view_of(BATCH, 2, VIEWS, 0).keys}) == 75


def test_a_view_shifts_by_whole_pixels_within_bounds():
    shifted = view_of(BATCH, 1, ViewsConfig(count=2, shift=1), 0).images
    for image, moved in zip(BATCH.images, shifted, strict=True):
        inner = [image[:, 1 + dy : 7 + dy, 1 + dx : 7 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        assert any(torch.equal(moved[:, 1:7, 1:7], part) for part in inner)
    still = view_of(BATCH, 1, ViewsConfig(count=2, shift=0), 0).images
    assert torch.equal(still, BATCH.images)


@pytest.mark.parametrize("options", [{"count": 0}, {"count": 256}, {"shift": -1}])
def test_views_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError, match=r"views\."):
        ViewsConfig(**options)


@pytest.mark.parametrize(("samples", "size"), [(25, 8), (9, 4), (1, 4), (8, 8)])
def test_a_pass_takes_one_view_of_each_sample_in_batches_of_the_same_sizes_as_without(samples, size):
    keys = BATCH.keys[:samples]
    sampler = OneViewEach(keys, 3)
    sampler.size = size
    passes = [[sampler([], i, generator_of(0, r, i)) for i in range(sampler.steps)] for r in (1, 2)]
    assert samples == 1 or passes[0] != passes[1]
    for batches in passes:
        drawn = [key for batch in batches for key in batch]
        assert len(drawn) == samples
        assert all(any(view_key(key, view) in drawn for view in range(3)) for key in keys)
        assert samples == 1 or min(map(len, batches)) > 1


def test_drop_and_freeze_agree_on_views():
    def make(strategy):
        tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 2, 3: 4}), strategy=strategy)
        for view in (1, 2):
            tuner.observe(view_of(BATCH, view, VIEWS, 0))
        sampler = OneViewEach(BATCH.keys, 3)
        sampler.size = 8
        whole = tuner.fit_round
        tuner.fit_round = lambda: whole(steps=sampler.steps, sampler=sampler)
        return tuner

    drop, _ = check_drop_equals_freeze(make, 5)
    assert all(report.samples == 25 and not report.cut_short for report in drop)
    assert drop[1].stored
