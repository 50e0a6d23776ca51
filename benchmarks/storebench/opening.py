"""Opening a store of a million samples, here and in a fresh process (``python -m storebench.opening STORE PATH``)."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from storebench.measure import Row, Target, disk_bytes, drop_cache, key_of, rows_of, taking_turns, timed
from storebench.ours import chosen, makers

PARTS = ("open", "len", "keys()[:1]", "get_many of 32")
COUNT = 1_000_000
LIMIT_MS = 50
HERE = Path(__file__).parents[1]


def million(options: argparse.Namespace, work: Path) -> Iterator[list[Row]]:
    """Built once: with ``--folder`` it stays there for the next run."""
    base = options.folder if options.folder is not None else work
    for name in chosen(options):
        path = base / f"million-{name}-{options.million_bytes}"
        build(path, name, options)
        case = f"{COUNT} samples of {options.million_bytes} bytes, {name}, {disk_bytes(path) / 1e9:.2f} GB on disk"
        places = {
            "same process": lambda path=path, name=name: probe(path, name),
            "fresh process": lambda path=path, name=name: fresh(path, name),
            "fresh process, page cache dropped": lambda path=path, name=name: fresh(path, name, drop_cache),
            "fresh process, after a kill": lambda path=path, name=name: fresh(
                path, name, partial(killed, name, options)
            ),
        }
        found: dict[str, list[float]] = {}

        def turn(where: str, ask: Any, found: dict[str, list[float]] = found) -> float:
            for part, value in ask().items():
                found.setdefault(f"{where}: {part}", []).append(value)
            return 0.0

        taking_turns({w: lambda w=w, ask=ask: turn(w, ask) for w, ask in places.items()}, options.repeats)
        wanted = {f"{where}: open": [Target(most=LIMIT_MS)] for where in places}
        yield rows_of("opening", case, "ms", found, wanted)


def build(path: Path, name: str, options: argparse.Namespace) -> None:
    """A store of a million samples with number targets, unless it is there."""
    done = path.with_name(path.name + ".done")
    if done.exists():
        return
    shutil.rmtree(path, ignore_errors=True)
    start, size = time.perf_counter(), max(1, options.million_bytes // 4)
    with makers(options.memory_mb << 20)[name](path) as store:
        for first in range(0, COUNT, 4000):
            rows = (torch.arange(first, first + 4000)[:, None] + torch.zeros(size)).unbind(0)
            keys = [key_of(first + i) for i in range(4000)]
            store.put_many(dict(zip(keys, ((row,) for row in rows), strict=True)), [i % 10 for i in range(4000)])
    done.touch()
    print(f"built {path.name} in {time.perf_counter() - start:.0f} s", flush=True)


def probe(path: Path, name: str) -> dict[str, float]:
    """Milliseconds of opening and of the first use of each kind."""
    made: list[Any] = []
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(time.time_ns() % 1000))[:32].tolist()
    keys = [key_of(i) for i in order]
    took = [timed(lambda: made.append(makers(256 << 20)[name](path)))]
    with made[0] as store:
        took += [timed(work) for work in (lambda: len(store), lambda: store.keys()[:1], lambda: store.get_many(keys))]
        if store.get_many(keys)[0][:, 0].tolist() != order:
            raise SystemExit(f"{path}: the store gives other values than were put")
    return dict(zip(PARTS, (1e3 * seconds for seconds in took), strict=True))


def fresh(path: Path, name: str, before: Callable[[Path], None] = lambda path: None) -> dict[str, float]:
    """The same in a new process, its imports not counted; ``before`` does something to the store first."""
    before(path)
    done = subprocess.run(command(name, path), check=True, capture_output=True, text=True, cwd=HERE)
    values: dict[str, float] = json.loads(done.stdout)
    return values


def killed(name: str, options: argparse.Namespace, path: Path) -> None:
    """Have a process put one sample anew and die while the store is open."""
    done = subprocess.run([*command(name, path), str(options.million_bytes)], capture_output=True, text=True, cwd=HERE)
    if done.returncode != -signal.SIGKILL:
        raise SystemExit(f"{path}: the process that was to be killed says: {done.stderr}")


def command(name: str, path: Path) -> list[str]:
    return [sys.executable, "-m", "storebench.opening", name, str(path.resolve())]


def put_and_die(name: str, path: Path, size: int) -> None:
    store = makers(256 << 20)[name](path)
    store.put_many({key_of(0): (torch.zeros(max(1, size // 4)),)}, [0])
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        put_and_die(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(probe(Path(sys.argv[2]), sys.argv[1])))
