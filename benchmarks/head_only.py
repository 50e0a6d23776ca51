"""What the store costs a round: all but the last layer dropped, against that head on tensors in memory.

    python benchmarks/head_only.py [--samples 1500] [--runs 7]

Same head, batches and optimiser; the rival is a bare loop over tensors that lie batched in memory. They take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torchvision
from torch.nn import functional

import streamdrop as sd
from streamdrop.evaluation.hardware import describe_hardware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write JSON here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(options, folder)
    rival = statistics.median(seconds["tensors in memory"])
    print(f"{options.model}, {options.samples} samples at {options.size} px, all but the last layer dropped")
    print(describe_hardware())
    print(f"{'epoch from':<22}{'median ms':>10}{'min':>8}{'max':>8}{'ratio':>8}   n = {options.runs}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"{name:<22}{1e3 * median:>10.0f}{1e3 * min(values):>8.0f}{1e3 * max(values):>8.0f}{median / rival:>8.2f}"
        )
    if options.output:
        options.output.write_text(json.dumps({"hardware": describe_hardware(), "seconds": seconds}, indent=1))


def measure(options: argparse.Namespace, folder: str) -> dict[str, list[float]]:
    images = torch.rand(options.samples, 3, options.size, options.size)
    labels = torch.randint(0, 10, (options.samples,))
    tuners = {
        "LmdbStore": tuner(options, images, labels, sd.LmdbStore(Path(folder) / "s")),
        "MemoryStore": tuner(options, images, labels, sd.MemoryStore()),
    }
    plain = bare_loop(options, images, labels)
    seconds: dict[str, list[float]] = {"tensors in memory": [], **{name: [] for name in tuners}}
    for run in range(options.runs + 1):
        start = time.perf_counter()
        plain()
        taken = {"tensors in memory": time.perf_counter() - start}
        taken |= {name: each.fit_round().seconds for name, each in tuners.items()}
        for name, value in taken.items():
            if run:  # the first warms up
                seconds[name].append(value)
    return seconds


def build(options: argparse.Namespace) -> tuple[sd.SplitModel, int]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(options.model, weights=None, num_classes=10)
    split = sd.SplitModel(model, torch.zeros(2, 3, options.size, options.size))
    return split, len(split.layers) - 1


def optimizer(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01, 0.9)


def tuner(options: argparse.Namespace, images: torch.Tensor, labels: torch.Tensor, store: object) -> sd.FineTuner:
    split, last = build(options)
    made = sd.FineTuner(
        split,
        loss=functional.cross_entropy,
        optimizer=optimizer,
        store=store,
        policy=sd.SchedulePolicy(),
        cut=last,
        batch_size=options.batch,
    )
    for i in range(0, options.samples, 250):
        keys = [n.to_bytes(8, "big") for n in range(i, min(i + 250, options.samples))]
        made.observe(sd.Batch(keys, images[i : i + 250], labels[i : i + 250]))
    return made


def bare_loop(options: argparse.Namespace, images: torch.Tensor, labels: torch.Tensor):
    split, last = build(options)
    tail, head = split.tail(last).eval(), split.head(last)
    with torch.no_grad():
        parts = [tail(chunk) for chunk in images.split(100)]
    activations = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
    updates = optimizer(list(split.head_parameters(last).values()))

    def epoch() -> None:
        head.train()
        for chosen in torch.randperm(options.samples).split(options.batch):
            updates.zero_grad(set_to_none=True)
            functional.cross_entropy(head(tuple(t[chosen] for t in activations)), labels[chosen]).backward()
            updates.step()

    return epoch


if __name__ == "__main__":
    main()
