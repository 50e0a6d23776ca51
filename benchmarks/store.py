"""Reading and writing samples: LMDB against a pickle file each, torch.save and a raw memory map.

    python benchmarks/store.py [--samples 200] [--kilobytes 96] [--batch 32] [--repeats 5] [--folder DIR]

Every rival reads the same random batches and writes the same samples, taking turns, so that a slow moment of the
machine meets all of them. Opening is timed too. Writes are made durable (fsync) before the clock stops. Reads are warm
(page cache).
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from streamdrop.store import LmdbStore

Write = Callable[[Path, list[torch.Tensor]], None]
Read = Callable[[Path, list[list[int]]], int]


def key(number: int) -> bytes:
    return b"%d" % number


def write_lmdb(folder: Path, samples: list[torch.Tensor]) -> None:
    with LmdbStore(folder) as store:
        store.put_many({key(i): (sample,) for i, sample in enumerate(samples)})
        store.flush()


def read_lmdb(folder: Path, batches: list[list[int]]) -> int:
    with LmdbStore(folder, read_only=True) as store:
        return sum(store.get_many([key(i) for i in batch])[0].nbytes for batch in batches)


def write_pickle(folder: Path, samples: list[torch.Tensor]) -> None:
    for i, sample in enumerate(samples):
        with (folder / f"{i}.pkl").open("wb") as file:
            pickle.dump(sample.numpy(), file)
            sync(file)


def read_pickle(folder: Path, batches: list[list[int]]) -> int:
    def load(i: int) -> torch.Tensor:
        return torch.from_numpy(pickle.loads((folder / f"{i}.pkl").read_bytes()))

    return sum(torch.stack([load(i) for i in batch]).nbytes for batch in batches)


def write_torch(folder: Path, samples: list[torch.Tensor]) -> None:
    for i, sample in enumerate(samples):
        with (folder / f"{i}.pt").open("wb") as file:
            torch.save(sample, file)
            sync(file)


def read_torch(folder: Path, batches: list[list[int]]) -> int:
    def load(i: int) -> torch.Tensor:
        return torch.load(folder / f"{i}.pt", weights_only=True)

    return sum(torch.stack([load(i) for i in batch]).nbytes for batch in batches)


def write_map(folder: Path, samples: list[torch.Tensor]) -> None:
    np.save(folder / "all.npy", np.stack([sample.numpy() for sample in samples]))
    with (folder / "all.npy").open("rb") as file:
        sync(file)


def read_map(folder: Path, batches: list[list[int]]) -> int:
    rows = np.load(folder / "all.npy", mmap_mode="r")
    return sum(torch.from_numpy(rows[batch]).nbytes for batch in batches)


def sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())


RIVALS: dict[str, tuple[Write, Read]] = {
    "lmdb": (write_lmdb, read_lmdb),
    "pickle per sample": (write_pickle, read_pickle),
    "torch.save": (write_torch, read_torch),
    "memory map": (write_map, read_map),
}


def measure(folder: Path, samples: list[torch.Tensor], batches: list[list[int]], repeats: int) -> dict[str, dict]:
    seconds: dict[str, dict[str, list[float]]] = {name: {"write": [], "read": []} for name in RIVALS}
    for _ in range(repeats):
        for name, (write, _) in RIVALS.items():
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir(parents=True)
            seconds[name]["write"].append(timed(lambda: write(folder / name, samples)))  # noqa: B023
        for name, (_, read) in RIVALS.items():
            read(folder / name, batches[:1])
            seconds[name]["read"].append(timed(lambda: read(folder / name, batches)))  # noqa: B023
    disk = {name: sum(f.stat().st_blocks * 512 for f in (folder / name).iterdir()) for name in RIVALS}
    written = sum(s.nbytes for s in samples)
    read_bytes = sum(len(b) for b in batches) * samples[0].nbytes
    return {
        name: {
            "write_gb_s": rate(written, took["write"]),
            "read_gb_s": rate(read_bytes, took["read"]),
            "disk_per_payload": disk[name] / written,
        }
        for name, took in seconds.items()
    }


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rate(size: int, seconds: list[float]) -> dict[str, float]:
    rates = sorted(size / s / 1e9 for s in seconds)
    return {"median": statistics.median(rates), "min": rates[0], "max": rates[-1]}


def table(results: dict[str, dict]) -> str:
    lines = [f"{'':<18} {'read GB/s':>20} {'write GB/s':>20} {'disk / payload':>15}"]
    for name, row in results.items():
        spans = [
            f"{row[k]['median']:.2f} ({row[k]['min']:.2f}-{row[k]['max']:.2f})" for k in ("read_gb_s", "write_gb_s")
        ]
        lines.append(f"{name:<18} {spans[0]:>20} {spans[1]:>20} {row['disk_per_payload']:>15.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in (("samples", 200), ("kilobytes", 96), ("batch", 32), ("batches", 200), ("repeats", 5)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="where to write: the disk to measure (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    samples = [torch.rand(options.kilobytes * 256, generator=generator) for _ in range(options.samples)]
    batches = torch.randint(options.samples, (options.batches, options.batch), generator=generator).tolist()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = measure(Path(folder), samples, batches, options.repeats)
    size = f"{options.samples} samples of {options.kilobytes} KB, batches of {options.batch}"
    print(f"{size}, n = {options.repeats}: median (min-max)")
    print(table(results))
    if options.output:
        settings = {k: v for k, v in vars(options).items() if isinstance(v, int)}
        hardware = {"machine": platform.machine(), "cores": os.cpu_count(), "system": platform.platform()}
        options.output.write_text(
            json.dumps({"settings": settings, "hardware": hardware, "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()
