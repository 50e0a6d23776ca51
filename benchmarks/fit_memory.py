"""The memory of a fit whose store is larger than it: 50,000 images of CIFAR-10's size and form, a drop to a wide cut.

    python benchmarks/fit_memory.py [--samples 50000] [--channels 12] [--rounds 2] [--output FILE]

A tiny network trains ``rounds`` rounds on all of it, drops its first convolution, whose map (--channels at 32 × 32,
float32) is four times the input at 12 channels, stores these while it trains, and trains ``rounds`` - 1 rounds from the
store. Images are drawn at random, written as CIFAR-10's binary files and read as any user's are.

Per phase: seconds, the store's bytes, and the highest resident memory seen (every 10 ms): all of it, the process's own
(anonymous), and pages of files that it has mapped (libraries, the store), which the system may take back at any time.
The last line is the system's own peak of the whole run (getrusage).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import streamdrop as sd
from streamdrop.evaluation.datasets import read_split
from streamdrop.evaluation.hardware import describe_hardware

FIELDS = {"VmRSS": "rss", "RssAnon": "anonymous", "RssFile": "file"}
MB = 1e6


def resident() -> dict[str, float]:
    """What of this process is in memory, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return {name: int(values[field].split()[0]) * 1024 / MB for field, name in FIELDS.items()}


class Phases:
    """Measures one phase after another; ``store`` is the folder whose bytes are counted."""

    def __init__(self, store: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self._store = store

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A row for what is done inside."""
        highest, done = resident(), threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                for key, value in resident().items():
                    highest[key] = max(highest[key], value)

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            done.set()
            watcher.join()
        files = [path for path in self._store.rglob("*") if path.is_file()]
        stored = sum(path.stat().st_blocks * 512 for path in files) / MB
        self.rows.append({"phase": name, "seconds": seconds, "store": stored, **highest})
        print(row(self.rows[-1]), flush=True)


def row(values: dict[str, Any]) -> str:
    numbers = (f"{values[key]:>11,.0f}" for key in ("store", *FIELDS.values()))
    return f"{values['phase']:<24}{values['seconds']:>9.1f}{''.join(numbers)}"


def write_images(folder: Path, samples: int) -> None:
    """CIFAR-10's five binary files, with random pixels that are brighter for higher labels."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, part in enumerate(np.array_split(np.arange(samples), 5), start=1):
        labels = (part % 10).astype(np.uint8)[:, None]
        pixels = random.integers(0, 156, (len(part), 3072), dtype=np.uint8) + 10 * labels
        (folder / f"data_batch_{number}.bin").write_bytes(np.concatenate([labels, pixels], axis=1).tobytes())


def network(channels: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 16, 4, stride=4),
        nn.ReLU(),
        nn.Conv2d(16, 32, 2, stride=2),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    phases = Phases(folder / "store")
    write_images(folder / "cifar-10-batches-bin", options.samples)
    with phases.phase("read the images"):
        train = read_split(str(folder), "train", options.samples, 32)
    split = sd.SplitModel(network(options.channels), train.input(0, 2))
    with contextlib.closing(sd.LmdbStore(folder / "store")) as store:
        tuner = sd.FineTuner(
            split,
            loss=functional.cross_entropy,
            optimizer=lambda parameters: torch.optim.SGD(parameters, 0.01, 0.9),
            store=store,
            policy=sd.SchedulePolicy({options.rounds: 1}),
            batch_size=256,
        )
        with phases.phase("fill the store"):
            for batch in train.batches(500):
                tuner.observe(batch)
        for number in range(1, 2 * options.rounds + 1):
            kind = "stores" if tuner.cut > store.cut else "trains"
            with phases.phase(f"round {number}, cut {tuner.cut}, {kind}"):
                tuner.fit_round()
        with phases.phase("predict 10,000"):
            for batch in train.batches(500):
                tuner.predict(batch.images)
                if batch.keys[-1] >= train.keys[min(9_999, len(train) - 1)]:
                    break
        assert store.cut == 1, "the store moved to the wide cut"
    return phases.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--channels", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2, help="rounds before the drop, and from it on")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    print(f"{'phase (MB)':<24}{'seconds':>9}{'store':>11}{'rss':>11}{'anonymous':>11}{'file':>11}")
    start = {"phase": "start", "seconds": 0.0, "store": 0.0, **resident()}
    print(row(start))
    with tempfile.TemporaryDirectory() as folder:
        rows = [start, *measure(options, Path(folder))]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
    stored = rows[-1]["store"]
    print(f"peak of the run: {peak:,.0f} MB, the store holds {stored:,.0f} MB")
    result = {"hardware": describe_hardware(), "samples": options.samples, "peak_mb": peak, "stored_mb": stored}
    if options.output is not None:
        options.output.write_text(json.dumps({**result, "phases": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
