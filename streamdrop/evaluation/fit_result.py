"""An experiment's arms as ``result.json``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamdrop.evaluation.fit_arm import Arm
from streamdrop.evaluation.fit_config import FitConfig
from streamdrop.evaluation.fit_state import Row
from streamdrop.evaluation.hardware import describe_hardware

ENOUGH_DROPPED = 95.0
"""Percent of the droppable MACs below which a result says which rule held the rest back."""


def describe_run(config: FitConfig, asked: Sequence[str]) -> dict[str, Any]:
    """What stands in ``result.json`` before the first epoch; ``finished`` says whether the run came to its end."""
    return {
        "model": config.model,
        "dataset": _printable(Path(config.data).name.removesuffix(".npz")),
        "seed": config.seed,
        "warm_up": config.warm_up,
        "epochs": config.epochs,
        "policy": config.policy,
        "batch_size": config.batch_size,
        "train_samples": config.train,
        "image_size": config.image_size,
        "optimizer": asdict(config.optimizer),
        "config": config.plain(),
        "asked": list(asked),
        "finished": False,
    }


def _printable(name: str) -> str:
    """A name whose bytes are no UTF-8 with these spelt out: reports and figures are UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def describe_arms(config: FitConfig, asked: Sequence[str], arms: Sequence[Arm], finished: bool) -> dict[str, Any]:
    """The whole content of ``result.json``; strategies in the order of ``arms``."""
    split = arms[0].tuner.split
    sgd = next((arm for arm in arms if arm.strategy == "sgd"), None)
    droppable = split.macs(0) - split.macs(len(split.layers) - 1)
    return {
        **describe_run(config, asked),
        "finished": finished,
        "layers": len(split.layers),
        "layer_names": list(split.layers),
        "hardware": describe_hardware(),
        "input_bytes": split.live_bytes(0),
        "droppable_macs": droppable,
        "strategies": {arm.strategy: _entry(arm, sgd, droppable) for arm in arms},
    }


def _entry(arm: Arm, sgd: Arm | None, droppable: int) -> dict[str, Any]:
    split, cut, rows = arm.tuner.split, arm.tuner.cut, arm.rows
    dropped = 100.0 * (split.macs(0) - split.macs(cut)) / droppable if droppable else 0.0
    asked = arm.tuner.decisions.asked
    return {
        "status": arm.status,
        "error": arm.error,
        "seconds": arm.seconds,
        "fill_seconds": arm.fill_seconds,
        "accuracy": rows[-1]["accuracy"] if rows else None,
        "best_accuracy": max((row["accuracy"] for row in rows), default=None),
        "forward_macs": sum(row["forward_macs"] for row in rows),
        "saved_time_percent": _saved(arm, sgd, "seconds"),
        "saved_macs_percent": _saved(arm, sgd, "forward_macs"),
        "cut": cut,
        "first_decision": next((row["epoch"] for row in rows if row["next_cut"] > row["cut"]), None),
        "first_asked": asked,
        "bound_time_percent": _bound(sgd, asked),
        "dropped_macs_percent": dropped,
        "held_back": _held_back(arm, dropped),
        "stored_bytes": split.live_bytes(cut if arm.strategy == "drop" else 0),
        "epochs": rows,
    }


def _decides(arm: Arm) -> bool:
    return arm.tuner.settings.strategy != "sgd"


def _bound(sgd: Arm | None, asked: int | None) -> float | None:
    """What a free head from epoch ``asked`` on would save of sgd's seconds, in percent."""
    if sgd is None or asked is None or not sgd.seconds:
        return None
    return float(100.0 * (1.0 - sum(row["seconds"] for row in sgd.rows if row["epoch"] <= asked) / sgd.seconds))


def _held_back(arm: Arm, dropped: float) -> str | None:
    """Which rule kept droppable layers running; None where next to nothing is left of them."""
    if not _decides(arm) or dropped >= ENOUGH_DROPPED or not arm.rows:
        return None
    told = next((row["why"] for row in reversed(rows_after_drops(arm.rows)) if row["why"]), None)
    last = next((row["epoch"] for row in reversed(arm.rows) if row["next_cut"] > row["cut"]), None)
    since = f"since epoch {last}" if last is not None else "at any epoch"
    return told or f"{type(arm.tuner.policy).__name__} asked for no layer {since}"


def rows_after_drops(rows: Sequence[Row]) -> Sequence[Row]:
    """The epochs after which nothing was dropped any more."""
    last = max((i for i, row in enumerate(rows) if row["next_cut"] > row["cut"]), default=-1)
    return rows[last + 1 :]


def _saved(arm: Arm, sgd: Arm | None, key: str) -> float | None:
    """Eq. 5: percent of ``key`` saved against sgd over the same epochs; None where there is nothing to compare."""
    if sgd is None or "diverged" in (arm.status, sgd.status):
        return None
    spent, base = _total(arm.rows, key), _total(sgd.rows, key)
    return 100.0 * (base - spent) / base if base else None


def _total(rows: Sequence[Row], key: str) -> float:
    return float(sum(row[key] for row in rows))


def describe_divergence(result: dict[str, Any], folder: str | os.PathLike[str]) -> str:
    """One line on every strategy whose training diverged: when, why, where its last good weights are; '' for none."""
    lines = []
    for name, entry in result["strategies"].items():
        if entry["status"] == "diverged":
            epoch, kept = len(entry["epochs"]) + 1, Path(folder) / f"{name}-last-good.safetensors"
            lines.append(f"{name} diverged in epoch {epoch}: {entry['error']} (weights before it: {kept})")
    return "; ".join(lines)
