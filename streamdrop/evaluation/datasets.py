"""Labelled images for experiments, read by what lies at a path: .npz, or a set as its publishers distribute it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streamdrop.errors import DataError
from streamdrop.evaluation import datasets_binary as binary
from streamdrop.evaluation import datasets_download
from streamdrop.evaluation.datasets_folders import holds_classes, read_image_archive, read_image_folders
from streamdrop.evaluation.datasets_npz import read_npz_folder, read_single_npz
from streamdrop.evaluation.labelled import LabelledSet, as_input, checked_labels
from streamdrop.streams.images import SUFFIXES

__all__ = ["LabelledSet", "as_input", "read_split"]

ACCEPTED = (
    "a folder with train.npz and test.npz (images, labels); one .npz (train_images, train_labels, test_images, "
    "test_labels); MNIST's train-images-idx3-ubyte[.gz] …; cifar-10-batches-bin, cifar-10-batches-py or "
    "cifar-10-binary.tar.gz; train/CLASS/* with val/CLASS/* or test/CLASS/*; imagenette2-*.tgz"
)


@dataclass(frozen=True)
class _Found:
    """A set at ``place`` and what reads it; ``whole`` is False where files that torchvision fetches are missing."""

    place: Path
    read: Callable[[Path, str, int, int], LabelledSet]
    whole: bool = True


def read_split(
    data: str, name: str, count: int, size: int, download: bool = False, classes: int | None = None
) -> LabelledSet:
    """The first ``count`` labelled images of the split ``name`` (train or test) of what lies at ``data``.

    Images become model input at ``size`` px. Files with an order of their own keep it; folders of classes are read
    class-interleaved (the first image of every class, then the second, …), so that the first N are balanced.
    ``download``: where nothing is there and the folder is named mnist, cifar10 or imagenette, torchvision fetches it.
    ``classes``: how many the model has, where it is given.
    Raises DataError, StreamError: wrong structure, damaged files, labels that are no classes, too few images.
    """
    if name not in ("train", "test"):
        raise DataError(f"split {name!r} is not known: train or test")
    place = Path(data).expanduser()
    try:
        split = _read(place, name, count, size, download)
    except OSError as error:
        raise DataError(f"{place}: cannot be read ({error.strerror or error}): check its permissions") from error
    checked_labels(split.labels.numpy(), data, classes)
    return split


def _read(place: Path, name: str, count: int, size: int, download: bool) -> LabelledSet:
    found = _find(place)
    if download and (found is None or not found.whole):
        datasets_download.fetch(place, size)
        found = _find(place)
    if found is None:
        raise DataError(f"{place}: {_seen(place)}; accepted are {ACCEPTED}{_remedy(place)}")
    return found.read(found.place, name, count, size)


def _find(place: Path) -> _Found | None:
    if place.is_file():
        return _found_file(place)
    return _found_folder(place) if place.is_dir() else None


def _found_file(path: Path) -> _Found | None:
    if path.suffix == ".npz":
        return _Found(path, read_single_npz)
    if not path.name.endswith((".tar", ".tgz", ".tar.gz")):
        return None
    first = _first_telling(path)
    if first.startswith("data_batch_") and not first.endswith(".bin"):
        raise DataError(
            f"{path}: CIFAR-10's python version is not read packed: unpack it, or give cifar-10-binary.tar.gz"
        )
    return _Found(path, binary.read_cifar_archive if first.endswith(".bin") else read_image_archive)


def _first_telling(archive: Path) -> str:
    """The name of the first member that tells what an archive holds; it is not read further than that."""
    with binary.opened_archive(archive) as tar:
        names = (Path(member.name).name for member in tar if member.isfile())
        return next((n for n in names if n.startswith("data_batch_") or Path(n).suffix.lower() in SUFFIXES), "")


def _found_folder(folder: Path) -> _Found | None:
    if any((folder / f"{name}.npz").is_file() for name in ("train", "test")):
        return _Found(folder, read_npz_folder)
    return _found_mnist(folder) or _found_cifar(folder) or _found_images(folder) or _found_archive(folder)


def _found_mnist(folder: Path) -> _Found | None:
    for place in (folder, folder / "MNIST" / "raw"):
        held = [binary.idx_file(place, stem) is not None for stem in binary.MNIST_FILES]
        if any(held):
            unpacked = all((place / f"{stem}-ubyte").is_file() for stem in binary.MNIST_FILES)
            return _Found(place, binary.read_mnist, unpacked or place == folder)
    return None


def _found_cifar(folder: Path) -> _Found | None:
    files = [name for names in binary.CIFAR_PARTS.values() for name in names]
    for place in (folder / "cifar-10-batches-bin", folder):
        if any((place / f"{name}.bin").is_file() for name in files):
            return _Found(place, binary.read_cifar_binary)
    for root in (folder, folder.parent):
        inner = root / "cifar-10-batches-py"
        if inner.is_dir() and inner in (folder, folder / inner.name):
            return _Found(root, binary.read_cifar_python, all((inner / name).is_file() for name in files))
    return None


def _found_images(folder: Path) -> _Found | None:
    if any(holds_classes(folder / name) for name in ("train", "val", "test")):
        return _Found(folder, read_image_folders)
    inner = [p for p in sorted(folder.glob("imagenette*")) if holds_classes(p / "train")]
    return _Found(_only(inner), read_image_folders) if inner else None


def _found_archive(folder: Path) -> _Found | None:
    packed = [*folder.glob("imagenette*.tgz"), *folder.glob("cifar-10-binary.tar.gz")]
    return _found_file(_only(sorted(packed))) if packed else None


def _only(paths: list[Path]) -> Path:
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise DataError(f"{paths[0].parent}: holds several sets ({names}): give the path of one of them as data")
    return paths[0]


def _seen(place: Path) -> str:
    """What lies there, in a few words."""
    if not place.exists():
        return "nothing is there"
    if place.is_file():
        return "a file that is no labelled set"
    names = sorted(path.name + "/" * path.is_dir() for path in place.iterdir())
    return f"no labelled set (found: {', '.join(names[:5]) + (', …' if len(names) > 5 else '') or 'nothing'})"


def _remedy(place: Path) -> str:
    if (place / "cifar-10-python.tar.gz").is_file():
        return ": unpack cifar-10-python.tar.gz there"
    return ": give --download to fetch it" if datasets_download.set_named(place) and not place.is_file() else ""
