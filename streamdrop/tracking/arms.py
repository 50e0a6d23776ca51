"""What each strategy asks of the engine: the cut it starts at, its policy, its optimiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from streamdrop.policies import DropPolicy, SchedulePolicy, policy_from
from streamdrop.split import SplitModel
from streamdrop.tracking.backbones import TappedNetwork
from streamdrop.tracking.config import IF_IT_PAYS, TrackerConfig
from streamdrop.tracking.network import TrackerNetwork

_WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class Cuts:
    """``frozen``: layers below the blocks that can be trained; ``maps``: all of the backbone."""

    frozen: int
    maps: int

    @classmethod
    def of(cls, split: SplitModel) -> Cuts:
        """The two cuts of a split TrackerNetwork."""
        head = sum(name.startswith("score.") for name in split.layers)
        frozen = [not any(p.requires_grad for p in split.layer_parameters(name)) for name in split.layers]
        return cls(frozen=frozen.index(False), maps=len(split.layers) - head)


def warm_up_rounds(config: TrackerConfig) -> int:
    """Rounds on the first frame in which the upper backbone is trained, if the strategy trains it at all."""
    if config.if_it_pays:
        return 0
    return config.drop.warm_up if config.strategy in ("drop", "freeze", "full") else 0


def engine_settings(config: TrackerConfig, cuts: Cuts) -> dict[str, Any]:
    """FineTuner's strategy, first cut and policy."""
    if config.strategy in ("fixed", "none"):
        return {"strategy": "drop", "cut": cuts.maps, "policy": SchedulePolicy()}
    if config.strategy == "full":
        return {"strategy": "sgd", "cut": cuts.frozen, "policy": SchedulePolicy()}
    cut = cuts.frozen if warm_up_rounds(config) else cuts.maps
    return {"strategy": config.strategy, "cut": cut, "policy": _policy(config, cuts), "average": False}


def _policy(config: TrackerConfig, cuts: Cuts) -> DropPolicy:
    if config.if_it_pays:
        return SchedulePolicy()
    if config.drop.policy == "after-warm-up":
        return SchedulePolicy({config.drop.warm_up: cuts.maps} if config.drop.warm_up else {})
    return policy_from(config.drop.policy, others=("after-warm-up", IF_IT_PAYS))


def optimizer_maker(
    config: TrackerConfig, network: TrackerNetwork | TappedNetwork, rate: float | None = None
) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """Adam with a learning rate of its own for the backbone; ``rate``: the head's, None: the first frame's."""
    head = {id(parameter) for parameter in network.score.parameters()}

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        upper = [p for p in parameters if id(p) not in head]
        groups = [
            {"params": upper, "lr": config.drop.learning_rate},
            {"params": [p for p in parameters if id(p) in head], "weight_decay": _WEIGHT_DECAY},
        ]
        return torch.optim.Adam(groups, lr=rate or config.first_frame.learning_rate)

    return make


def scheduler_maker(config: TrackerConfig) -> Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]:
    """The first frame's learning rate for its rounds, the updates' from then on; the backbone's stays."""
    first_rounds = warm_up_rounds(config) + 1
    later = config.update.learning_rate / config.first_frame.learning_rate

    def head(rounds: int) -> float:
        return 1.0 if rounds < first_rounds else later

    def make(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda rounds: 1.0, head])

    return make
