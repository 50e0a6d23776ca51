"""Several tuners on one store: what one has moved, another does not take for its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from streamdrop.engine import FineTuner
from streamdrop.errors import StoreVersionError
from streamdrop.policies import SchedulePolicy
from streamdrop.split import SplitModel
from streamdrop.store import LmdbStore, MemoryStore, TieredStore
from streamdrop.testing.tuners import labelled_batch
from streamdrop.types import Batch

SOME = labelled_batch(8)
BATCH = Batch(SOME.keys, SOME.images, SOME.images)


def alike(seed: int) -> SplitModel:
    """Activations of the same shape at every cut: nothing but the version tells them apart."""
    torch.manual_seed(seed)
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))]
    return SplitModel(nn.Sequential(*layers), BATCH.images[:2])


def tuner_of(split: SplitModel, store: Any, schedule: dict[int, int]) -> FineTuner:
    return FineTuner(
        split,
        loss=functional.mse_loss,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.01),
        policy=SchedulePolicy(schedule),
        store=store,
        batch_size=4,
    )


def store_of(kind: type, folder: Path) -> Any:
    return MemoryStore() if kind is MemoryStore else kind(folder / "store")


@pytest.mark.parametrize("kind", [MemoryStore, LmdbStore, TieredStore])
def test_a_store_moved_above_a_tuners_cut_is_refused(kind: type, tmp_path: Path) -> None:
    split = alike(0)
    with store_of(kind, tmp_path) as store:
        first, second = tuner_of(split, store, {1: 2}), tuner_of(split, store, {})
        first.observe(BATCH)
        second.fit_round()
        for _ in range(2):
            first.fit_round()
        assert store.cut == 2
        weights = [parameter.clone() for parameter in split.model.parameters()]
        for use in (second.fit_round, lambda: second.observe(labelled_batch(2, first=90))):
            with pytest.raises(StoreVersionError, match=r"at cut 2.*from cut 0 on.*a store of its own"):
                use()
        with pytest.raises(StoreVersionError, match="cut 2"):
            next(second.round_by_steps(1, lambda keys, index, generator: keys[:2]))
        assert (second.round, len(store)) == (1, 8)
        assert all(map(torch.equal, weights, split.model.parameters()))
        first.fit_round()  # whose store it is


def test_a_store_moved_by_another_model_is_refused_though_the_cut_is_ones_own() -> None:
    store = MemoryStore()
    first, second = tuner_of(alike(0), store, {1: 2}), tuner_of(alike(1), store, {1: 2})
    first.observe(BATCH)
    first.fit_round()
    second.fit_round()
    first.fit_round()
    assert first.cut == second.cut == store.cut == 2
    with pytest.raises(StoreVersionError, match="other tail weights"):
        second.fit_round()
    first.fit_round()


def test_tuners_that_leave_a_store_where_it_is_may_share_it() -> None:
    store = MemoryStore()
    tuners = [tuner_of(alike(0), store, {1: 1}), tuner_of(alike(0), store, {1: 1})]
    alone = tuner_of(alike(0), MemoryStore(), {1: 1})
    for tuner in (tuners[0], alone):
        tuner.observe(BATCH)
    expected = [alone.fit_round().loss for _ in range(3)]
    for number in range(3):
        assert [tuner.fit_round().loss for tuner in tuners] == [expected[number]] * 2
