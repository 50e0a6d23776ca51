"""One strategy of an experiment under way: its tuner, the rows of its epochs, and its state on disk.

::

    state/STRATEGY/rows.jsonl     a row per finished epoch, the time to fill its store first
    state/STRATEGY/checkpoint/    what FineTuner.save wrote

A row is on disk before any checkpoint that counts its epoch, so none is missing. Epochs beyond the checkpoint are
trained again, to the same weights; their rows stay as they were first measured.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from streamdrop import checkpoint
from streamdrop.engine import FineTuner
from streamdrop.errors import CheckpointError, ConfigError, ModelError, StoreCorruptError, StoreError, TrainingError
from streamdrop.evaluation.datasets import LabelledSet
from streamdrop.evaluation.fit_config import RULES, FitConfig
from streamdrop.evaluation.fit_state import Row, append_row, make_folder, read_rows, replace_text
from streamdrop.evaluation.fit_summary import SAME_TIME
from streamdrop.evaluation.networks import build_network, layer_rule
from streamdrop.evaluation.views import OneViewEach, view_of
from streamdrop.policies import policy_from
from streamdrop.split import SplitModel
from streamdrop.store import FeatureStore, LmdbStore, MemoryStore, encode_source
from streamdrop.types import Batch, RoundReport

IN_MEMORY = 256 * 2**20
"""Bytes of model input up to which sgd reads from memory: the baseline pays for no store."""

READ_AT_ONCE = 500


@dataclass(frozen=True)
class FitData:
    """What every arm trains and is tested on."""

    train: LabelledSet
    test: LabelledSet
    classes: int


@dataclass
class Arm:
    """A strategy, trained epoch by epoch; ``status`` is done (so far) or diverged, with the reason in ``error``."""

    strategy: str
    tuner: FineTuner
    folder: Path
    total: int
    fill_seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    known: list[Row] = field(default_factory=list)  # a killed run's rows: as many as here, or more
    status: str = "done"
    error: str | None = None
    good: dict[str, Tensor] | None = None
    busy: bool = False  # within an epoch: what the tuner holds is no state to save
    sampler: OneViewEach | None = None

    @property
    def active(self) -> bool:
        """Whether epochs are left."""
        return self.status == "done" and len(self.rows) < self.total

    @property
    def seconds(self) -> float:
        """Training and storing, not testing."""
        return float(sum(row["seconds"] for row in self.rows))

    def train(self, test: LabelledSet) -> bool:
        """One epoch and its row; False where the training diverged: ``good`` then holds the weights before it."""
        self.busy = True
        before = weights_of(self.tuner)
        try:
            report = self._round()
            _check_finite(self.tuner)
        except TrainingError as error:
            self.status, self.error, self.good, self.busy = "diverged", str(error), before, False
            return False
        except StoreCorruptError as error:  # repaired, the store would lack what the checkpoint counts on
            raise StoreCorruptError(f"{error}; or remove {self.folder} to train {self.strategy} anew") from None
        if len(self.rows) < len(self.known):
            self.rows.append(self.known[len(self.rows)])
        else:
            self.rows.append(self._row(report, _accuracy(self.tuner, test)))
            append_row(self.folder, self.rows[-1])
        self.busy = False
        return True

    def _round(self) -> RoundReport:
        if self.sampler is None:
            return self.tuner.fit_round()
        self.sampler.size = self.tuner.batch_size
        return self.tuner.fit_round(steps=self.sampler.steps, sampler=self.sampler)

    def _row(self, report: RoundReport, accuracy: float) -> Row:
        row = _row(report, accuracy)
        before = self.rows[-1] if self.rows else None
        stores = before is not None and before["next_cut"] > before["cut"] and self.tuner.settings.strategy == "drop"
        if stores and before is not None and not report.stored:  # a kill came between the store's move and the row
            macs = self.tuner.split.macs
            spared = report.samples * (macs(before["cut"]) - macs(report.cut))
            row |= {"stored": True, "forward_macs": report.forward_macs + spared}
        return row

    def save(self) -> None:
        """Write a checkpoint unless the arm is within an epoch or came to grief."""
        if not self.busy and self.status == "done" and self.rows:
            self.tuner.save(self.folder / "checkpoint")

    def close(self) -> None:
        """Close the store."""
        self.tuner.store.close()


@dataclass(frozen=True)
class Plan:
    """Which arm to run: its strategy, its epochs, and whether sgd is scored though no decision needs it."""

    strategy: str
    epochs: int
    scored: bool = False


def open_arm(config: FitConfig, plan: Plan, data: FitData, output: Path) -> Arm:
    """An arm: gone on with where ``output`` holds its checkpoint, else anew with its store filled.

    Every arm starts from the same weights. Raises ConfigError, ModelError, StoreError, CheckpointError, OutputError.
    """
    strategy = plan.strategy
    folder, stored = output / "state" / strategy, output / "stores" / strategy
    going_on = checkpoint.exists(folder / "checkpoint") and read_rows(folder)[0]["epochs"] == plan.epochs
    if not going_on:
        shutil.rmtree(stored, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
    split = _split(config, data)
    size = len(data.train) * config.views.count * split.live_bytes(0)
    store = MemoryStore() if _in_memory(config, strategy, size) else _durable(stored, folder, going_on)
    try:
        options = _options(config, plan)
        if going_on:
            tuner = FineTuner.load(folder / "checkpoint", split, store=store, **options)
        else:
            tuner = FineTuner(split, store=store, **options, **_settings(config, strategy))
        views = config.views.count
        sampler = OneViewEach(data.train.keys, views) if views > 1 else None
        arm = Arm(strategy, tuner, folder, plan.epochs, sampler=sampler)
        if going_on:
            _take_rows(arm)
        else:
            _fill(arm, data.train, config)
    except BaseException as error:
        store.close()
        if going_on and isinstance(error, (CheckpointError, StoreError)):
            raise CheckpointError(f"{error}; or remove {folder} to train {strategy} anew") from None
        raise
    return arm


def take_first_costs(config: FitConfig, data: FitData) -> None:
    """Train a throwaway network on two batches: what a process pays once (imports, kernels) falls on no arm."""
    tuner = FineTuner(_split(config, data), **_options(config, Plan("sgd", 1)), **_settings(config, "sgd"))
    tuner.observe(next(iter(data.train.batches(2 * config.batch_size))))
    with contextlib.suppress(TrainingError):  # where training diverges, the arms will say so
        tuner.fit_round()


def _check_finite(tuner: FineTuner) -> None:
    """Raise TrainingError where the last step, or statistics taken anew, broke what no loss has seen yet."""
    for name, tensor in tuner.split.model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(f"round {tuner.round}: {name} is no longer finite: lower the learning rate")


def weights_of(tuner: FineTuner) -> dict[str, Tensor]:
    """A copy of the whole model's weights and buffers, on the CPU."""
    state = tuner.split.model.state_dict()
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}


def _split(config: FitConfig, data: FitData) -> SplitModel:
    torch.manual_seed(config.seed)
    model = build_network(config.model, data.classes, config.weights, config.image_size, config.model_options)
    norms = (torch.nn.modules.batchnorm._BatchNorm,)
    if config.batch_size == 1 and any(isinstance(module, norms) for module in model.modules()):
        raise ConfigError("batch_size is 1: BatchNorm cannot train on one sample: give at least 2")
    example = next(iter(data.train.batches(2))).images.to(config.device)
    layers = RULES[config.layers] if config.layers else layer_rule(config.model)
    try:
        return SplitModel(model.to(config.device), example, layers=layers)
    except ModelError as error:
        raise ModelError(f"{config.model} on images of image_size {config.image_size}: {error}") from None


def _in_memory(config: FitConfig, strategy: str, size: int) -> bool:
    return config.store == "memory" or (strategy in ("sgd", SAME_TIME) and size <= IN_MEMORY)


def _durable(folder: Path, state: Path, going_on: bool) -> FeatureStore:
    """The store in ``folder``, a new one unless the checkpoint in ``state`` counts on what it holds."""
    if going_on and not (folder / "data.mdb").is_file():
        raise CheckpointError(f"{folder}: the checkpoint's samples are gone: remove {state} to train it anew")
    make_folder(folder.parent)
    return LmdbStore(folder)


def _options(config: FitConfig, plan: Plan) -> dict[str, Any]:
    """What a tuner is given whether it starts or goes on."""
    epochs = plan.epochs
    schedule = config.schedule if epochs == config.epochs else config.schedule.scaled(epochs / config.epochs)
    return {
        "loss": functional.cross_entropy,
        "optimizer": config.optimizer.build,
        "policy": policy_from(config.policy),
        "thaw": config.thaw if plan.strategy not in ("sgd", SAME_TIME) else None,
        "scheduler": (lambda optimizer: schedule.build(optimizer, epochs)) if schedule.kind != "constant" else None,
        "scoring": plan.scored or plan.strategy not in ("sgd", SAME_TIME),  # a baseline pays for no scores
    }


def _settings(config: FitConfig, strategy: str) -> dict[str, Any]:
    """The settings of a tuner; a checkpoint carries them."""
    kind = {"freeze-full": "freeze", SAME_TIME: "sgd"}.get(strategy, strategy)
    settings: dict[str, Any] = {"strategy": kind, "warm_up": config.warm_up}
    settings |= {"batch_size": config.batch_size, "seed": config.seed}
    settings |= {"grow_batch": config.grow_batch, "calibrate": config.calibrate, "average": config.average}
    return settings | ({"whole_backward": True} if strategy == "freeze-full" else {})


def _fill(arm: Arm, train: LabelledSet, config: FitConfig) -> None:
    start = time.perf_counter()
    for view in range(config.views.count):
        for images in train.batches(READ_AT_ONCE):
            batch = view_of(images, view, config.views, config.seed)
            arm.tuner.observe(batch, sources=_sources(batch) if config.thaw and arm.strategy == "drop" else None)
    arm.fill_seconds = time.perf_counter() - start
    make_folder(arm.folder)
    append_row(arm.folder, {"fill_seconds": arm.fill_seconds, "epochs": arm.total})


def _sources(batch: Batch) -> dict[bytes, bytes]:
    """What a thaw makes activations from again: the model's input, bit for bit."""
    return {key: encode_source(image, "raw") for key, image in zip(batch.keys, batch.images, strict=True)}


def _take_rows(arm: Arm) -> None:
    """The rows that the checkpoint counts, and those after it; a torn line is taken out of the file."""
    head, *rows = read_rows(arm.folder)
    if len(rows) < arm.tuner.round:
        raise CheckpointError(
            f"{arm.folder}: rows.jsonl lacks epochs of the checkpoint: remove {arm.folder} to train it anew"
        )
    arm.fill_seconds, arm.known, arm.rows = head["fill_seconds"], rows, rows[: arm.tuner.round]
    replace_text(arm.folder / "rows.jsonl", "".join(f"{json.dumps(row)}\n" for row in (head, *rows)))


def _accuracy(tuner: FineTuner, test: LabelledSet) -> float:
    """The share of test images that the whole model gets right, in [0, 1]."""
    right = 0
    for batch in test.batches(READ_AT_ONCE):
        assert isinstance(batch.targets, Tensor)
        right += int((tuner.predict(batch.images).argmax(1).cpu() == batch.targets).sum())
    return right / len(test)


def _row(report: RoundReport, accuracy: float) -> Row:
    """An epoch as result.json has it. Seconds are those of the report."""
    names = {"round": "epoch", "write_seconds": "store_seconds"}
    left_out = ("samples", "iterations", "cut_short")
    row = {names.get(key, key): value for key, value in asdict(report).items() if key not in left_out}
    return row | {"accuracy": accuracy}
