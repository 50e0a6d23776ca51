"""Labelled images for experiments: ``train.npz`` and ``test.npz`` in a folder, as model input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
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


def as_input(images: npt.NDArray[np.uint8], size: int) -> Tensor:
    """uint8 [N, H, W(, C)] → float32 [N, 3, size, size] in about [-2, 2]: grey repeated, resized, standardised."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).float().div_(255)
    tensor = tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)
    if tensor.shape[-2:] != (size, size):
        tensor = functional.interpolate(tensor, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return tensor.expand(-1, 3, -1, -1).sub(0.5).div(0.25).contiguous()


def read_split(folder: str, name: str, count: int, size: int) -> LabelledSet:
    """The first ``count`` labelled images of ``folder/name.npz`` at ``size`` px. Raises DataError, StreamError."""
    path = Path(folder) / f"{name}.npz"
    if not path.is_file():
        raise DataError(f"{path}: no such file: data must be a folder with train.npz and test.npz (images, labels)")
    keys: list[bytes] = []
    images: list[Tensor] = []
    labels: list[Tensor] = []
    with open_stream(str(path), prepare=lambda raw: as_input(raw, size), batch_size=500) as stream:
        for batch in stream:
            if not isinstance(batch, Batch) or not isinstance(batch.targets, Tensor):
                raise DataError(f"{path}: holds no labels: give arrays images and labels")
            keys += batch.keys
            images.append(batch.images)
            labels.append(batch.targets.long())
            if len(keys) >= count:
                break
    if len(keys) < count:
        raise DataError(f"{path}: holds {len(keys)} images, {count} were asked for: lower {name}")
    return LabelledSet(keys[:count], torch.cat(images)[:count], torch.cat(labels)[:count])
