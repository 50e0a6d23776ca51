"""Small networks and labelled batches, and the law that binds ``drop`` to ``freeze``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from streamdrop.engine import FineTuner
from streamdrop.policies import DropPolicy
from streamdrop.split import Layers, SplitModel
from streamdrop.store import FeatureStore, MemoryStore
from streamdrop.types import Batch, RoundReport


class SmallNet(nn.Module):
    """Five convolutions with BatchNorm, a skip connection, dropout and a linear head: every trap, in milliseconds."""

    def __init__(self, classes: int = 3, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.second = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.third = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2), nn.BatchNorm2d(2 * width), nn.ReLU(inplace=True))
        self.last = nn.Conv2d(2 * width, 2 * width, 1)
        self.dropout = nn.Dropout(0.2)
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] → [N, classes]."""
        x = self.stem(x)
        x = functional.relu(x + self.second(self.first(x)))
        x = self.last(self.third(x)).mean((2, 3))
        output: torch.Tensor = self.linear(self.dropout(x))
        return output


def labelled_batch(count: int, size: int = 8, classes: int = 3, seed: int = 0, first: int = 0) -> Batch:
    """``count`` random images [N, 3, size, size] whose label shifts their mean; keys number from ``first``."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    images = torch.randn(count, 3, size, size, generator=generator) + labels.view(-1, 1, 1, 1)
    return Batch([i.to_bytes(8, "big") for i in range(first, first + count)], images, labels)


def small_tuner(
    model: nn.Module | None = None,
    *,
    batch: Batch,
    policy: DropPolicy,
    store: FeatureStore | None = None,
    layers: Layers | None = None,
    seed: int = 0,
    **settings: Any,
) -> FineTuner:
    """A tuner over ``model`` (default: a SmallNet of ``seed``), ``batch`` observed; momentum and weight decay on."""
    if model is None:
        torch.manual_seed(seed)
        model = SmallNet()
    device = next(model.parameters()).device
    tuner = FineTuner(
        SplitModel(model, batch.images[:2].to(device), layers=layers),
        loss=functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.02, 0.9, weight_decay=1e-3),
        store=MemoryStore() if store is None else store,
        policy=policy,
        seed=seed,
        **{"warm_up": 1, "batch_size": 8, **settings},
    )
    tuner.observe(batch)
    return tuner


def check_drop_equals_freeze(
    make_tuner: Callable[[str], FineTuner], rounds: int
) -> tuple[list[RoundReport], list[RoundReport]]:
    """Assert that ``make_tuner("drop")`` and ``make_tuner("freeze")`` decide alike and end in the same weights.

    Both must start from the same weights, samples and seed. Returns the reports of both, drop's first.
    """
    tuners = [make_tuner("drop"), make_tuner("freeze")]
    reports: list[list[RoundReport]] = [[], []]
    for number in range(1, rounds + 1):
        for tuner, told in zip(tuners, reports, strict=True):
            told.append(tuner.fit_round())
        drop, freeze = reports[0][-1], reports[1][-1]
        assert drop.next_cut == freeze.next_cut, (
            f"round {number}: drop goes to {drop.next_cut}, freeze {freeze.next_cut}"
        )
        assert drop.loss == freeze.loss, f"round {number}: losses {drop.loss!r} and {freeze.loss!r} differ"
    states = [tuner.split.model.state_dict() for tuner in tuners]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), f"{name} differs between drop and freeze after {rounds} rounds"
    return reports[0], reports[1]
