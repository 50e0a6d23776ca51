"""Lossless compression and lossy codecs on maps of real pictures: size, speed, error."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import streamdrop as sd
from storebench.measure import Row, Target, disk_bytes, key_of, put_all, rows_of, taking_turns
from storebench.transfer import batches
from streamdrop.tracking.config import HeadConfig
from streamdrop.tracking.network import Block, build_network, normalise

EXACT = "float32"
WAYS: dict[str, dict[str, Any]] = {
    EXACT: {},
    "lz4": {"compression": "lz4"},
    "zstd": {"compression": "zstd"},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "int8"},
}
SIDE = 256
CLIP = Path(__file__).parents[2] / "data_samples" / "clip.mp4"


def coding(options: argparse.Namespace, work: Path) -> Iterator[list[Row]]:
    """MobileNetV2 (ImageNet) on video: maps behind a ReLU6 within a block, and a block's output, which has none."""
    pictures = crops(options.pictures)
    for what, maps in (("behind ReLU6", activated(pictures)), ("block's output", outputs(pictures))):
        zeros = 100 * (maps == 0).float().mean().item()
        size = f"{tuple(maps.shape[1:])}, {maps[0].nbytes >> 10} KB × {len(maps)}, {zeros:.0f} % zeros"
        yield from of_maps(options, maps, work / "coding", f"MobileNetV2 {what}, {size}")


def of_maps(options: argparse.Namespace, maps: Tensor, work: Path, case: str) -> Iterator[list[Row]]:
    writes = taking_turns({way: partial(write, work / way, way, maps) for way in WAYS}, options.repeats)
    sizes = {way: [maps.nbytes / disk_bytes(work / way)] for way in WAYS}
    reads = taking_turns({way: partial(read, work / way, way, maps) for way in WAYS}, options.repeats)
    errors = {way: f"error {error(work / way, way, maps)}" for way in WAYS}
    exact = {way: [Target(EXACT)] for way in WAYS}
    yield rows_of("codecs, payload / bytes on disk", case, "ratio", sizes, {}, errors)
    yield rows_of("codecs, random batches of 32", case, "GB/s of payload", reads, exact)
    yield rows_of("codecs, durable writes", case, "GB/s of payload", writes, exact)
    shutil.rmtree(work)


def write(folder: Path, way: str, maps: Tensor) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with sd.LmdbStore(folder, **WAYS[way]) as store:
        os.sync()
        start = time.perf_counter()
        put_all(store, maps)
        store.flush()
        return maps.nbytes / 1e9 / (time.perf_counter() - start)


def read(folder: Path, way: str, maps: Tensor) -> float:
    with sd.LmdbStore(folder, **WAYS[way]) as store:
        order = batches(len(maps), 0)
        store.get_many([key_of(i) for i in order[0]])
        start = time.perf_counter()
        size = sum(store.get_many([key_of(i) for i in batch])[0].nbytes for batch in order)
        return size / 1e9 / (time.perf_counter() - start)


def error(folder: Path, way: str, maps: Tensor) -> str:
    """How far off what comes back is; compression must not be off at all."""
    with sd.LmdbStore(folder, **WAYS[way]) as store:
        off = (store.get_many([key_of(i) for i in range(len(maps))])[0] - maps).abs()
    if off.max() > 0 and "dtype" not in WAYS[way]:
        raise SystemExit(f"{way}: a lossless codec gives other values than were put")
    return f"{off.max():.2g} (mean {off.mean():.2g}, maps' deviation {maps.std():.2g})"


def crops(source: Path | None) -> Tensor:
    """Squares of frames, [N, 256, 256, 3] uint8."""
    frames = [sample.image for sample in islice(sd.open_stream(str(source or CLIP)), 256)]
    return torch.from_numpy(np.stack([frame[:SIDE, :SIDE] for frame in frames if min(frame.shape[:2]) >= SIDE]))


@torch.no_grad()
def activated(pictures: Tensor) -> Tensor:
    """[N, 384, 16, 16]: the expanded channels of a block behind its last ReLU6."""
    network = build_network(HeadConfig(), trainable=0)
    block = network.upper[3]
    assert isinstance(block, Block)
    parts = list(block.conv.children())
    last = max(i for i, part in enumerate(parts) if isinstance(part, nn.ReLU6))
    path = nn.Sequential(*network.lower, *network.upper[:3], *parts[: last + 1])
    return torch.cat([path(normalise(part)).contiguous() for part in pictures.split(16)])


@torch.no_grad()
def outputs(pictures: Tensor) -> Tensor:
    """[N, 32, 32, 32]: the stride-8 map that the tracker stores."""
    network = build_network(HeadConfig(), trainable=0)
    return torch.cat([network.lower(normalise(part)).contiguous() for part in pictures.split(16)])
