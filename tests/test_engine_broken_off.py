"""Rounds that are broken off, as in a notebook: what was due after them is not passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from streamdrop.engine import FineTuner
from streamdrop.policies import Evidence, SchedulePolicy
from streamdrop.split import SplitModel
from streamdrop.testing.tuners import SmallNet, labelled_batch, small_tuner

BATCH = labelled_batch(10)


def broken_off(tuner: FineTuner) -> None:
    """A round that ends in its second batch."""
    loss, left = tuner.loss, [1]

    def failing(*given: Any) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return loss(*given)

    tuner.loss = failing
    with pytest.raises(KeyboardInterrupt):
        tuner.fit_round()
    tuner.loss = loss


@pytest.mark.parametrize("strategy", ["drop", "freeze"])
def test_a_scheduled_cut_follows_the_round_after_one_that_was_broken_off(strategy: str) -> None:
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({2: 1, 3: 2, 6: 4}), batch_size=4, strategy=strategy)
    tuner.fit_round()
    broken_off(tuner)
    broken_off(tuner)
    assert tuner.cut == 0
    assert [tuner.fit_round().next_cut for _ in range(3)] == [2, 2, 4]


def test_a_round_in_pieces_that_was_given_up_counts_as_broken_off() -> None:
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 3}), batch_size=4)
    pieces = tuner.round_by_steps(3, lambda keys, index, generator: keys[:4])
    next(pieces)
    pieces.close()
    assert tuner.fit_round().next_cut == 3


def test_a_policy_of_scores_is_asked_once_of_what_there_is() -> None:
    asked: list[int] = []

    def policy(evidence: Evidence) -> int:
        asked.append(evidence.round)
        return 0

    tuner = small_tuner(batch=labelled_batch(33), policy=policy, batch_size=1, batch_norm="frozen")
    tuner.fit_round()
    broken_off(tuner)
    tuner.fit_round()
    assert asked == [3]


def test_resumed_after_a_round_was_broken_off(tmp_path: Path) -> None:
    policy = SchedulePolicy({2: 3})
    tuner = small_tuner(batch=BATCH, policy=policy, batch_size=4)
    tuner.fit_round()
    broken_off(tuner)
    tuner.save(tmp_path / "checkpoint")
    again = FineTuner.load(
        tmp_path / "checkpoint",
        SplitModel(SmallNet(), BATCH.images[:2]),
        loss=functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.02, 0.9, weight_decay=1e-3),
        policy=policy,
    )
    assert [t.fit_round().next_cut for t in (again, tuner)] == [3, 3]
    assert again.fit_round().loss == tuner.fit_round().loss
