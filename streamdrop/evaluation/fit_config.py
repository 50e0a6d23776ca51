"""What an experiment is made of: its configuration, its strategies, its learning-rate schedule."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from streamdrop.errors import ConfigError
from streamdrop.evaluation.fit_summary import SAME_TIME, STRATEGIES
from streamdrop.evaluation.views import ViewsConfig
from streamdrop.policies import policy_from
from streamdrop.split import Layers, convolutions, transformer_blocks
from streamdrop.thawing import ThawPlan
from streamdrop.values import MOST_SEED, MOST_THREADS, check_above, check_fields, check_whole

LEAST = {
    "image_size": 1,
    "train": 2,
    "test": 1,
    "epochs": 1,
    "warm_up": 0,
    "batch_size": 1,
    "seed": 0,
    "grow_batch": 1,
    "calibrate": 0,
}
"""The least that a whole number of FitConfig may be."""

MOST = {"image_size": 16_384, "seed": MOST_SEED}
"""The most: an image of that size takes 3 GB as floats."""

RULES: dict[str, Layers] = {"convolutions": convolutions, "transformer_blocks": transformer_blocks}


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser of an experiment; ``momentum`` counts for sgd only."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0005

    def __post_init__(self) -> None:
        check_fields(self)
        check_above("lr", self.lr, 0.0)
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum is {self.momentum:g}: give a number of at least 0, below 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay is {self.weight_decay:g}: give a number of at least 0")

    def build(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser over ``parameters``."""
        if self.name == "sgd":
            return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return kind(parameters, self.lr, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves, once an epoch: times ``factor`` after each of ``milestones``, or a half cosine."""

    kind: Literal["constant", "step", "cosine"] = "constant"
    milestones: tuple[int, ...] = ()
    factor: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind == "step" and not self.milestones:
            raise ConfigError("a step schedule needs milestones: give the epochs after which the rate changes")
        if self.kind != "step" and self.milestones:
            raise ConfigError(f"milestones mean nothing to a {self.kind} schedule: give kind: step")
        if any(epoch < 1 for epoch in self.milestones) or list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigError(f"milestones {list(self.milestones)}: give rising epochs of at least 1")
        check_above("factor", self.factor, 0.0)

    def scaled(self, share: float) -> ScheduleConfig:
        """The same schedule over ``share`` of the epochs; milestones that fall together become one."""
        return replace(self, milestones=tuple(sorted({max(1, round(e * share)) for e in self.milestones})))

    def share(self, done: int, epochs: int) -> float:
        """The learning rate after ``done`` of ``epochs`` epochs, as a share of the first."""
        if self.kind == "step":
            return self.factor ** sum(milestone <= done for milestone in self.milestones)
        return (1 + math.cos(math.pi * done / epochs)) / 2 if self.kind == "cosine" else 1.0

    def build(self, optimizer: torch.optim.Optimizer, epochs: int) -> LRScheduler:
        """The torch scheduler for that many epochs, to be stepped once after each."""
        return LambdaLR(optimizer, lambda done: self.share(done, epochs))


@dataclass(frozen=True)
class FitConfig:
    """One experiment. ``data`` is where train and test images lie; ``train`` and ``test`` are counts of images.

    ``model_options`` are keywords of torchvision's builder, such as ``zero_init_residual`` of a ResNet. ``policy`` is
    whatever ``policy_from`` takes. ``layers`` names the rule of what a layer is (convolutions,
    transformer_blocks; None: the network's own). ``store`` is where drop and freeze keep their samples: on disk (lmdb,
    under the output folder, removed afterwards) or in memory. ``same_time`` adds ``sgd-same-time`` where both sgd and
    drop run. ``threads`` are torch's (None: as they are). ``device`` is where networks are trained: cpu, cuda or, of
    several GPUs, cuda:N. A checkpoint is written every ``checkpoint_seconds`` at most.
    ``views``, ``thaw``, ``grow_batch``, ``calibrate`` and ``average`` hold for every strategy alike: see ViewsConfig,
    ThawPlan and TunerSettings.
    """

    data: str
    model: str = "resnet18"
    weights: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    image_size: int = 64
    train: int = 1500
    test: int = 1000
    epochs: int = 16
    warm_up: int = 3
    batch_size: int = 64
    policy: str | dict[str, dict[Any, Any]] = "auto"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    layers: Literal["convolutions", "transformer_blocks"] | None = None
    same_time: bool = True
    threads: int | None = None
    device: str = "cpu"
    seed: int = 0
    store: Literal["lmdb", "memory"] = "lmdb"
    checkpoint_seconds: float = 60.0
    views: ViewsConfig = field(default_factory=ViewsConfig)
    thaw: ThawPlan | None = None
    grow_batch: int = 1
    calibrate: int = 256
    average: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in LEAST.items():
            check_whole(name, getattr(self, name), least, MOST.get(name))
        if self.threads is not None:
            check_whole("threads", self.threads, 1, MOST_THREADS)
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device is {self.device}: give cpu, cuda or cuda:N")
        if not self.checkpoint_seconds >= 0:
            raise ConfigError(f"checkpoint_seconds is {self.checkpoint_seconds:g}: give seconds, 0 for every epoch")
        policy_from(self.policy)

    def plain(self) -> dict[str, Any]:
        """As it comes back from JSON."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


def checked_strategies(names: Iterable[str], same_time: bool) -> list[str]:
    """The strategies to run, in order, ``sgd-same-time`` last where it belongs. Raises ConfigError."""
    chosen = list(dict.fromkeys(names))
    wrong = [name for name in chosen if name not in STRATEGIES]
    if wrong or not chosen:
        raise ConfigError(f"strategies {','.join(wrong) or '(none)'} not known: choose from {', '.join(STRATEGIES)}")
    comparable = {"sgd", "drop"} <= set(chosen)
    if SAME_TIME in chosen and not comparable:
        raise ConfigError(f"{SAME_TIME} needs the seconds of sgd and of drop: add both to the strategies")
    rest = [name for name in chosen if name != SAME_TIME]
    return [*rest, SAME_TIME] if SAME_TIME in chosen or (same_time and comparable) else rest
