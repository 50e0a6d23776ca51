"""Models of which only a part is trained (``requires_grad``): what is scored, and how far a policy may drop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from streamdrop.engine import FineTuner
from streamdrop.errors import ConfigError
from streamdrop.policies import AutoPolicy, Evidence, SchedulePolicy
from streamdrop.split import SplitModel
from streamdrop.testing.tuners import SmallNet, labelled_batch

BATCH = labelled_batch(12)


def partly_trained(*prefixes: str, dims: int = 9) -> SmallNet:
    """A SmallNet that trains what begins so, of at most ``dims`` dimensions."""
    torch.manual_seed(0)
    model = SmallNet()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes) and parameter.dim() <= dims)
    return model


def tuner_of(model: nn.Module, policy: Any, **settings: Any) -> FineTuner:
    tuner = FineTuner(
        SplitModel(model, BATCH.images[:2]),
        loss=functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.01),
        policy=policy,
        **{"batch_size": 4, "warm_up": 0, **settings},
    )
    tuner.observe(BATCH)
    return tuner


def test_a_scored_policy_leaves_the_last_layer_that_is_trained() -> None:
    auto = AutoPolicy(
        learned=100.0, fitted=100.0, break_even=0.0, worth=0.0, tolerance=None
    )  # drops all that may be dropped
    tuner = tuner_of(partly_trained("stem", "first"), auto)
    reports = [tuner.fit_round() for _ in range(14)]
    assert tuner.cut == 1
    assert len(tuner.optimizer.param_groups[0]["params"]) == 4
    assert reports[-1].loss > 0


def test_evidence_is_of_the_layers_up_to_the_last_that_is_trained() -> None:
    seen: list[Evidence] = []

    def policy(evidence: Evidence) -> int:
        seen.append(evidence)
        return 0

    tuner = tuner_of(partly_trained("stem", "first", "second"), policy)
    reports = [tuner.fit_round() for _ in range(10)]
    assert seen[0].layers == len(seen[0].importance) == len(seen[0].agreement) == 3
    assert len(seen[0].offers) == 2
    assert reports[-1].importance is not None
    assert len(reports[-1].importance) == 5


@pytest.mark.parametrize("settings", [{"policy": SchedulePolicy({1: 2})}, {"policy": SchedulePolicy(), "cut": 2}])
def test_a_cut_above_which_nothing_is_trained_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"has 2 layers.*from layer second\.1 on nothing is trained"):
        tuner_of(partly_trained("stem", "first"), **settings)


def test_frozen_layers_below_are_dropped_as_any() -> None:
    tuner = tuner_of(partly_trained("third", "linear"), SchedulePolicy({1: 3}))
    before = tuner.split.model.third[0].weight.clone()  # type: ignore[index,union-attr]
    reports = [tuner.fit_round() for _ in range(3)]
    assert tuner.store.cut == 3
    assert reports[0].parameters == reports[-1].parameters
    assert not torch.equal(tuner.split.model.third[0].weight, before)  # type: ignore[index,union-attr,arg-type]


def names_of(split: SplitModel, layer: str) -> list[str]:
    names = {id(parameter): name for name, parameter in split.model.named_parameters()}
    return [names[id(parameter)] for parameter in split.layer_parameters(layer)]


def test_a_layer_whose_weights_are_frozen_is_scored_by_what_is_trained_with_it() -> None:
    biases = SplitModel(partly_trained("", dims=1), BATCH.images[:2])
    assert names_of(biases, "stem.0") == ["stem.0.bias", "stem.1.weight", "stem.1.bias"]
    assert names_of(biases, "last") == ["last.bias", "linear.bias"]
    frozen = SplitModel(partly_trained("linear"), BATCH.images[:2])
    assert names_of(frozen, "first.0") == ["first.0.weight"]
    whole = SplitModel(partly_trained(""), BATCH.images[:2])
    assert names_of(whole, "stem.0") == ["stem.0.weight"]


def test_layers_of_which_only_norms_and_biases_learn_have_scores() -> None:
    report = tuner_of(partly_trained("", dims=1), AutoPolicy(), batch_size=3).fit_round()
    assert report.importance is not None
    assert report.agreement is not None
    assert max(report.importance.values()) < 1.0
    assert all(report.agreement.values())
