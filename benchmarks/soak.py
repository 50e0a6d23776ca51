"""A long stream through a bounded store: does memory, or the file, grow?

    python benchmarks/soak.py [--samples 1000000] [--bound 50000] [--kilobytes 4]
                              [--policy oldest|reservoir|class-balanced] [--store lmdb|tiered] [--folder DIR]

Every 5 %: samples per second, the process's own memory, the files' bytes on disk and as they show, the live samples'
bytes, and the files against the most that was ever live. At the end values are compared with what the keys say they
must be, ``verify`` reads every record, and what was kept is held against the policy. Exit status 1: something is not
in order.
Samples are labelled with very different frequencies (half of them 0, a quarter 1, ...), for class-balanced retention.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from storebench.measure import disk_bytes, files_in, key_of, resident

import streamdrop as sd
from streamdrop.evaluation.hardware import describe_hardware
from streamdrop.store import verify

BATCH, LABELS, LIMIT = 256, 8, 1.2
Report = dict[str, float]


def main() -> None:
    options = arguments()
    print(
        f"{options.store}: {options.samples} samples of {options.kilobytes} KB, {options.bound} kept, {options.policy}"
    )
    print(describe_hardware(), flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="soak-") as folder:
        path = Path(folder) / "store"
        with opened(path, options) as store:
            reports = list(stream(store, path, options))
            store.flush()
            problems = [*wrong_values(store, options), *wrong_choice(store, options)]
        problems += verify(path)["problems"]
    problems += unsteady(reports)
    if options.output:
        found = {"hardware": describe_hardware(), "reports": reports, "problems": problems}
        options.output.write_text(json.dumps(found, indent=1), encoding="utf-8")
    for problem in problems[:20]:
        print(problem)
    print("memory and files were steady, every value and record is right" if not problems else "NOT in order")
    sys.exit(1 if problems else 0)


def opened(path: Path, options: argparse.Namespace) -> Any:
    retention = sd.Retention(max_samples=options.bound, policy=options.policy)
    if options.store == "lmdb":
        return sd.LmdbStore(path, retention=retention)
    return sd.TieredStore(path, retention=retention, memory_bytes=options.memory_mb << 20)


def stream(store: Any, path: Path, options: argparse.Namespace) -> Iterator[Report]:
    """Put everything; a report for each twentieth."""
    base = pattern(options)
    every = max(BATCH, options.samples // 20)
    heading = ("samples", "samples/s", "own MB", "disk MB", "length MB", "live MB", "disk / live")
    print("".join(f"{word:>12}" for word in heading))
    start, due, before, most = time.perf_counter(), every, 0, 0
    for first in range(0, options.samples, BATCH):
        numbers = range(first, min(first + BATCH, options.samples))
        put(store, base, numbers)
        if numbers.stop >= due or numbers.stop == options.samples:
            live = len(store) * base.nbytes
            most = max(most, live)
            taken = time.perf_counter() - start
            yield report(path, numbers.stop, (numbers.stop - before) / taken, live, most)
            start, due, before = time.perf_counter(), due + every, numbers.stop


def pattern(options: argparse.Namespace) -> torch.Tensor:
    """What a sample's key is added to: sums stay below 2²⁴, exact in float32."""
    return torch.arange(options.kilobytes * 256, dtype=torch.float32)


def put(store: Any, base: torch.Tensor, numbers: range) -> None:
    rows = (base + torch.tensor(numbers)[:, None]).unbind(0)
    keys = [key_of(i) for i in numbers]
    info = {key: sd.SampleInfo(label=label_of(i)) for key, i in zip(keys, numbers, strict=True)}
    store.put_many(dict(zip(keys, ((row,) for row in rows), strict=True)), list(numbers), info)


def label_of(number: int) -> int:
    """How often 2 divides number + 1, at most 7."""
    return min(((number + 1) & -(number + 1)).bit_length() - 1, LABELS - 1)


def report(path: Path, seen: int, speed: float, live: int, most: int) -> Report:
    disk, length = disk_bytes(path), sum(file.stat().st_size for file in files_in(path) if file.is_file())
    own, ratio = resident()["anon"], disk / most
    megabytes = "".join(f"{value / 1e6:>12.1f}" for value in (own, disk, length, live))
    print(f"{seen:>12}{speed:>12.0f}{megabytes}{ratio:>12.3f}", flush=True)
    return {"samples": seen, "samples_s": speed, "anon": own, "disk": disk, "length": length, "live": live,
            "ratio": ratio}  # fmt: skip


def wrong_values(store: Any, options: argparse.Namespace) -> list[str]:
    """Every kept sample whose activations, target or label are not what its key says."""
    base, wrong = pattern(options), []
    keys = store.keys()
    for start in range(0, len(keys), BATCH):
        part = keys[start : start + BATCH]
        numbers = torch.tensor([int.from_bytes(key, "big") for key in part])
        same = (store.get_many(part)[0] == base + numbers[:, None]).all(1)
        same &= store.get_targets(part).flatten() == numbers
        labels = [info.label for info in store.get_info(part)]
        same &= torch.tensor(labels) == torch.tensor(list(map(label_of, numbers.tolist())))
        wrong += [f"sample {n}: not what was put" for n in numbers[~same].tolist()]
    return wrong


def wrong_choice(store: Any, options: argparse.Namespace) -> list[str]:
    """How what was kept differs from what the policy promises."""
    keys: list[bytes] = store.keys()
    numbers = [int.from_bytes(key, "big") for key in keys]
    kept = min(options.bound, options.samples)
    if len(numbers) != kept:
        return [f"{len(numbers)} samples are kept, {kept} should be"]
    if options.policy == "oldest":
        return [] if numbers == list(range(options.samples - kept, options.samples)) else ["not the newest are kept"]
    if options.policy == "reservoir":
        middle, off = sum(numbers) / kept / options.samples, 5 / (12 * kept) ** 0.5
        return (
            [] if abs(middle - 0.5) < off else [f"kept samples lie at {middle:.3f} of the stream on average, not 0.5"]
        )
    return unbalanced(Counter(map(label_of, numbers)), Counter(map(label_of, range(options.samples))))


def unbalanced(kept: Counter[int], seen: Counter[int]) -> list[str]:
    """Labels with fewer samples than another, although more of theirs were seen."""
    most = max(kept.values())
    short = [label for label in seen if kept[label] < min(most - 1, seen[label])]
    return [f"label {label}: {kept[label]} kept, {most} of another, {seen[label]} seen" for label in short]


def unsteady(reports: list[Report]) -> list[str]:
    """Memory that grows after the first quarter, and files larger than 1.2 × the most that was live."""
    settled = [report["anon"] for report in reports if report["samples"] >= reports[-1]["samples"] / 4]
    problems = []
    if max(settled) > LIMIT * settled[0]:
        problems.append(f"memory grew from {settled[0] / 1e6:.0f} to {max(settled) / 1e6:.0f} MB")
    highest = max(report["ratio"] for report in reports)
    if highest > LIMIT:
        problems.append(f"files took {highest:.2f} × the most that was live")
    return problems


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--bound", type=int, default=50_000)
    parser.add_argument("--kilobytes", type=int, default=4)
    parser.add_argument("--policy", choices=("oldest", "reservoir", "class-balanced"), default="oldest")
    parser.add_argument("--store", choices=("lmdb", "tiered"), default="lmdb")
    parser.add_argument("--memory-mb", type=int, default=64, help="TieredStore's ring")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help="write JSON here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
