"""A split model that was copied, pickled, or whose model was changed after the split."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from streamdrop.errors import CheckpointError, ModelError, StoreError
from streamdrop.policies import SchedulePolicy
from streamdrop.split import SplitModel
from streamdrop.store import LmdbStore, TieredStore
from streamdrop.testing.tuners import SmallNet, labelled_batch, small_tuner

BATCH = labelled_batch(6)


def small_split() -> SplitModel:
    torch.manual_seed(0)
    split = SplitModel(SmallNet(), BATCH.images[:2])
    split.head(2)  # a piece that is there already
    return split


def pickled(split: SplitModel) -> SplitModel:
    made: SplitModel = pickle.loads(pickle.dumps(split))
    return made


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_parts_the_copied_models_own_parameters(copied: Callable[[SplitModel], SplitModel]) -> None:
    split = small_split()
    other = copied(split)
    assert other.model is not split.model
    for cut in range(len(split.layers)):
        assert list(other.tail_parameters(cut)) == list(split.tail_parameters(cut))
        assert list(other.head_parameters(cut)) == list(split.head_parameters(cut))
        assert other.version(cut) == split.version(cut)
    own = {id(parameter) for parameter in other.model.parameters()}
    assert {id(p) for p in (*other.tail(2).parameters(), *other.head(2).parameters())} == own
    with torch.no_grad():
        other.model.stem[0].weight.mul_(2.0)  # type: ignore[index,operator]
        stored = other.tail(2).eval()(BATCH.images)
        assert torch.equal(other.head(2).eval()(stored), other.model.eval()(BATCH.images))
        assert not torch.equal(stored[0], split.tail(2).eval()(BATCH.images)[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_tuner_of_a_copy_drops_as_one_of_the_original(copied: Callable[[SplitModel], SplitModel]) -> None:
    split = small_split()
    tuners = [
        small_tuner(s.model, batch=BATCH, policy=SchedulePolicy({1: 3}), batch_size=3) for s in (copied(split), split)
    ]
    losses = [[tuner.fit_round().loss for _ in range(3)] for tuner in tuners]
    assert losses[0] == losses[1]
    assert tuners[0].store.version == tuners[1].store.version


def assigned(model: nn.Module) -> None:
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)


def replaced(model: nn.Module) -> None:
    model.linear = nn.Linear(8, 7)


def parametrised(model: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(model.last)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [assigned, replaced, parametrised])
def test_a_parameter_replaced_after_the_split_is_refused(change: Callable[[nn.Module], None]) -> None:
    split = small_split()
    change(split.model)
    for use in (split.tail_parameters, split.head_parameters, split.version):
        with pytest.raises(ModelError, match=r"since the model was split .*split the model anew"):
            use(2)


def test_what_writes_to_parameters_in_place_needs_no_new_split() -> None:
    split = small_split()
    split.model.load_state_dict({name: tensor.clone() for name, tensor in split.model.state_dict().items()})
    split.model.double().requires_grad_(False)
    split.model.more = nn.Linear(2, 2)  # type: ignore[assignment]
    assert len(split.tail_parameters(2)) + len(split.head_parameters(2)) == len(list(split.model.parameters()))


@pytest.mark.parametrize("piece", ["tail", "step", "head"])
def test_a_piece_is_copied_and_not_pickled(piece: str) -> None:
    split = small_split()
    part = {"tail": split.tail(2), "step": split.step(0, 2), "head": split.head(2)}[piece].eval()
    given = BATCH.images if piece != "head" else split.tail(2).eval()(BATCH.images)
    assert all(map(torch.equal, copy.deepcopy(part)(given), part(given)))
    with pytest.raises(ModelError, match="pickle the SplitModel"):
        pickle.dumps(part)


@pytest.mark.parametrize("double", [copy.copy, copy.deepcopy, pickle.dumps])
def test_tuners_and_stores_are_not_doubled(double: Callable[[object], object], tmp_path: Path) -> None:
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 3}))
    with pytest.raises(CheckpointError, match=r"save\(folder\), then FineTuner\.load"):
        double(tuner)
    with LmdbStore(tmp_path / "a") as lmdb, TieredStore(tmp_path / "b") as tiered:
        for store in (tuner.store, lmdb, tiered):
            with pytest.raises(StoreError, match=f"a {type(store).__name__} is neither pickled nor copied"):
                double(store)
