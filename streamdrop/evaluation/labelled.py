"""Labelled images at rest: pixels as they came, uint8, made model input a batch at a time; and what labels may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from streamdrop.errors import DataError
from streamdrop.types import Batch

MOST_CLASSES = 10_000
"""Labels from here on are taken for a mistake (regression targets, identifiers)."""

CHUNK = 500
"""Images turned into floats at a time."""


@dataclass(frozen=True)
class LabelledSet:
    """``keys`` bytes each, ``pixels`` uint8 [N, H, W, 1 or 3] as read, ``labels`` int64 [N]; input is ``size`` px."""

    keys: list[bytes]
    pixels: Tensor
    labels: Tensor
    size: int

    def __len__(self) -> int:
        return len(self.keys)

    def input(self, start: int, stop: int) -> Tensor:
        """Images ``start`` … ``stop`` - 1 as the model takes them: float32 [n, 3, size, size], standardised."""
        part = self.pixels[start:stop].permute(0, 3, 1, 2).to(torch.float32).div_(255)
        return as_input(part, self.size)

    @property
    def images(self) -> Tensor:
        """All images as the model takes them, float32 [N, 3, size, size]: made anew each time, 4 bytes a value."""
        whole = torch.empty(len(self), 3, self.size, self.size)
        for start in range(0, len(self), CHUNK):
            whole[start : start + CHUNK] = self.input(start, start + CHUNK)
        return whole

    def batches(self, size: int) -> Iterator[Batch]:
        """The set in order, in batches of at most ``size``; only the present one is held as floats."""
        for start in range(0, len(self), size):
            stop = start + size
            yield Batch(self.keys[start:stop], self.input(start, stop), self.labels[start:stop])


def as_input(images: Tensor, size: int) -> Tensor:
    """Images [N, 1 or 3, H, W] in [0, 1] → [N, 3, size, size] in [-2, 2]: resized, grey repeated, standardised."""
    if images.shape[-2:] != (size, size):
        images = functional.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return images.expand(-1, 3, -1, -1).sub(0.5).div(0.25).contiguous()


def checked_labels(labels: npt.NDArray[Any], where: str, classes: int | None = None) -> Tensor:
    """Labels as int64 [N]. Raises DataError unless they are whole numbers from 0 to below ``classes`` (or 10,000)."""
    if labels.ndim != 1 or labels.dtype.kind not in "iubf" or not len(labels):
        raise DataError(f"labels of {where} are {labels.dtype} {labels.shape}: give one class number per image")
    if labels.dtype.kind == "f" and not bool((np.isfinite(labels) & (labels == np.floor(labels))).all()):
        raise DataError(f"labels of {where} are not whole numbers: give classes counted from 0, not measurements")
    least, most = labels.min(), labels.max()
    if least < 0:
        raise DataError(f"labels of {where} go down to {least:.0f}: count classes from 0")
    if classes is not None and most >= classes:
        raise DataError(
            f"labels of {where} go up to {most:.0f}, the model has {classes} classes: they end at {classes - 1}"
        )
    if most >= MOST_CLASSES:
        raise DataError(f"labels of {where} go up to {most:.0f}: at most {MOST_CLASSES:,} classes, counted from 0")
    return torch.from_numpy(labels.astype(np.int64))


def check_count(held: int, count: int, where: str, name: str) -> None:
    """Raise DataError where fewer than ``count`` images are held; ``name`` is the setting to lower."""
    if held < count:
        raise DataError(f"{where}: holds {held} images, {count} were asked for: lower {name}")
