"""What write-behind adds to a tracker's rounds: TieredStore's against MemoryStore's, in pairs of blocks."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import streamdrop as sd
from storebench.measure import Row, Target, key_of, rows_of, timed
from streamdrop.tracking.config import HeadConfig
from streamdrop.tracking.labels import score_loss
from streamdrop.tracking.network import build_network
from streamdrop.tracking.threads import threads

MEMORY, TIERED = "MemoryStore", "TieredStore"
KEPT, BATCH, STEPS, SIDE = 40, 12, 4, 256
"""Samples kept, in a batch, steps (and new samples) in a round, pixels of a crop: the tracker's own numbers."""


def behind(options: argparse.Namespace, work: Path) -> Iterator[list[Row]]:
    """The tracker's head on one thread. A flush behind each block, outside its clock, keeps writes out of the next."""
    with threads(1), sd.TieredStore(work / "behind", max_samples=KEPT) as tiered:
        loops = {MEMORY: Rounds(sd.MemoryStore(max_samples=KEPT)), TIERED: Rounds(tiered)}
        count = rounds_in(loops[MEMORY], max(3.0, options.seconds))
        for loop in loops.values():
            loop.run(count)
        rounds: dict[str, list[float]] = {name: [] for name in loops}
        flushes: list[float] = []
        for _ in range(options.repeats):
            for name, loop in loops.items():
                rounds[name].append(1e3 * timed(lambda loop=loop: loop.run(count)) / count)
            flushes.append(1e3 * timed(tiered.flush) / count)
    flushed = [a + b for a, b in zip(rounds[TIERED], flushes, strict=True)]
    values = {**rounds, f"{TIERED}, and a flush per block": flushed}
    size = loops[MEMORY].activations_bytes >> 10
    case = f"tracker's head, {STEPS} puts of {size} KB and {STEPS} steps a round, blocks of {count} rounds, 1 thread"
    wanted = {TIERED: [Target(MEMORY, most=1.05)], f"{TIERED}, and a flush per block": [Target(MEMORY)]}
    yield rows_of("write-behind", case, "ms per round", values, wanted)


class Rounds:
    """A tuner on ``store`` that is given new samples and trains, round by round; both arms do the same."""

    def __init__(self, store: sd.FeatureStore) -> None:
        torch.manual_seed(0)
        network = build_network(HeadConfig(), trainable=0)
        example = torch.zeros(1, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
        split = sd.SplitModel(network, example)
        cut = sum(not name.startswith("score.") for name in split.layers)
        self.tuner = sd.FineTuner(split, loss=score_loss, optimizer=adam, store=store, policy=sd.SchedulePolicy(),
                                  cut=cut, batch_norm="frozen", batch_size=BATCH)  # fmt: skip
        self.activations = self.tuner.embed(torch.rand(1, 3, SIDE, SIDE))
        self.targets = torch.rand(1, SIDE // 8, SIDE // 8)
        self.seen = 0
        for _ in range(KEPT):
            self.put()

    @property
    def activations_bytes(self) -> int:
        """Bytes of a sample."""
        return sum(tensor.nbytes for tensor in self.activations)

    def put(self) -> None:
        """One new sample; the oldest leaves."""
        self.seen += 1
        self.tuner.observe_activations([key_of(self.seen)], self.activations, self.targets)

    def run(self, count: int) -> None:
        """``count`` rounds, new samples before each."""
        for _ in range(count):
            for _ in range(STEPS):
                self.put()
            self.tuner.fit_round(steps=STEPS, sampler=sample)


def adam(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-4)


def sample(keys: list[bytes], iteration: int, generator: torch.Generator) -> Sequence[bytes]:
    return [keys[i] for i in torch.randperm(len(keys), generator=generator)[:BATCH].tolist()]


def rounds_in(loop: Rounds, seconds: float) -> int:
    """How many rounds fill about ``seconds``: several commits fall into a block."""
    loop.run(2)
    return max(2, round(seconds / (timed(lambda: loop.run(4)) / 4)))
