"""The paper's experiment: sgd, freeze and drop side by side on a fixed data set (``streamdrop fit``)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from streamdrop.config import load
from streamdrop.errors import CheckpointError, ConfigError, DataError, StreamdropError
from streamdrop.evaluation.claim import claimed
from streamdrop.evaluation.datasets import read_split
from streamdrop.evaluation.device import check_device, memory_explained, same_every_time
from streamdrop.evaluation.fit_arm import Arm, FitData, Plan, open_arm, take_first_costs, weights_of
from streamdrop.evaluation.fit_config import FitConfig, OptimizerConfig, checked_strategies
from streamdrop.evaluation.fit_result import describe_arms, describe_run
from streamdrop.evaluation.fit_state import replace_text, write_weights
from streamdrop.evaluation.fit_summary import SAME_TIME, STRATEGIES

__all__ = ["STRATEGIES", "FitConfig", "OptimizerConfig", "read_result", "run_experiment"]

OnEpoch = Callable[[str, int, dict[str, Any]], None]
SAVING_SHARE = 20
"""A checkpoint that took s seconds is followed by at least this many times s seconds of training."""


def run_experiment(
    config: FitConfig,
    strategies: Iterable[str],
    output: str | os.PathLike[str],
    on_epoch: OnEpoch = lambda strategy, epoch, row: None,
    *,
    resume: bool = False,
    save_weights: bool = False,
    download: bool = False,
    patience: float = 0.0,
) -> dict[str, Any]:
    """Train the same network from the same weights by each strategy; write ``output/result.json`` and return it.

    The strategies take turns epoch by epoch, so that what else the machine does falls on all alike; ``sgd-same-time``
    runs when all others are done. ``on_epoch`` is called after each epoch with its row. Seconds count training and
    storing, not testing. ``resume`` goes on with what a killed run left in ``output``; ``save_weights`` writes
    ``STRATEGY.safetensors``; ``download`` may fetch a data set that is missing; ``patience``: seconds left to another
    run in ``output`` that is about to end. An arm whose loss is not finite stops
    (status "diverged", weights of its last good epoch in ``STRATEGY-last-good.safetensors``); the others go on.
    Raises ConfigError, DataError, OutputError, CheckpointError before work starts.
    """
    asked = checked_strategies(strategies, config.same_time)
    check_device(config.device)
    folder = Path(output)
    size = f"image_size {config.image_size} with batch_size {config.batch_size}"
    with (
        claimed(folder, patience),
        _threads(config.threads),
        same_every_time(config.device),
        memory_explained(size),
    ):
        kept = _kept(folder, config, asked) if resume else None
        if kept is not None and kept["finished"]:
            _check_weights(folder, kept, save_weights)
            _tidy(folder)
            return kept
        if not resume and _has_state(folder):
            raise ConfigError(
                f"{folder}: holds a run that did not end: --resume goes on with it; remove {folder / 'state'} to "
                "begin anew"
            )
        data = _read(config, download)
        if kept is None:
            _tidy(folder)
            replace_text(folder / "result.json", json.dumps(describe_run(config, asked)))
        return _Run(config, asked, folder, on_epoch, save_weights).carry_out(data)


@dataclass
class _Run:
    """An experiment under way."""

    config: FitConfig
    asked: list[str]
    folder: Path
    on_epoch: OnEpoch
    save_weights: bool
    arms: list[Arm] = field(default_factory=list)
    saved_at: float = field(default_factory=time.monotonic)
    saving_took: float = 0.0

    def carry_out(self, data: FitData) -> dict[str, Any]:
        """Every arm to its end, then the result."""
        try:
            take_first_costs(self.config, data)
            alone = len(self.asked) == 1  # then its scores are what the run is for: nothing is compared with it
            for strategy in self.asked:
                if strategy != SAME_TIME:
                    self._open(Plan(strategy, self.config.epochs, scored=alone), data)
            self._train(self.arms, data)
            if SAME_TIME in self.asked:
                self._train_same_time(data)
            result = describe_arms(self.config, self.asked, self.arms, finished=True)
            if self.save_weights:
                for arm in (arm for arm in self.arms if arm.status == "done"):
                    write_weights(self.folder / f"{arm.strategy}.safetensors", weights_of(arm.tuner))
            self._write(result)
        except KeyboardInterrupt:
            self._save()
            raise
        finally:
            for arm in self.arms:
                arm.close()
            if not _has_state(self.folder):
                _tidy(self.folder)  # there is nothing to go on with
        _tidy(self.folder)
        return result

    def _open(self, plan: Plan, data: FitData) -> Arm:
        self.arms.append(open_arm(self.config, plan, data, self.folder))
        return self.arms[-1]

    def _train(self, arms: Sequence[Arm], data: FitData) -> None:
        """Turn by turn, each arm from where it is."""
        for epoch in range(1, max(arm.total for arm in arms) + 1):
            turn = [arm for arm in arms if arm.active and len(arm.rows) < epoch]
            for arm in turn:
                if arm.train(data.test):
                    self.on_epoch(arm.strategy, epoch, arm.rows[-1])
                elif arm.good is not None:
                    write_weights(self.folder / f"{arm.strategy}-last-good.safetensors", arm.good)
            if turn:
                self._write(describe_arms(self.config, self.asked, self.arms, finished=False))
                self._save_if_due()

    def _train_same_time(self, data: FitData) -> None:
        """Plain SGD given only the seconds that drop took, its schedule scaled to as many epochs as fit in."""
        sgd, drop = (next(arm for arm in self.arms if arm.strategy == name) for name in ("sgd", "drop"))
        if "diverged" in (sgd.status, drop.status):
            return
        epochs = max(1, int(drop.seconds / statistics.median(row["seconds"] for row in sgd.rows)))
        self._train([self._open(Plan(SAME_TIME, epochs), data)], data)

    def _save_if_due(self) -> None:
        waited = time.monotonic() - self.saved_at
        if waited >= max(self.config.checkpoint_seconds, SAVING_SHARE * self.saving_took):
            start = time.monotonic()
            self._save()
            self.saved_at = time.monotonic()
            self.saving_took = self.saved_at - start

    def _save(self) -> None:
        for arm in self.arms:
            arm.save()

    def _write(self, result: dict[str, Any]) -> None:
        replace_text(self.folder / "result.json", json.dumps(result, indent=1))


def read_result(folder: Path) -> dict[str, Any] | None:
    """The content of ``folder/result.json``; None where there is none or it cannot be read as one."""
    try:
        values = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return values if _is_result(values) else None


def _is_result(values: Any) -> bool:
    """Whether it is what a run writes before its first epoch, and, if it says that it is finished, after its last."""
    if not isinstance(values, dict) or "config" not in values or not isinstance(values.get("finished"), bool):
        return False
    arms = values.get("strategies")
    if not values["finished"]:
        return True
    return (
        isinstance(arms, dict)
        and len(arms) > 0
        and all(
            isinstance(arm, dict) and "status" in arm and isinstance(arm.get("epochs"), list) for arm in arms.values()
        )
    )


def _kept(folder: Path, config: FitConfig, asked: list[str]) -> dict[str, Any] | None:
    """The result of the run to go on with; None where nothing was begun.

    Raises ConfigError for one of other making, CheckpointError where it is gone and what was trained is not.
    """
    result = read_result(folder)
    if result is None:
        if _has_state(folder):
            raise CheckpointError(
                f"{folder}: result.json is missing or damaged, but a run's state is there: put result.json back, "
                f"or remove {folder / 'state'} to start anew"
            )
        return None
    different = differences(result, config, asked)
    if different:
        raise ConfigError(f"{folder}: was begun with other {', '.join(different)}: give the same, or another --output")
    return result


def differences(result: dict[str, Any], config: FitConfig, asked: Sequence[str]) -> list[str]:
    """What of a result's configuration differs from ``config``; keys that it does not know stand at their defaults."""
    try:
        before = load(result["config"], FitConfig).plain()
    except StreamdropError:
        return ["configuration"]
    now = config.plain()
    free = ("checkpoint_seconds",)
    changed = [key for key in now if key not in free and now[key] != before[key]]
    return changed + ([] if result.get("asked") == list(asked) else ["strategies"])


def _has_state(folder: Path) -> bool:
    """Whether there is something to go on with."""
    return any((folder / "state").glob("*/checkpoint/current"))


def _check_weights(folder: Path, result: dict[str, Any], wanted: bool) -> None:
    """Raise ConfigError where weights are asked of a run that ended without writing them."""
    done = [name for name, entry in result["strategies"].items() if entry["status"] == "done"]
    missing = [name for name in done if not (folder / f"{name}.safetensors").exists()] if wanted else []
    if missing:
        raise ConfigError(
            f"{folder}: ended without --save-weights, and the weights of {', '.join(missing)} are gone: train anew, "
            "with it, into another --output"
        )


def _tidy(folder: Path) -> None:
    """Remove what arms left to go on with, and nothing else that a folder of that name may hold."""
    for name in ("state", "stores"):
        for strategy in STRATEGIES:
            shutil.rmtree(folder / name / strategy, ignore_errors=True)
        with contextlib.suppress(OSError):  # not there, or not ours alone
            (folder / name).rmdir()


def _read(config: FitConfig, download: bool) -> FitData:
    train = read_split(config.data, "train", config.train, config.image_size, download)
    test = read_split(config.data, "test", config.test, config.image_size, download)
    if len({*train.labels.tolist(), *test.labels.tolist()}) < 2:
        raise DataError(f"{config.data}: all images read are of one class: give images of at least two")
    return FitData(train, test, int(max(train.labels.max(), test.labels.max())) + 1)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many torch threads inside; as many as before outside."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
