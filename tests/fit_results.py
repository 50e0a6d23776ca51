"""Made-up results in the shape that `streamdrop fit` writes, for the tests of tables, figures and pages."""

from __future__ import annotations

import math
from typing import Any

SECONDS = {"sgd": 1.0, "freeze-full": 0.95, "freeze": 0.6, "drop": 0.1, "sgd-same-time": 1.0}
"""What an epoch costs after the drop, the one before it costing 1."""


def make_rows(strategy: str, epochs: int, drop_after: int, layers: int, batch_norm: bool) -> list[dict[str, Any]]:
    """Epochs of 10 s that drop all layers but the last after ``drop_after``; the epoch after it stores."""
    rows = []
    for epoch in range(1, epochs + 1):
        cut = layers - 1 if epoch > drop_after and not strategy.startswith("sgd") else 0
        stored = strategy == "drop" and epoch == drop_after + 1
        share = 1.1 if stored else SECONDS[strategy] if cut else 1.0
        head = range(cut, layers)
        rank = {i: layers - i if batch_norm else i for i in head}
        rows.append(
            {
                "epoch": epoch,
                "seconds": 10.0 * share,
                "store_seconds": 0.5 if stored else 0.0,
                "tail_seconds": 0.0,
                "read_seconds": 0.2,
                "train_seconds": 10.0 * share - 0.7,
                "loss": 2.0 / epoch + (0.1 if strategy.startswith("sgd") else 0.0),
                "accuracy": 0.5 + 0.02 * epoch - (0.01 if strategy.startswith("sgd") else 0.0),
                "cut": cut,
                "next_cut": layers - 1 if epoch == drop_after and not strategy.startswith("sgd") else cut,
                "stored": stored,
                "parameters": 1000 * (layers - cut),
                "forward_macs": 1_000_000 * (1 if cut and strategy == "drop" else layers),
                "importance": {f"l{i}": 0.5 + 0.4 * rank[i] / layers for i in head},
                "magnitude": {f"l{i}": 1.0 / (1 + i) for i in head},
                "agreement": {f"l{i}": 9.0 / epoch for i in head},
            }
        )
    return rows


def make_result(
    model: str = "resnet18",
    dataset: str = "cifar10",
    seed: int = 0,
    *,
    epochs: int = 10,
    drop_after: int = 4,
    layers: int = 5,
    policy: Any = "auto",
    strategies: tuple[str, ...] = ("sgd", "freeze-full", "freeze", "drop", "sgd-same-time"),
    batch_norm: bool = True,
) -> dict[str, Any]:
    """A whole result: warm-up 3, so the policy is first asked after epoch 4; sgd takes 100 s and drop 56."""
    entries: dict[str, Any] = {}
    for name in strategies:
        rows = make_rows(name, 3 if name == "sgd-same-time" else epochs, drop_after, layers, batch_norm)
        entries[name] = {
            "seconds": sum(row["seconds"] for row in rows),
            "fill_seconds": 0.1,
            "accuracy": rows[-1]["accuracy"],
            "best_accuracy": rows[-1]["accuracy"],
            "forward_macs": sum(row["forward_macs"] for row in rows),
            "cut": rows[-1]["cut"],
            "status": "done",
            "epochs": rows,
        }
    if "drop" in entries:
        entries["drop"] |= {"first_decision": 4, "first_asked": 4, "dropped_macs_percent": 98.5, "held_back": None,
                            "stored_bytes": 2048}  # fmt: skip
    return {
        "model": model, "dataset": dataset, "seed": seed, "warm_up": 3, "epochs": epochs, "policy": policy,
        "layers": layers, "layer_names": [f"l{i}" for i in range(layers)], "batch_size": 64, "train_samples": 1000,
        "image_size": 32, "optimizer": {"name": "sgd", "lr": 0.01}, "input_bytes": 12288, "droppable_macs": 4_000_000,
        "hardware": "two cores", "strategies": entries,
    }  # fmt: skip


def diverge(result: dict[str, Any], strategy: str, epoch: int) -> dict[str, Any]:
    """The result with an arm that ended in ``epoch`` with a loss that is no number."""
    entry = result["strategies"][strategy]
    entry["epochs"] = entry["epochs"][:epoch]
    if epoch:
        entry["epochs"][-1] |= {"loss": math.nan, "accuracy": math.nan}
    entry |= {"status": "diverged", "accuracy": math.nan if epoch else None}
    return result


def make_sweep(cells: list[tuple[str, str, str, int, str]]) -> dict[str, Any]:
    """A ``sweep.json`` of (data set, model, variant, seed, status) cells."""
    return {
        "name": "mini",
        "hardware": "two cores",
        "version": "1.2",
        "protocol": {"name": "mini", "data": {"cifar10": "/somewhere/cifar10"}, "base": {"epochs": 10}},
        "cells": [
            {"dataset": d, "model": m, "variant": v, "seed": s, "status": status,
             "error": "out of memory" if status == "failed" else None,
             "result": f"cells/{d}/{m}/{v}/seed-{s}/result.json"}
            for d, m, v, s, status in cells
        ],
    }  # fmt: skip
