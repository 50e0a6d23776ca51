"""Labelled images for experiments: ``train.npz`` and ``test.npz`` in a folder, as model input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from streamdrop.errors import DataError
from streamdrop.streams import open_stream
from streamdrop.types import Batch


@dataclass(frozen=True)
class LabelledSet:
    """``keys`` bytes each, ``images`` [N, 3, S, S] float32 standardised, ``labels`` [N] int64."""

    keys: list[bytes]
    images: Tensor
    labels: Tensor

    def batches(self, size: int) -> list[Batch]:
        """The set in order, in batches of at most ``size``."""
        return [
            Batch(self.keys[i : i + size], self.images[i : i + size], self.labels[i : i + size])
            for i in range(0, len(self.keys), size)
        ]


def as_input(images: Tensor, size: int) -> Tensor:
    """Images [N, 1 or 3, H, W] in [0, 1] → [N, 3, size, size] in [-2, 2]: resized, grey repeated, standardised."""
    if images.shape[-2:] != (size, size):
        images = functional.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return images.expand(-1, 3, -1, -1).sub(0.5).div(0.25).contiguous()


def read_split(folder: str, name: str, count: int, size: int) -> LabelledSet:
    """The first ``count`` labelled images of ``folder/name.npz`` at ``size`` px. Raises DataError, StreamError."""
    path = Path(folder) / f"{name}.npz"
    if not path.is_file():
        raise DataError(f"{path}: no such file: data must be a folder with train.npz and test.npz (images, labels)")
    keys: list[bytes] = []
    images: list[Tensor] = []
    labels: list[Tensor] = []
    with open_stream(str(path), batch_size=500) as stream:
        for batch in stream:
            if not isinstance(batch, Batch) or not isinstance(batch.targets, Tensor):
                raise DataError(f"{path}: holds no labels: give arrays images and labels")
            keys += batch.keys
            images.append(as_input(batch.images, size))
            labels.append(batch.targets.long())
            if len(keys) >= count:
                break
    if len(keys) < count:
        raise DataError(f"{path}: holds {len(keys)} images, {count} were asked for: lower {name}")
    return LabelledSet(keys[:count], torch.cat(images)[:count], torch.cat(labels)[:count])
