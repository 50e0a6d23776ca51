"""The mean of the weights: against numpy, in a checkpoint, in the place of the weights where layers are dropped."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from streamdrop.cutting import UNDONE
from streamdrop.engine import FineTuner
from streamdrop.policies import PaperPolicy, PrefixSumPolicy, SchedulePolicy
from streamdrop.split import SplitModel
from streamdrop.testing.tuners import SmallNet, check_drop_equals_freeze, labelled_batch, small_tuner
from streamdrop.weight_mean import EVERY, WeightMean

BATCH = replace(labelled_batch(40), images=torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
"""Labels that mean nothing: some layers' gradients soon undo each other, others' still agree. 10 iterations a round."""


@dataclass(frozen=True)
class DropsOnce:
    """Scored, and drops two layers after the sixth round, the third of its window."""

    needs_scores = True

    def check(self, layers: int) -> None:
        """Works for any number of layers."""

    def __call__(self, evidence) -> int:
        return 2 if evidence.round == 6 else 0


def tuner(strategy="drop", **more) -> FineTuner:
    return small_tuner(batch=BATCH, policy=DropsOnce(), strategy=strategy, batch_size=4, calibrate=0, **more)


def loaded(path, **more) -> FineTuner:
    return FineTuner.load(
        path,
        SplitModel(SmallNet(), BATCH.images[:2]),
        loss=functional.cross_entropy,
        optimizer=lambda p: torch.optim.SGD(p, 0.02, 0.9, weight_decay=1e-3),
        policy=DropsOnce(),
        **more,
    )


def test_against_numpy():
    random = np.random.default_rng(0)
    steps = random.normal(size=(23, 5)).astype(np.float32)
    weight = torch.nn.Parameter(torch.zeros(5))
    mean = WeightMean({"w": weight, "fixed": torch.nn.Parameter(torch.ones(1), requires_grad=False)})
    for number, step in enumerate(steps, start=1):
        with torch.no_grad():
            weight.copy_(torch.from_numpy(step))
        mean.update()
        assert mean.iterations == number
    looked_at = steps[EVERY - 1 :: EVERY].astype(np.float64)
    assert list(mean.tensors()) == ["w"]
    np.testing.assert_allclose(mean.tensors()["w"], looked_at.mean(0), rtol=1e-6, atol=1e-7)
    mean.take({"w"})
    assert torch.equal(weight.detach(), mean.tensors()["w"])


def test_too_short_a_window_changes_nothing():
    weight = torch.nn.Parameter(torch.ones(3))
    mean = WeightMean({"w": weight})
    for _ in range(EVERY - 1):
        mean.update()
    mean.take({"w"})
    assert torch.equal(weight.detach(), torch.ones(3))
    assert mean.tensors() == {}


def owner(name: str, layers: tuple[str, ...]) -> str:
    """The layer a parameter of a SmallNet goes with: itself, the one before a BatchNorm, the last for what follows."""
    module = name.rsplit(".", 1)[0]
    before = {"stem.1": "stem.0", "first.1": "first.0", "second.2": "second.1", "third.1": "third.0"}
    found = before.get(module, module)
    return found if found in layers else layers[-1]


def test_layers_whose_steps_undo_each_other_take_the_mean_over_the_window_where_some_are_dropped():
    one, looks = tuner(), []
    step = one.optimizer.step

    def noted(*given):
        step(*given)
        looks.append({name: p.detach().clone().double() for name, p in one.split.model.named_parameters()})

    one.optimizer.step = noted
    reports = [one.fit_round() for _ in range(6)]
    assert [r.next_cut for r in reports] == [0, 0, 0, 0, 0, 2]
    agreement = reports[-1].agreement
    assert min(agreement.values()) < UNDONE < max(agreement.values())
    for name, parameter in one.split.model.named_parameters():
        undone = agreement[owner(name, one.split.layers)] < UNDONE
        seen = torch.stack([look[name] for look in looks[30:][EVERY - 1 :: EVERY]])
        expected = seen.mean(0) if undone else looks[-1][name]
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-7, msg=name)
    assert (one.cutting.mean.iterations, one.cutting.mean.tensors()) == (0, {})  # a new window


def test_without_it_the_last_step_s_weights_stay():
    with_mean, without = tuner(), tuner(average=False)
    for _ in range(6):
        with_mean.fit_round(), without.fit_round()
    pairs = zip(with_mean.split.model.parameters(), without.split.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert without.cutting.mean.tensors() == {}


@pytest.mark.parametrize("policy", [DropsOnce(), PaperPolicy(), PrefixSumPolicy()], ids=lambda p: type(p).__name__)
def test_drop_equals_freeze(policy):
    def make(strategy):
        return small_tuner(batch=BATCH, policy=policy, strategy=strategy, batch_size=4)

    check_drop_equals_freeze(make, 7)


@pytest.mark.parametrize("stop", [1, 5, 6, 8])
def test_a_resumed_run_equals_one_that_was_never_stopped(stop, tmp_path):
    whole = tuner()
    for number in range(9):
        if number == stop:
            whole.save(tmp_path / "checkpoint", extra="mine")  # so that it does not write another by itself
        whole.fit_round()
    resumed = loaded(tmp_path / "checkpoint")
    assert resumed.cutting.mean.iterations == {1: 10, 5: 20, 6: 0, 8: 20}[stop]
    for _ in range(9 - stop):
        resumed.fit_round()
    ended = resumed.split.model.state_dict()
    assert all(torch.equal(tensor, ended[name]) for name, tensor in whole.split.model.state_dict().items())


def test_a_checkpoint_without_means_begins_a_window_of_them(tmp_path):
    without = tuner(average=False)
    for _ in range(5):
        without.fit_round()
    without.save(tmp_path / "checkpoint")
    resumed = loaded(tmp_path / "checkpoint", average=True)
    assert (resumed.scores.iterations, resumed.cutting.mean.iterations) == (20, 0)
    assert resumed.fit_round().next_cut == 2


def test_nothing_is_averaged_once_nothing_is_left_to_be_dropped():
    one = tuner()
    one.fit_round()
    assert one.cutting.mean.tensors()
    one.cutting.advance(len(one.split.layers) - 1)
    one.fit_round()
    assert one.cutting.mean.tensors() == {}
    assert one.scores.iterations == 20


@pytest.mark.parametrize(("strategy", "policy"), [("sgd", DropsOnce()), ("drop", SchedulePolicy({2: 1}))])
def test_nothing_is_averaged_where_no_score_decides(strategy, policy):
    one = small_tuner(batch=BATCH, policy=policy, strategy=strategy, scoring=True)
    one.fit_round()
    assert one.cutting.mean.tensors() == {}
