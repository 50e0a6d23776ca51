"""The paper's experiment: sgd, freeze and drop side by side on a fixed data set (``streamdrop fit``)."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional

from streamdrop.engine import FineTuner
from streamdrop.errors import ConfigError, OutputError
from streamdrop.evaluation.datasets import LabelledSet, read_split
from streamdrop.evaluation.hardware import describe_hardware
from streamdrop.evaluation.networks import build_network
from streamdrop.policies import policy_from
from streamdrop.split import SplitModel
from streamdrop.store import FeatureStore, LmdbStore, MemoryStore
from streamdrop.types import RoundReport

STRATEGIES = ("sgd", "freeze", "drop")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser of an experiment; ``momentum`` counts for sgd only."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0005

    def build(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser over ``parameters``."""
        if self.name == "sgd":
            return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return kind(parameters, self.lr, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class FitConfig:
    """One experiment. ``data`` is a folder with train.npz and test.npz; ``train`` and ``test`` are counts of images.

    ``policy`` is paper, prefix-sum, never or {schedule: {epoch: cut}}. ``store`` is where drop and freeze keep their
    samples: on disk (lmdb, under the output folder, removed afterwards) or in memory.
    """

    data: str
    model: str = "resnet18"
    weights: str | None = None
    image_size: int = 64
    train: int = 1500
    test: int = 1000
    epochs: int = 16
    warm_up: int = 3
    batch_size: int = 64
    policy: str | dict[str, dict[int, int]] = "paper"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    seed: int = 0
    store: Literal["lmdb", "memory"] = "lmdb"

    def __post_init__(self) -> None:
        for name in ("image_size", "train", "test", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give a whole number of at least 1")
        policy_from(self.policy)


@dataclass
class _Arm:
    """One strategy under way: its tuner and what its epochs cost."""

    strategy: str
    tuner: FineTuner
    fill_seconds: float
    epochs: list[dict[str, Any]] = field(default_factory=list)


def run_experiment(
    config: FitConfig,
    strategies: Iterable[str],
    output: str | os.PathLike[str],
    on_epoch: Callable[[str, int, dict[str, Any]], None] = lambda strategy, epoch, row: None,
) -> dict[str, Any]:
    """Train the same network from the same weights by each strategy; write ``output/result.json`` and return it.

    The strategies take turns epoch by epoch, so that what else the machine does falls on all alike. ``on_epoch`` is
    called after each epoch with its row. Seconds count training and storing, not testing. Raises ConfigError,
    DataError, OutputError before work starts.
    """
    chosen = _checked(strategies)
    folder = _prepared(Path(output))
    train = read_split(config.data, "train", config.train, config.image_size)
    test = read_split(config.data, "test", config.test, config.image_size)
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    stores = folder / "stores"
    arms: list[_Arm] = []
    try:
        arms += [_start(config, strategy, train, classes, stores) for strategy in chosen]
        for epoch in range(1, config.epochs + 1):
            for arm in arms:
                report = arm.tuner.fit_round()
                arm.epochs.append(_row(epoch, report, _accuracy(arm.tuner, test)))
                on_epoch(arm.strategy, epoch, arm.epochs[-1])
            _write(folder, _result(config, arms))  # what an interrupted run leaves is whole
    finally:
        for arm in arms:
            arm.tuner.store.close()
        shutil.rmtree(stores, ignore_errors=True)
    return _result(config, arms)


def _write(folder: Path, result: dict[str, Any]) -> None:
    temporary = folder / "result.json.new"
    try:
        temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
        os.replace(temporary, folder / "result.json")
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror}): free space or choose another --output"
        ) from None


def _checked(strategies: Iterable[str]) -> list[str]:
    chosen = list(dict.fromkeys(strategies))
    wrong = [name for name in chosen if name not in STRATEGIES]
    if wrong or not chosen:
        raise ConfigError(f"strategies {','.join(wrong) or '(none)'} not known: choose from {', '.join(STRATEGIES)}")
    return chosen


def _prepared(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text("{}", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}): choose another --output") from None
    return folder


def _start(config: FitConfig, strategy: str, train: LabelledSet, classes: int, stores: Path) -> _Arm:
    """A tuner over the same first weights as every other strategy's, its store filled."""
    torch.manual_seed(config.seed)
    model = build_network(config.model, classes, config.weights)
    store: FeatureStore = MemoryStore()
    if strategy != "sgd" and config.store == "lmdb":  # sgd reads from memory: the baseline pays for no store
        stores.mkdir(exist_ok=True)
        store = LmdbStore(stores / strategy)
    tuner = FineTuner(
        SplitModel(model, train.images[:2]),
        loss=functional.cross_entropy,
        optimizer=config.optimizer.build,
        store=store,
        policy=policy_from(config.policy),
        scoring=True,
        strategy=strategy,
        warm_up=config.warm_up,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    start = time.perf_counter()
    for batch in train.batches(500):
        tuner.observe(batch)
    return _Arm(strategy, tuner, time.perf_counter() - start)


def _accuracy(tuner: FineTuner, test: LabelledSet) -> float:
    """The share of test images that the whole model gets right, in [0, 1]."""
    output = tuner.predict(test.images)
    return float((output.argmax(1).cpu() == test.labels).double().mean())


def _row(epoch: int, report: RoundReport, accuracy: float) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "seconds": report.seconds,
        "store_seconds": report.write_seconds,
        "tail_seconds": report.tail_seconds,
        "read_seconds": report.read_seconds,
        "train_seconds": report.train_seconds,
        "loss": report.loss,
        "accuracy": accuracy,
        "cut": report.cut,
        "next_cut": report.next_cut,
        "stored": report.stored,
        "parameters": report.parameters,
        "forward_macs": report.forward_macs,
        "importance": report.importance,
        "magnitude": report.magnitude,
    }


def _result(config: FitConfig, arms: list[_Arm]) -> dict[str, Any]:
    totals = {arm.strategy: _totals(arm) for arm in arms}
    base = totals.get("sgd")
    for entry in totals.values():
        entry["saved_time_percent"] = _saved(entry, base, "seconds")
        entry["saved_macs_percent"] = _saved(entry, base, "forward_macs")
    return {
        "model": config.model,
        "dataset": Path(config.data).name,
        "seed": config.seed,
        "warm_up": config.warm_up,
        "epochs": config.epochs,
        "policy": config.policy,
        "layers": len(arms[0].tuner.split.layers),
        "hardware": describe_hardware(),
        "strategies": totals,
    }


def _totals(arm: _Arm) -> dict[str, Any]:
    return {
        "seconds": sum(row["seconds"] for row in arm.epochs),
        "fill_seconds": arm.fill_seconds,
        "accuracy": arm.epochs[-1]["accuracy"],
        "forward_macs": sum(row["forward_macs"] for row in arm.epochs),
        "cut": arm.tuner.cut,
        "epochs": arm.epochs,
    }


def _saved(entry: dict[str, Any], base: dict[str, Any] | None, key: str) -> float | None:
    """Eq. 5: percent of ``key`` saved against sgd; None where sgd did not run."""
    return None if base is None else 100.0 * (base[key] - entry[key]) / base[key]


def table(result: dict[str, Any]) -> str:
    """The strategies side by side: seconds, accuracy, saved time, saved MACs, layers dropped."""
    lines = [f"{'strategy':<10}{'seconds':>9}{'accuracy':>10}{'saved time':>12}{'saved MACs':>12}{'dropped':>10}"]
    for strategy, entry in result["strategies"].items():
        time, macs = (
            "-" if entry[key] is None else f"{entry[key]:.1f} %" for key in ("saved_time_percent", "saved_macs_percent")
        )
        dropped = f"{entry['cut']}/{result['layers']}"
        lines.append(
            f"{strategy:<10}{entry['seconds']:>9.1f}{entry['accuracy']:>10.3f}{time:>12}{macs:>12}{dropped:>10}"
        )
    return "\n".join(lines)
