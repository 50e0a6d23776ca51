"""Python iterables and .npz files as streams."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from streamdrop.errors import DataError, StreamError
from streamdrop.pixels import Tones, as_rgb
from streamdrop.streams.stream import Frame, Prepare, sample_key
from streamdrop.types import Batch, Sample


class Arrays:
    """Frames (uint8 or uint16 arrays), Samples or Batches from any Python iterable.

    uint16 is shown in the range of the first frame, so that frames stay comparable.
    """

    def __init__(self, items: Iterable[Any], name: str = "arrays") -> None:
        """Raises DataError when the first item of a sequence is no frame, StreamError when there is none."""
        self.name = name
        self.fps: float | None = None
        self.size: tuple[int, int] | None = None
        self.length: int | None = len(items) if isinstance(items, Sized) else None
        self.live = False
        self.notice: str | None = None
        self._items = items
        self._spent = False
        if self.length == 0:
            raise StreamError("the stream holds no frames: give at least one")
        if isinstance(items, Sequence | np.ndarray):
            first = _frame(items[0], 0, Tones.of(items[0]))
            if isinstance(first, Frame) and first.image is not None:
                self.size = (first.image.shape[1], first.image.shape[0])

    def frames(self) -> Iterator[Frame | Sample | Batch]:
        """Items in order; raises StreamError when an iterator that can be read only once is read again."""
        if self._spent:
            raise StreamError("this stream's iterator was already read: give a list, or make a new iterator")
        iterator = iter(self._items)
        self._spent = iterator is self._items
        tones: Tones | None = None
        for number, item in enumerate(iterator):
            tones = tones or Tones.of(item)
            yield _frame(item, number, tones)

    def close(self) -> None:
        """Closes the iterator where it can be closed (a generator)."""
        if self._spent and hasattr(self._items, "close"):
            self._items.close()


def _frame(item: Any, number: int, tones: Tones) -> Frame | Sample | Batch:
    if isinstance(item, Sample | Batch):
        return item
    return Frame(np.ascontiguousarray(as_rgb(item, tones, f"frame {number} of the stream")))


class LabelledArrays:
    """A .npz file: ``images`` uint8 [N, H, W] or [N, H, W, C], ``labels`` [N]; Batches in the file's order.

    ``prepare`` takes one image, uint8 H×W×C as stored (C = 1 for [N, H, W]). Without it images become float32
    [n, C, H, W] in [0, 1]. Integer labels become int64 [n], floating ones float32 [n, ...].
    """

    def __init__(self, path: Path, prepare: Prepare | None, batch_size: int) -> None:
        """Raises StreamError for a file that is no .npz, DataError for arrays that are missing or do not fit."""
        images, labels = _load(path)
        self.name = path.name
        self.fps: float | None = None
        self.size: tuple[int, int] | None = (images.shape[2], images.shape[1])
        self.length: int | None = len(images)
        self.live = False
        self.notice: str | None = None
        self._images = images if images.ndim == 4 else images[..., None]
        self._labels = torch.from_numpy(labels)
        self._prepare = prepare
        self._batch_size = batch_size

    def frames(self) -> Iterator[Batch]:
        """Batches of ``batch_size``, the last one smaller when N is no multiple of it."""
        for start in range(0, len(self._images), self._batch_size):
            stop = min(start + self._batch_size, len(self._images))
            keys = [sample_key(self.name, 0, i) for i in range(start, stop)]
            yield Batch(keys, self._tensor(self._images[start:stop]), self._labels[start:stop].clone())

    def _tensor(self, images: npt.NDArray[np.uint8]) -> torch.Tensor:
        if self._prepare is not None:
            return torch.stack([torch.as_tensor(self._prepare(image)) for image in images])
        return torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32).div_(255)

    def close(self) -> None:
        """Nothing is held open."""


def _load(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    """``images`` and ``labels``, checked. Pickled objects are refused unread."""
    broken = f"{path} is not a readable .npz file: save it again with numpy.savez_compressed"
    if not zipfile.is_zipfile(path):
        raise StreamError(broken)
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ("images", "labels") if name not in file.files]
            if missing:
                raise DataError(
                    f"{path} has no array {' and no '.join(missing)} (it has: {', '.join(file.files) or 'none'}): "
                    "save images uint8 [N, H, W, C] and labels [N]"
                )
            images, labels = file["images"], file["labels"]
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
        if "allow_pickle" in str(error):
            raise DataError(f"{path} holds Python objects, which are not read: save plain numeric arrays") from error
        raise StreamError(broken) from error
    return _check_images(path, images), _check_labels(path, labels, len(images))


def _check_images(path: Path, images: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if images.dtype != np.uint8:
        raise DataError(f"images of {path} are {images.dtype}: save uint8, 0 to 255")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(f"images of {path} have shape {images.shape}: save [N, H, W] or [N, H, W, C] with C 1 or 3")
    if 0 in images.shape:
        raise DataError(f"images of {path} have shape {images.shape}: there must be at least one pixel")
    return images


def _check_labels(path: Path, labels: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    if labels.ndim == 0 or len(labels) != count:
        raise DataError(f"labels of {path} have shape {labels.shape} for {count} images: save one label per image")
    if labels.dtype == np.uint64 and labels.ndim == 1 and int(labels.max()) > np.iinfo(np.int64).max:
        raise DataError(f"labels of {path} go up to {labels.max()}: count classes from 0")
    if labels.dtype.kind in "iub" and labels.ndim == 1:
        return labels.astype(np.int64)
    if labels.dtype.kind == "f" and bool(np.isfinite(labels).all()):
        return labels.astype(np.float32)
    raise DataError(f"labels of {path} are {labels.dtype} {labels.shape}: save integers [N] or finite numbers [N, ...]")
