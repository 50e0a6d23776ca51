"""How the benchmarks lay out a sequence on disk, told by what is there.

============  ==============================  ==============================================
layout        frames                          truth
============  ==============================  ==============================================
VOT           ``NAME/color/*.jpg``            ``groundtruth.txt`` (boxes, polygons, masks)
LaSOT         ``CLASS/NAME/img/*.jpg``        ``groundtruth.txt``, ``full_occlusion.txt``, …
OTB           ``NAME/img/*.jpg``              ``groundtruth_rect.txt``, ``groundtruth_rect.2.txt``
GOT-10k       ``NAME/*.jpg`` (VOT 2013-17)    ``groundtruth.txt``, ``absence.label``, …
============  ==============================  ==============================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from streamdrop.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
TRUTH = "groundtruth.txt"
NEEDS = f"NAME/color/*.jpg and NAME/{TRUTH}, or sequences laid out as OTB, GOT-10k or LaSOT do"
PARTS = {"train", "val", "test"}

OTB_RANGES = {"david": (300, 770), "diving": (1, 215), "football1": (1, 74), "freeman3": (1, 460), "freeman4": (1, 283)}
"""Frames (first and last, from 1) that OTB's truth speaks of, where it does not speak of all."""


@dataclass(frozen=True)
class Found:
    """A sequence on disk: its name, its folder, its file of true boxes (there may be none), its layout."""

    name: str
    folder: Path
    truth: Path
    layout: str

    def frames(self) -> list[Path]:
        """Its frames in the order of their numbers; raises DataError where there are none."""
        frames = _pictures(self.folder / _place(self.folder))
        if not frames:
            place = self.folder / (_place(self.folder) or "color")
            if not place.is_dir():
                raise DataError(f"{place} is missing: a sequence keeps its frames there (or in img/) as .jpg or .png")
            raise DataError(f"{place} holds no .jpg or .png: put the sequence's frames there")
        first, last = OTB_RANGES.get(self.name.lower(), (1, None)) if self.layout == "OTB" else (1, None)
        return sorted(frames, key=_natural)[first - 1 : last]


def find_sequences(folder: Path) -> dict[str, Found]:
    """All sequences of a folder by name, in order; raises DataError where there is none, or two of one name.

    They may lie one folder deeper, as LaSOT sorts them by class. An OTB sequence with several targets becomes one
    sequence each, ``NAME-1``, ``NAME-2``.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give one that holds {NEEDS}")
    children = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    places = [path for child in children for path in ([child] if is_sequence(child) else _below(child))]
    parts = {path.parent.name for path in places} & PARTS
    if parts and any(path.parent != folder for path in places):
        raise DataError(f"{folder} holds the parts {', '.join(sorted(parts))}: give one, {folder / sorted(parts)[0]}")
    found: dict[str, Found] = {}
    for one in (one for place in places for one in sequences_in(place)):
        if one.name in found:
            raise DataError(f"{one.folder} and {found[one.name].folder} have one name: rename one")
        found[one.name] = one
    if found:
        return dict(sorted(found.items()))
    if is_sequence(folder):
        raise DataError(
            f"{folder} is one sequence itself: give its parent, {folder.resolve().parent}, and choose by name"
        )
    raise DataError(f"{folder} holds no sequence: it needs {NEEDS}")


def is_sequence(folder: Path) -> bool:
    """Whether a folder has the frames' folder or the truth of a sequence."""
    return (folder / "color").is_dir() or bool(_truths(folder)) or bool(_pictures(folder / "img"))


def sequences_in(folder: Path) -> list[Found]:
    """The sequence in one folder; several where OTB gives it several targets."""
    truths = _truths(folder) or [folder / TRUTH]
    layout = _layout(folder, truths[0])
    if len(truths) == 1:
        return [Found(folder.name, folder, truths[0], layout)]
    return [Found(f"{folder.name}-{_target(path)}", folder, path, layout) for path in truths]


def _below(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and is_sequence(path)]


def _truths(folder: Path) -> list[Path]:
    """Its files of true boxes: ``groundtruth.txt``, or OTB's ``groundtruth_rect.txt``, or one for each target."""
    for name in (TRUTH, "groundtruth_rect.txt"):
        if (folder / name).is_file():
            return [folder / name]
    return sorted(folder.glob("groundtruth_rect.[0-9]*.txt"))


def _target(path: Path) -> str:
    return path.name.split(".")[1]


def _layout(folder: Path, truth: Path) -> str:
    place = _place(folder)
    if truth.name.startswith("groundtruth_rect"):
        return "OTB"
    if place == "img":
        return "LaSOT"
    marked = any((folder / name).exists() for name in ("absence.label", "meta_info.ini"))
    return "GOT-10k" if marked and not place else "VOT"


def _place(folder: Path) -> str:
    """Where the frames lie below a sequence's folder; "" for in it."""
    for name in ("color", "img"):
        if (folder / name).is_dir():
            return name
    return "" if _pictures(folder) else "color"


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Numbers in a file name compare as numbers: 2.jpg comes before 10.jpg."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p]
