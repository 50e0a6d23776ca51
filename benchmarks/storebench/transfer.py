"""Writing, bytes on disk, and reading random batches with the page cache warm and cold."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from storebench import ours
from storebench.measure import Row, Target, disk_bytes, drop_cache, rows_of, taking_turns
from storebench.ours import CHECKED, REUSED, TIERED, UNCHECKED
from storebench.rivals import DISK, MAP, PICKLE, RECOMPUTE, RIVALS, Place, Read, Reader, Writer, tail_for

BATCH = 32
LARGE = 64
"""KB from which the targets against the raw memory map and the disk's own write hold."""


@dataclass(frozen=True)
class Arm:
    """A rival or a store of ours in its own folder."""

    place: Place
    writer: Writer | None
    reader: Reader | None


def transfer(options: argparse.Namespace, work: Path) -> Iterator[list[Row]]:
    """The sections writes, disk, reads and cold, size by size."""
    for kilobytes in options.sizes:
        count = min(options.total_mb * 1024 // kilobytes, options.max_samples)
        ring = min(options.memory_mb << 20, count * kilobytes * 1024 // 2)
        arms = arms_of(work, count, kilobytes * 256, ring, options)
        case = f"{kilobytes} KB × {count} samples (ring {ring >> 20} MB)"
        yield from of_size(options, arms, case, kilobytes >= LARGE)
        for arm in arms.values():
            shutil.rmtree(arm.place.folder, ignore_errors=True)


def arms_of(work: Path, count: int, floats: int, ring: int, options: argparse.Namespace) -> dict[str, Arm]:
    """The chosen rivals and stores of ours."""
    chosen = (*options.rivals, *options.stores)
    both = {name: made for name, made in {**RIVALS, **ours.arms(ring)}.items() if name in chosen}
    folder = work / "arms"
    return {name: Arm(Place(folder / name, count, floats), writer, reader) for name, (writer, reader) in both.items()}


def of_size(options: argparse.Namespace, arms: dict[str, Arm], case: str, large: bool) -> Iterator[list[Row]]:
    """All sections for samples of one size."""
    first = next(iter(arms.values())).place
    samples = torch.rand(first.count, first.floats, generator=torch.Generator().manual_seed(0))
    writers = {name: arm for name, arm in arms.items() if arm.writer}
    turns = options.repeats if "writes" in options.only else 1
    rates = taking_turns({name: partial(write_turn, arm, samples) for name, arm in writers.items()}, turns)
    if "writes" in options.only:
        yield rows_of("writes, durable", case, "GB/s", rates, write_targets(large))
    if "disk" in options.only:
        ratios = {name: [disk_bytes(arm.place.folder) / samples.nbytes] for name, arm in writers.items()}
        wanted = {name: [Target(most=1.1)] for name in (CHECKED, UNCHECKED, TIERED)}
        yield rows_of("disk", case, "bytes on disk / payload", ratios, wanted)
    del samples
    readers = {name: arm for name, arm in arms.items() if arm.reader}
    notes = {RECOMPUTE: describe_tail(first.floats)}
    if "reads" in options.only:
        rates = read_warm(readers, options)
        yield rows_of("reads, page cache warm", case, "GB/s", rates, read_targets(large), notes)
    if "cold" in options.only:
        stored = {name: arm for name, arm in readers.items() if name != RECOMPUTE}
        turns_cold = {name: cold_turn(arm, options) for name, arm in stored.items()}
        rates = taking_turns(turns_cold, options.repeats)
        yield rows_of("reads, page cache dropped (fsync, POSIX_FADV_DONTNEED)", case, "GB/s", rates, cold_targets())


def write_turn(arm: Arm, samples: Tensor) -> float:
    """GB/s of writing all samples to an empty folder. What others left unwritten is written before the clock starts."""
    folder = arm.place.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    assert arm.writer is not None
    with arm.writer(arm.place) as write:
        os.sync()
        start = time.perf_counter()
        write(samples)
        return samples.nbytes / 1e9 / (time.perf_counter() - start)


def read_warm(arms: dict[str, Arm], options: argparse.Namespace) -> dict[str, list[float]]:
    """All arms stay open; a pass before the first turn warms each up."""
    with ExitStack() as stack:
        turns = {}
        for name, arm in arms.items():
            read = stack.enter_context(opened(arm))
            read_turn(read, cycle(batches(arm.place.count, 0)), options.seconds)
            turns[name] = read_turns(read, arm.place.count, options.seconds)
        return taking_turns(turns, options.repeats)


def opened(arm: Arm) -> AbstractContextManager[Read]:
    assert arm.reader is not None
    return arm.reader(arm.place)


def read_turns(read: Read, count: int, seconds: float) -> Callable[[], float]:
    """Turns of ``seconds`` each; in its nth turn every arm reads the same batches."""
    turn = 0

    def run() -> float:
        nonlocal turn
        turn += 1
        return read_turn(read, cycle(batches(count, turn)), seconds)

    return run


def cold_turn(arm: Arm, options: argparse.Namespace) -> Callable[[], float]:
    """Turns of one pass each (at most ``--seconds``), the cache dropped before the arm is opened."""
    turn = 0

    def run() -> float:
        nonlocal turn
        turn += 1
        drop_cache(arm.place.folder)
        with opened(arm) as read:
            return read_turn(read, batches(arm.place.count, turn), options.seconds)

    return run


def batches(count: int, turn: int) -> list[list[int]]:
    """One pass: all samples in random order, without replacement."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(turn))
    return [part.tolist() for part in order.split(BATCH)]


def read_turn(read: Read, order: Iterable[list[int]], seconds: float) -> float:
    """GB/s over the batches, or as many of them as ``seconds`` allow."""
    size, start = 0, time.perf_counter()
    for batch in order:
        size += read(batch).nbytes
        if time.perf_counter() - start > seconds:
            break
    return size / 1e9 / (time.perf_counter() - start)


def read_targets(large: bool) -> dict[str, list[Target]]:
    """Against a pickle file per sample and the raw map; the map's own ratio to pickle shows how far one can go."""
    pickle = Target(PICKLE, least=5)
    wanted = {
        CHECKED: [pickle, Target(MAP, least=0.6 if large else None)],
        UNCHECKED: [pickle, Target(MAP, least=0.8 if large else None)],
        TIERED: [pickle, Target(MAP, least=0.6 if large else None)],
        REUSED: [Target(PICKLE), Target(MAP)],
    }
    return {**{name: [Target(PICKLE), Target(MAP)] for name in RIVALS}, **wanted}


def cold_targets() -> dict[str, list[Target]]:
    return {name: [Target(PICKLE), Target(MAP)] for name in (*RIVALS, CHECKED, UNCHECKED, TIERED, REUSED)}


def write_targets(large: bool) -> dict[str, list[Target]]:
    least = 0.9 if large else None
    wanted = {name: [Target(DISK, least=least)] for name in (CHECKED, UNCHECKED, TIERED)}
    return {**{name: [Target(DISK)] for name in (*RIVALS, REUSED)}, **wanted}


def describe_tail(floats: int) -> str:
    _, last, side = tail_for(floats)
    return f"resnet18 to {last} on {side} px"
