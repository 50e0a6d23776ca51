"""Memory of a process that writes and reads ten times the ring (``python -m storebench.memory ARM FOLDER RING KB``)."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from storebench.measure import Row, key_of, resident, rows_of
from storebench.ours import chosen, makers

TIMES, BATCH = 10, 32


def memory(options: argparse.Namespace, work: Path) -> Iterator[list[Row]]:
    """Growth over what the process took before it opened the store: own memory, and mapped files' pages.

    Mapped pages are the page cache's: the kernel takes them back when it needs them.
    """
    ring = (options.total_mb << 20) // TIMES
    for kilobytes in options.sizes:
        found: dict[str, list[float]] = {}
        for name in chosen(options):
            for _ in range(min(options.repeats, 3)):
                for part, value in child(name, work / "memory", ring, kilobytes).items():
                    found.setdefault(f"{name}, {part}", []).append(value / ring)
        case = f"{kilobytes} KB, {TIMES} × a ring of {ring >> 20} MB, batches of {BATCH}"
        yield rows_of("peak memory growth", case, "ring sizes", found, {})


def child(name: str, folder: Path, ring: int, kilobytes: int) -> dict[str, float]:
    shutil.rmtree(folder, ignore_errors=True)
    arguments = [name, str(folder.resolve()), str(ring), str(kilobytes)]
    command = [sys.executable, "-m", "storebench.memory", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    shutil.rmtree(folder, ignore_errors=True)
    values: dict[str, float] = json.loads(done.stdout)
    return values


def measure(name: str, folder: Path, ring: int, kilobytes: int) -> dict[str, int]:
    """Peaks while writing and while reading random batches, less what was there before."""
    torch.set_num_threads(1)
    count, floats = TIMES * ring // (kilobytes << 10), kilobytes * 256
    base = torch.arange(floats, dtype=torch.float32)
    before = resident()
    with makers(ring)[name](folder) as store:
        with peak() as writing:
            write(store, base, count)
        with peak() as reading:
            read(store, base, count)
    pairs = (("writing", writing), ("reading", reading))
    kinds = (("anon", "own"), ("file", "mapped"))
    return {f"{what}, {shown}": found[kind] - before[kind] for what, found in pairs for kind, shown in kinds}


def write(store: Any, base: torch.Tensor, count: int) -> None:
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        store.put_many({key_of(i): (base + i,) for i in numbers})
    store.flush()


def read(store: Any, base: torch.Tensor, count: int) -> None:
    for part in torch.randperm(count).split(BATCH):
        rows = store.get_many([key_of(i) for i in part.tolist()])[0]
        if not torch.equal(rows[:, 0], base[0] + part):
            raise SystemExit("the store gives other values than were put")


@contextmanager
def peak() -> Iterator[dict[str, int]]:
    """The most that is resident inside, looked at every 2 ms."""
    most, over = resident(), threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            for kind, value in resident().items():
                most[kind] = max(most[kind], value)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:5]))))
