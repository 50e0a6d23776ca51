"""What the store costs training: the rest of a network from a cut on, fed by a store and by tensors in memory.

    python benchmarks/head_only.py [--heads 4KB 64KB ...] [--runs 7] [--ahead 0 2] [--output FILE]

The rival is a bare loop: the same head, optimiser and batches in the same order, gathered by ``index_select`` out of
tensors that hold all samples. Epochs take turns, so that a slow moment of the machine meets all; a ratio compares
epochs of the same turn. All arms must end in the same weights. The store's files lie in the system's cache. Processor
time is that of all threads: what reading costs even where another core hides it.

Heads: the activations of a sample at the cut, and what is trained on them:

    4KB         [256, 2, 2]      ResNet-18 at 32 px from its fourth stage on
    64KB        [256, 8, 8]      ResNet-18 at 128 px from its fourth stage on
    512KB       [128, 32, 32]    ResNet-18 at 256 px from its third stage on
    16KB-light  [512, 2, 2] × 2  ResNet-18's last convolution at 64 px
    61KB-light  [320, 7, 7]      MobileNetV2's last convolution at 224 px

The light ones are the hardest for a store: little is computed on what is read.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional

import streamdrop as sd
from streamdrop.evaluation.hardware import describe_hardware
from streamdrop.rounds import round_batches
from streamdrop.store import FeatureStore, LmdbStore, MemoryStore

RIVAL = "tensors in memory"
SEED = 0


Seconds = tuple[float, float]  # wall clock, processor


@dataclass(frozen=True)
class Head:
    """A network, its input's size, the first layer that is trained, and about a second's worth of samples."""

    model: str
    pixels: int
    first: str
    samples: int
    batch: int

    def split(self) -> tuple[sd.SplitModel, int]:
        """A split model, always of the same weights, and the cut before ``first``."""
        torch.manual_seed(SEED)
        steady = {"dropout": 0.0} if self.model.startswith("mobilenet") else {}  # arms would draw differently
        model = torchvision.models.get_model(self.model, weights=None, num_classes=10, **steady)
        split = sd.SplitModel(model, torch.zeros(2, 3, self.pixels, self.pixels))
        return split, split.layers.index(self.first)


HEADS = {
    "4KB": Head("resnet18", 32, "layer4.0.conv1", 1536, 64),
    "64KB": Head("resnet18", 128, "layer4.0.conv1", 128, 32),
    "512KB": Head("resnet18", 256, "layer3.0.conv1", 32, 16),
    "16KB-light": Head("resnet18", 64, "layer4.1.conv2", 2048, 64),
    "61KB-light": Head("mobilenet_v2", 224, "features.18.0", 512, 64),
}


@dataclass(frozen=True)
class Samples:
    """All that an epoch reads."""

    keys: list[bytes]
    activations: tuple[torch.Tensor, ...]
    labels: torch.Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=HEADS, metavar="HEAD")
    parser.add_argument("--runs", type=int, default=7, help="epochs of each arm")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many samples")
    parser.add_argument("--ahead", type=int, nargs="+", default=[0, 2], help="read_ahead of the store on disk")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="where stores lie (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    print(f"{describe_hardware()}; n = {options.runs}")
    results = {}
    for name in options.heads:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            results[name] = measure(HEADS[name], options, Path(folder))
        print(table(name, results[name]), flush=True)
    if options.output:
        facts = {"hardware": describe_hardware(), "threads": options.threads, "runs": options.runs}
        options.output.write_text(json.dumps({**facts, "heads": results}, indent=1))


def keep_memory() -> None:
    """Let glibc keep what is freed: else gradients may be given back and taken again at every step, in any arm."""
    with contextlib.suppress(OSError, AttributeError):
        for parameter, value in ((-1, 1 << 30), (-3, 32 << 20)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, value)


def measure(head: Head, options: argparse.Namespace, folder: Path) -> dict:
    samples = made_up(head, int(head.samples * options.scale))
    tuners = {"MemoryStore": tuner(head, samples, MemoryStore(), 0)}
    for ahead in options.ahead:
        store = LmdbStore(folder / str(ahead))
        tuners[f"LmdbStore, {ahead} ahead" if ahead else "LmdbStore, in line"] = tuner(head, samples, store, ahead)
    epoch, model = bare_loop(head, samples)
    arms = {RIVAL: epoch, **{name: each.fit_round for name, each in tuners.items()}}
    seconds = in_turns(arms, options.runs)
    for name, each in tuners.items():
        assert same_weights(model, each.split.model), f"{name} did not train what the bare loop trained"
        each.store.close()
    shapes = [list(tensor.shape[1:]) for tensor in samples.activations]
    nbytes = sum(tensor[0].nbytes for tensor in samples.activations)
    facts = {"model": head.model, "pixels": head.pixels, "first": head.first, "shapes": shapes, "bytes": nbytes}
    return {**facts, "samples": len(samples.keys), "batch": head.batch, "arms": summary(seconds)}


def in_turns(arms: dict[str, Callable[[], object]], runs: int) -> dict[str, list[Seconds]]:
    """Seconds of every arm's epochs; who begins changes from turn to turn."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in arms}
    names = list(arms)
    for run in range(runs + 1):
        for name in names[run % len(names) :] + names[: run % len(names)]:
            start = time.perf_counter(), time.process_time()
            arms[name]()
            if run:  # the first warms up
                seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return seconds


def made_up(head: Head, count: int) -> Samples:
    """Samples with activations as after a ReLU: what the head computes does not depend on the values."""
    split, cut = head.split()
    shapes = [tensor.shape[1:] for tensor in split.tail(cut)(torch.zeros(2, 3, head.pixels, head.pixels))]
    generator = torch.Generator().manual_seed(1)
    activations = tuple(torch.randn(count, *shape, generator=generator).relu() for shape in shapes)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return Samples([n.to_bytes(8, "big") for n in range(count)], activations, labels)


def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 1e-3, 0.9)


def tuner(head: Head, samples: Samples, store: FeatureStore, ahead: int) -> sd.FineTuner:
    split, cut = head.split()
    made = sd.FineTuner(
        split,
        loss=functional.cross_entropy,
        optimizer=optimizer,
        store=store,
        policy=sd.SchedulePolicy(),
        cut=cut,
        batch_size=head.batch,
        seed=SEED,
        read_ahead=ahead,
    )
    for i in range(0, len(samples.keys), 128):
        part = slice(i, i + 128)
        activations = tuple(tensor[part] for tensor in samples.activations)
        made.observe_activations(samples.keys[part], activations, samples.labels[part])
    return made


def bare_loop(head: Head, samples: Samples) -> tuple[Callable[[], None], nn.Module]:
    split, cut = head.split()
    rest = split.head(cut)
    updates = optimizer(list(split.head_parameters(cut).values()))
    rounds = 0

    def epoch() -> None:
        nonlocal rounds
        rounds += 1
        split.model.eval()
        rest.train()
        for keys in round_batches(samples.keys, head.batch, None, None, (SEED, rounds)):
            chosen = torch.tensor([int.from_bytes(key, "big") for key in keys])
            updates.zero_grad(set_to_none=True)
            batch = tuple(tensor.index_select(0, chosen) for tensor in samples.activations)
            functional.cross_entropy(rest(batch), samples.labels[chosen]).backward()
            updates.step()

    return epoch, split.model


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def summary(seconds: dict[str, list[Seconds]]) -> dict[str, dict]:
    """For each arm and clock: seconds of its epochs, and their ratios to the rival's in the same turns."""
    found: dict[str, dict] = {name: {} for name in seconds}
    for name, arm in found.items():
        for clock, kind in enumerate(("wall", "processor")):
            values, rival = ([turn[clock] for turn in seconds[which]] for which in (name, RIVAL))
            ratios = [value / base for value, base in zip(values, rival, strict=True)]
            arm[kind] = {"seconds": spread(values), "ratio": spread(ratios), "all_seconds": values}
    return found


def spread(values: list[float]) -> dict[str, float]:
    low, _, high = statistics.quantiles(values, n=4)
    return {"median": statistics.median(values), "quartiles": [low, high], "min": min(values), "max": max(values)}


def table(name: str, result: dict) -> str:
    shapes = " + ".join(map(str, result["shapes"]))
    lines = [
        f"\n{name}: {shapes}, {result['bytes'] / 1024:.0f} KB a sample; {result['samples']} samples in batches of "
        f"{result['batch']};",
        f"{result['model']} at {result['pixels']} px, from {result['first']} on; ratios: median (quartiles)",
        f"{'epoch from':<20}{'ms: median (min-max)':>24}{'ratio':>22}{'processor ratio':>22}",
    ]
    for arm, found in result["arms"].items():
        took = found["wall"]["seconds"]
        span = f"{1e3 * took['median']:.0f} ({1e3 * took['min']:.0f}-{1e3 * took['max']:.0f})"
        ratios = [found[kind]["ratio"] for kind in ("wall", "processor")]
        texts = [f"{r['median']:.3f} ({r['quartiles'][0]:.2f}-{r['quartiles'][1]:.2f})" for r in ratios]
        lines.append(f"{arm:<20}{span:>24}{texts[0]:>22}{texts[1]:>22}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
