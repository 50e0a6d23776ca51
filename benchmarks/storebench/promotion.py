"""Promotion through real layers, against the same layers on tensors in memory in the same chunks."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor

import streamdrop as sd
from storebench.measure import Row, Target, key_of, rows_of, taking_turns
from storebench.ours import Make, chosen, makers
from streamdrop.settings import TunerSettings
from streamdrop.split import run_in_chunks
from streamdrop.tracking.threads import threads
from streamdrop.types import Activations

MEMORY = "tensors in memory"
CHUNK = TunerSettings().chunk


@dataclass(frozen=True)
class Move:
    """Activations at cut ``lower`` that go to ``upper``."""

    split: sd.SplitModel
    lower: int
    upper: int
    activations: Activations

    @property
    def count(self) -> int:
        """How many samples."""
        return len(self.activations[0])

    def step(self, activations: Activations) -> Activations:
        """The layers in between, as ``Feed`` runs them."""
        moved = run_in_chunks(self.split.step(self.lower, self.upper), activations, CHUNK)
        return tuple(tensor.cpu() for tensor in moved)


def promotion(options: argparse.Namespace, work: Path) -> Iterator[list[Row]]:
    """ResNet-18 at 64 and 128 px: a stage, and for comparison one convolution, of all promotions the cheapest."""
    with threads(options.threads):
        for side in (64, 128):
            split = network(side)
            lower, next_stage = first_of(split, "layer2"), first_of(split, "layer3")
            given = activations_at(split, lower, side, min(options.total_mb, 256) << 20)
            for what, upper in (("one convolution", lower + 1), ("a stage", next_stage)):
                move = Move(split, lower, upper, given)
                sizes = f"{split.live_bytes(lower) >> 10} → {split.live_bytes(upper) >> 10} KB"
                case = f"resnet18 layer2, {what}, {side} px, {sizes} × {move.count}, {options.threads} threads"
                values = taking_turns(turns(move, work, options), options.repeats)
                least = 0.8 if what == "a stage" else None
                wanted = {name: [Target(MEMORY, least=least)] for name in chosen(options)}
                yield rows_of("promotion", case, "samples/s", values, wanted)


def network(side: int) -> sd.SplitModel:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    return sd.SplitModel(model, torch.zeros(2, 3, side, side))


def first_of(split: sd.SplitModel, stage: str) -> int:
    """The cut right below a stage."""
    return next(i for i, name in enumerate(split.layers) if name.startswith(stage))


def activations_at(split: sd.SplitModel, cut: int, side: int, size: int) -> Activations:
    """About ``size`` bytes of activations."""
    count = max(CHUNK, size // split.live_bytes(cut))
    tail = split.tail(cut)
    sizes = [min(256, count - i) for i in range(0, count, 256)]
    parts = [run_in_chunks(tail, (torch.rand(size, 3, side, side),), CHUNK) for size in sizes]
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def turns(move: Move, work: Path, options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """The bare loop, and each store."""
    expected = bare_loop(move)
    made = makers(options.memory_mb << 20)

    def in_memory() -> float:
        start = time.perf_counter()
        bare_loop(move)
        return move.count / (time.perf_counter() - start)

    stores = {name: store_turn(move, made[name], work / "promotion", expected) for name in chosen(options)}
    return {MEMORY: in_memory, **stores}


def bare_loop(move: Move) -> list[Activations]:
    chunks = zip(*(tensor.split(CHUNK) for tensor in move.activations), strict=True)
    return [move.step(chunk) for chunk in chunks]


def store_turn(move: Move, make: Make, folder: Path, expected: list[Activations]) -> Callable[[], float]:
    """A fresh store, filled and durable before the clock starts; what it makes must be what the bare loop made."""

    def run() -> float:
        shutil.rmtree(folder, ignore_errors=True)
        with make(folder) as store:
            fill(store, move)
            start = time.perf_counter()
            store.advance(move.upper, move.step, "promoted", CHUNK)
            taken = time.perf_counter() - start
            check(store.get_many([key_of(i) for i in range(CHUNK)]), expected[0])
        shutil.rmtree(folder)
        return move.count / taken

    return run


def fill(store: sd.FeatureStore, move: Move) -> None:
    store.advance(move.lower, lambda given: given, "filled")
    for start in range(0, move.count, 256):
        rows: Iterator[tuple[Tensor, ...]] = zip(*(t[start : start + 256] for t in move.activations), strict=True)
        store.put_many({key_of(start + i): row for i, row in enumerate(rows)})
    store.flush()


def check(found: Activations, expected: Activations) -> None:
    if not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
        raise SystemExit("promotion: the store's activations differ from those of the same layers on tensors in memory")
