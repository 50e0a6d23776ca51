"""Losses that learn: their weights train, survive a thaw, and come back with a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from streamdrop.engine import FineTuner
from streamdrop.errors import CheckpointError
from streamdrop.policies import SchedulePolicy
from streamdrop.split import SplitModel
from streamdrop.store import LmdbStore, MemoryStore, encode_source
from streamdrop.testing.tuners import SmallNet, labelled_batch

BATCH = labelled_batch(10)
POLICY = SchedulePolicy({2: 3})


class Proxies(nn.Module):
    """Classes by their proxies, centred as the outputs of late are; weights of classes are constants."""

    def __init__(self, width: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(width, 3, generator=torch.Generator().manual_seed(seed)))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("classes", torch.full((3,), 1.0 + seed))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.centre.lerp_(output.detach().mean(0), 0.1)
        return functional.cross_entropy((output - self.centre) @ self.proxies, target, self.classes)


def trains_both(loss: nn.Module) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD([*parameters, *loss.parameters()], 0.05, 0.9)


def small_split() -> SplitModel:
    torch.manual_seed(1)
    return SplitModel(SmallNet(), BATCH.images[:2])


def tuner_of(loss: nn.Module) -> FineTuner:
    tuner = FineTuner(small_split(), loss=loss, optimizer=trains_both(loss), policy=POLICY, batch_size=4)
    tuner.observe(BATCH, sources={k: encode_source(v, "raw") for k, v in zip(BATCH.keys, BATCH.images, strict=True)})
    return tuner


def test_a_loss_that_learns_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    whole, stopped = Proxies(), Proxies()
    straight, first = tuner_of(whole), tuner_of(stopped)
    losses = [straight.fit_round().loss for _ in range(5)]
    assert [first.fit_round().loss for _ in range(3)] == losses[:3]
    first.save(tmp_path / "checkpoint")
    again = Proxies(seed=5)
    second = FineTuner.load(
        tmp_path / "checkpoint", small_split(), loss=again, optimizer=trains_both(again), policy=POLICY
    )
    again.classes.copy_(stopped.classes)  # a constant, given anew
    assert [second.fit_round().loss for _ in range(2)] == losses[3:]
    assert torch.equal(again.proxies, whole.proxies)
    assert torch.equal(again.centre, whole.centre)


def test_constants_of_a_loss_are_those_given_to_load(tmp_path: Path) -> None:
    tuner_of(Proxies()).save(tmp_path / "checkpoint")
    again = Proxies(seed=5)
    FineTuner.load(tmp_path / "checkpoint", small_split(), loss=again, optimizer=trains_both(again), policy=POLICY)
    assert torch.equal(again.classes, torch.full((3,), 6.0))
    assert torch.equal(again.proxies, Proxies().proxies)


@pytest.mark.parametrize("other", [Proxies(width=4), nn.CrossEntropyLoss(), nn.Bilinear(3, 3, 3)])
def test_a_checkpoint_of_another_loss_is_refused(other: nn.Module, tmp_path: Path) -> None:
    tuner_of(Proxies()).save(tmp_path / "checkpoint")

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD([*parameters, nn.Parameter(torch.zeros(3, 3))], 0.05, 0.9)

    with pytest.raises(CheckpointError, match=r"learned proxies.*give load the loss"):
        FineTuner.load(tmp_path / "checkpoint", small_split(), loss=other, optimizer=optimizer, policy=POLICY)


def test_a_refused_load_gives_the_loss_its_own_back(tmp_path: Path) -> None:
    tuner_of(Proxies()).save(tmp_path / "checkpoint")
    again = Proxies(seed=5)
    with LmdbStore(tmp_path / "store") as store, pytest.raises(CheckpointError, match="in memory"):
        FineTuner.load(
            tmp_path / "checkpoint",
            small_split(),
            loss=again,
            optimizer=trains_both(again),
            policy=POLICY,
            store=store,
        )
    assert torch.equal(again.proxies, Proxies(seed=5).proxies)


def test_a_teacher_inside_a_loss_is_not_carried(tmp_path: Path) -> None:
    class Distilled(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.teacher, self.student = SmallNet().eval().requires_grad_(False), model

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            penalty = sum(p.square().sum() for p in self.student.parameters())
            return functional.cross_entropy(output, target) + 1e-4 * penalty

    split = small_split()
    tuner = FineTuner(split, loss=Distilled(split.model), optimizer=lambda p: torch.optim.SGD(p, 0.01), policy=POLICY)
    tuner.observe(BATCH)
    tuner.fit_round()
    assert "loss" not in tuner.snapshot().parts


def test_a_thaw_leaves_a_losses_own_weights_in_the_optimiser() -> None:
    loss = Proxies()
    tuner = tuner_of(loss)
    for _ in range(4):
        tuner.fit_round()
    tuner.thaw()
    before = loss.proxies.detach().clone()
    tuner.fit_round()
    assert not torch.equal(loss.proxies, before)
    assert isinstance(tuner.store, MemoryStore)
