"""Labelled sets in ``.npz`` files: train.npz and test.npz in a folder, or all four arrays in one file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamdrop.errors import DataError
from streamdrop.evaluation.labelled import LabelledSet, check_count, checked_labels
from streamdrop.streams import open_stream
from streamdrop.streams.stream import sample_key
from streamdrop.types import Batch

Header = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape and dtype of an array in a file."""


def read_npz_folder(folder: Path, name: str, count: int, size: int) -> LabelledSet:
    """The first ``count`` labelled images of ``folder/name.npz``, in its order. Raises DataError, StreamError."""
    path = folder / f"{name}.npz"
    if not path.is_file():
        raise DataError(f"{path}: no such file: data must be a folder with train.npz and test.npz (images, labels)")
    _refuse_objects(path, header_of(path, "images"), "images")
    _check_pair(folder)
    keys: list[bytes] = []
    labels: list[Tensor] = []
    pixels = torch.empty(0)
    with open_stream(str(path), prepare=lambda image: image, batch_size=500) as stream:
        kept = min(count, stream.length or 0)
        for batch in stream:
            if not isinstance(batch, Batch) or not isinstance(batch.targets, Tensor):
                raise DataError(f"{path}: holds no labels: give arrays images and labels")
            labels.append(batch.targets)
            room = count - len(keys)
            if room > 0:
                pixels = pixels if keys else torch.empty(kept, *batch.images.shape[1:], dtype=torch.uint8)
                pixels[len(keys) : len(keys) + len(batch)] = batch.images[:room]
            keys += batch.keys  # counted to the end: a message says how many there are, and every label is checked
    check_count(len(keys), count, str(path), name)
    whole = checked_labels(torch.cat(labels).numpy(), str(path))
    _check_known(folder, name, whole)
    return LabelledSet(keys[:count], pixels, whole[:count].clone(), size)


def _check_pair(folder: Path) -> None:
    """Raise DataError where train.npz and test.npz both tell their image shapes and these differ."""
    headers = [header_of(folder / f"{name}.npz", "images") for name in ("train", "test")]
    train, test = (header[0][1:] if header is not None else None for header in headers)
    if train is not None and test is not None and train != test:
        raise DataError(
            f"{folder}: train.npz has images {train}, test.npz {test}: make them alike in size and channels"
        )


def _check_known(folder: Path, name: str, labels: Tensor) -> None:
    """Raise DataError where test images show classes that no training image does."""
    path = folder / "train.npz"
    if name == "train" or not path.is_file():
        return
    try:
        with np.load(path, allow_pickle=False) as file:
            known = file["labels"]
    except (KeyError, zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError):
        return  # reading train says what is wrong with it
    check_classes(known, labels, str(folder))


def check_classes(train: npt.NDArray[Any], test: Tensor, where: str) -> None:
    """Raise DataError where ``test`` has labels that ``train`` lacks."""
    unknown = sorted(set(test.tolist()) - set(train.ravel().tolist()))
    if unknown:
        raise DataError(f"{where}: test has labels {unknown[:5]} that train lacks: give both sets the same classes")


ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def read_single_npz(path: Path, name: str, count: int, size: int) -> LabelledSet:
    """The first ``count`` images of arrays ``{name}_images``, ``{name}_labels``. Raises DataError."""
    for array in ARRAYS:
        _refuse_objects(path, header_of(path, array), array)
    arrays = _loaded(path, name)
    images, own, other = arrays[f"{name}_images"], arrays[f"{name}_labels"], arrays["train_labels"]
    where = f"{path} ({name}_images)"
    _check_images(images, where)
    shapes = [header_of(path, f"{part}_images") for part in ("train", "test")]
    if None not in shapes and shapes[0][0][1:] != shapes[1][0][1:]:  # type: ignore[index]
        raise DataError(f"{path}: train_images and test_images differ in size or channels: make them alike")
    if own.shape[:1] != images.shape[:1]:
        raise DataError(f"{path}: {name}_images {images.shape}, {name}_labels {own.shape}: give one label per image")
    labels = checked_labels(own, f"{path} ({name}_labels)")
    check_classes(other, labels, str(path))
    check_count(len(images), count, where, name)
    first = images[:count] if images.ndim == 4 else images[:count, :, :, None]
    keys = [sample_key(f"{path.name}/{name}", 0, i) for i in range(count)]
    return LabelledSet(keys, torch.from_numpy(first.copy()), labels[:count].clone(), size)


def _loaded(path: Path, name: str) -> dict[str, npt.NDArray[Any]]:
    """The split's arrays and the training labels."""
    broken = f"{path} is not a readable .npz file: save it again with numpy.savez_compressed"
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [array for array in ARRAYS if array not in file.files]
            if missing:
                held = ", ".join(file.files) or "none"
                raise DataError(f"{path} has no array {', '.join(missing)} (it has: {held}): save {', '.join(ARRAYS)}")
            return {array: file[array] for array in {f"{name}_images", f"{name}_labels", "train_labels"}}
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, AttributeError, TypeError) as error:
        raise DataError(broken) from error


def _check_images(images: npt.NDArray[Any], where: str) -> None:
    plain = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not plain or 0 in images.shape:
        raise DataError(
            f"{where} are {images.dtype} {images.shape}: save uint8 [N, H, W] or [N, H, W, C] with C 1 or 3"
        )


def header_of(path: Path, array: str) -> Header | None:
    """Shape and dtype of an array in a .npz file, its data unread; None where that cannot be told."""
    try:
        with zipfile.ZipFile(path) as file, file.open(f"{array}.npy") as part:
            version = np.lib.format.read_magic(part)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(part)
            return shape, dtype
    except (KeyError, zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError):
        return None


def _refuse_objects(path: Path, header: Header | None, array: str) -> None:
    if header is not None and header[1].hasobject:
        raise DataError(
            f"{array} of {path} are Python objects, as numpy saves images of mixed sizes: bring all images to one size "
            "and save uint8 [N, H, W, C]"
        )
