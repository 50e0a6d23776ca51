"""Image files sorted into a folder per class, as Imagenette is distributed: unpacked, or in its archive."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from streamdrop.errors import DataError
from streamdrop.evaluation.datasets_binary import opened_archive
from streamdrop.evaluation.labelled import MOST_CLASSES, LabelledSet, check_count
from streamdrop.pixels import Tones, as_rgb
from streamdrop.streams.images import SUFFIXES, decode_image
from streamdrop.streams.stream import sample_key

Item = TypeVar("Item")
SPLITS = {"train": ("train",), "test": ("test", "val")}
"""Folder names of a split; the first that holds class folders counts."""


def read_image_folders(root: Path, name: str, count: int, size: int) -> LabelledSet:
    """The first ``count`` images below ``root/train`` or ``root/test`` (or ``val``), in class-interleaved order.

    Classes are the folders sorted by name. Raises DataError for a missing split, classes that differ between the
    splits, a class without images, or an image that cannot be read.
    """
    found = {split: _class_files(root, split) for split in SPLITS}
    chosen = _chosen(found, name, count, str(root))
    pixels = torch.empty(count, size, size, 3, dtype=torch.uint8)
    for i, (path, _) in enumerate(chosen):
        pixels[i] = torch.from_numpy(decoded(path, str(path), size))
    return _set(root.name, name, pixels, [label for _, label in chosen])


def read_image_archive(archive: Path, name: str, count: int, size: int) -> LabelledSet:
    """The same out of a tar archive of …/train/CLASS/* and …/val/CLASS/*, without unpacking it. Raises DataError."""
    with opened_archive(archive) as tar:
        chosen = _chosen(_members(tar), name, count, str(archive))
        pixels = torch.empty(count, size, size, 3, dtype=torch.uint8)
        # a compressed archive can only be read forwards: take its files as they lie there
        for i in sorted(range(count), key=lambda i: chosen[i][0].offset_data):
            member = chosen[i][0]
            file = tar.extractfile(member)
            assert file is not None, "only plain files are chosen"
            pixels[i] = torch.from_numpy(decoded(file, f"{archive}: {member.name}", size))
    return _set(archive.name, name, pixels, [label for _, label in chosen])


def interleaved(classes: Mapping[str, Sequence[Item]]) -> list[tuple[Item, int]]:
    """(item, label): the first of every class, then the second of every class, …: any first N are balanced.

    Labels count the classes sorted by name; a class that has run out is passed over. Nothing here is random.
    """
    columns = [[(item, label) for item in classes[name]] for label, name in enumerate(sorted(classes))]
    return [entry for row in zip_longest(*columns) for entry in row if entry is not None]


def decoded(file: IO[bytes] | Path, where: str, size: int) -> npt.NDArray[np.uint8]:
    """An image file as uint8 [size, size, 3] RGB: upright, short side ``size``, its centre. Raises DataError.

    16-bit grey is shown in its own range, as in streams.
    """
    from PIL import Image

    try:
        values = decode_image(file)
    except ValueError as error:
        raise DataError(f"image {where} cannot be read ({error}): replace it or leave it out") from error
    upright = Image.fromarray(as_rgb(values, Tones.of(values)))
    short = min(upright.size)
    left, top = ((side - short) / 2 for side in upright.size)
    square = (left, top, left + short, top + short)
    return np.array(upright.resize((size, size), Image.Resampling.BILINEAR, box=square))


def holds_classes(folder: Path) -> bool:
    """Whether a folder holds folders that are not hidden."""
    return folder.is_dir() and any(p.is_dir() and p.name[0] != "." for p in folder.iterdir())


def _is_image(name: str) -> bool:
    return name[0] != "." and Path(name).suffix.lower() in SUFFIXES


def _class_files(root: Path, split: str) -> dict[str, list[Path]]:
    """The image files of each class folder of a split, sorted by name; empty where the split is not there."""
    folder = next((root / part for part in SPLITS[split] if holds_classes(root / part)), None)
    if folder is None:
        return {}
    classes = [p for p in sorted(folder.iterdir()) if p.is_dir() and p.name[0] != "."]
    return {p.name: sorted(f for f in p.iterdir() if _is_image(f.name) and f.is_file()) for p in classes}


def _members(tar: tarfile.TarFile) -> dict[str, dict[str, list[tarfile.TarInfo]]]:
    """Per split the image files of each class, sorted by name."""
    found: dict[str, dict[str, list[tarfile.TarInfo]]] = {}
    for member in tar.getmembers():
        *_, part, kind, last = ("", "", "", *PurePosixPath(member.name).parts)
        if member.isdir() and kind in ("train", "val", "test") and last[0] != ".":
            found.setdefault(kind, {}).setdefault(last, [])
        elif member.isfile() and part in ("train", "val", "test") and kind[0] != "." and _is_image(last):
            found.setdefault(part, {}).setdefault(kind, []).append(member)
    for files in chain.from_iterable(classes.values() for classes in found.values()):
        files.sort(key=lambda member: member.name)
    return {split: next((found[part] for part in parts if part in found), {}) for split, parts in SPLITS.items()}


def _chosen(
    found: Mapping[str, Mapping[str, Sequence[Item]]], name: str, count: int, where: str
) -> list[tuple[Item, int]]:
    """The first ``count`` items of a split and their labels, after every check that needs no pixels."""
    classes, other = found[name], found["test" if name == "train" else "train"]
    if not classes:
        folders = " or ".join(SPLITS[name])
        raise DataError(
            f"{where}: has no folder {folders} with one folder per class: give train/CLASS/* and val/CLASS/*"
        )
    if other and other.keys() != classes.keys():
        odd = sorted(other.keys() ^ classes.keys())
        raise DataError(f"{where}: class {odd[0]} is in one of train and test only: give both the same class folders")
    empty = [kind for kind in sorted(classes) if not classes[kind]]
    if empty:
        raise DataError(f"{where}: class {empty[0]} of {name} holds no images: fill its folder or remove it")
    if len(classes) > MOST_CLASSES:
        raise DataError(f"{where}: {len(classes)} class folders: at most {MOST_CLASSES:,} classes")
    order = interleaved(classes)
    check_count(len(order), count, f"{where} ({name})", name)
    return order[:count]


def _set(kind: str, name: str, pixels: torch.Tensor, labels: list[int]) -> LabelledSet:
    keys = [sample_key(f"{kind}/{name}", 0, i) for i in range(len(labels))]
    return LabelledSet(keys, pixels, torch.tensor(labels), pixels.shape[1])
