"""train() and eval() of a model's pieces are the model's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import streamdrop as sd
from streamdrop.testing.splits import check_split


class Block(nn.Module):
    """Keeps its BatchNorm in eval mode, as backbones for detection do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, 4, 3, padding=1), nn.BatchNorm2d(4)

    def train(self, mode: bool = True) -> Block:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv(x)))


class Merging(nn.Linear):
    """Merges weights when it goes into eval mode, as adapters do."""

    merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        self.merged = not mode
        return self


class Whole(nn.Module):
    """Keeps the first of two BatchNorms in eval mode, from the outside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.middle, self.last = Merging(4, 4), nn.Linear(4, 3)

    def train(self, mode: bool = True) -> Whole:
        super().train(mode)
        self.stem[1].eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.body(self.stem(x)).mean((2, 3))))


def whole() -> sd.SplitModel:
    torch.manual_seed(0)
    return sd.SplitModel(Whole(), torch.zeros(2, 3, 8, 8))


def test_the_kit_holds() -> None:
    torch.manual_seed(0)
    check_split(Whole(), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("cut", range(3))
def test_a_head_keeps_in_eval_mode_what_the_model_does_and_touches_nothing_else(cut: int) -> None:
    split = whole()
    assert split.layers == ("stem.0", "body.0.conv", "body.1")
    model = split.model.eval()
    head = split.head(cut).train()
    trained = {name for name, module in model.named_modules() if module.training and not list(module.children())}
    assert trained == {"body.2", "body.3", "middle", "last", *split.layers[cut:]}
    assert not model.middle.merged
    head.eval()
    assert not any(module.training for module in model.modules())
    assert model.middle.merged


def test_a_merging_layer_outside_a_piece_merges_as_before() -> None:
    split = whole()
    split.model.train()
    split.tail(2).eval()
    assert split.model.middle.training
    assert not split.model.middle.merged


@pytest.mark.parametrize("strategy", ["sgd", "drop"])
def test_norms_that_the_model_keeps_in_eval_mode_are_not_trained_nor_calibrated(strategy: str) -> None:
    split = whole()
    tuner = sd.FineTuner(
        split,
        loss=F.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05),
        policy=sd.SchedulePolicy({1: 1, 2: 2}),
        strategy=strategy,
        batch_size=4,
    )
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 3
    tuner.observe(sd.Batch([b"%d" % i for i in range(8)], images, torch.arange(8) % 3))
    for _ in range(3):
        tuner.fit_round()
    for norm, kept in ((split.model.stem[1], True), (split.model.body[0].norm, True), (split.model.body[2], False)):
        assert (norm.running_mean.abs().sum() == 0) == kept
