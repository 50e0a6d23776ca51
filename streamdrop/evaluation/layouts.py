"""How the benchmarks lay out a sequence on disk, told by what is there.

============  ==============================  ==============================================
layout        frames                          truth
============  ==============================  ==============================================
VOT           ``NAME/color/*.jpg``            ``groundtruth.txt`` (boxes, polygons, masks)
LaSOT         ``CLASS/NAME/img/*.jpg``        ``groundtruth.txt``, ``full_occlusion.txt``, …
OTB           ``NAME/img/*.jpg``              ``groundtruth_rect.txt``, ``groundtruth_rect.2.txt``
GOT-10k       ``NAME/*.jpg`` (VOT 2013-17)    ``groundtruth.txt``, ``absence.label``, …
MOT           ``NAME/img1/*.jpg``             ``gt/gt.txt``: a line for each box of each target
============  ==============================  ==============================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from streamdrop.boxes import Array
from streamdrop.errors import DataError
from streamdrop.evaluation.mot import MOT_FRAMES, MOT_TRUTH, read_mot_truth

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
TRUTH = "groundtruth.txt"
NEEDS = f"NAME/color/*.jpg and NAME/{TRUTH}, or sequences laid out as OTB, GOT-10k, LaSOT or MOT do"
PARTS = {"train", "val", "test"}

OTB_RANGES = {"david": (300, 770), "diving": (1, 215), "football1": (1, 74), "freeman3": (1, 460), "freeman4": (1, 283)}
"""Frames (first and last, from 1) that OTB's truth speaks of, where it does not speak of all."""


@dataclass(frozen=True)
class Found:
    """A sequence on disk: its name, its folder, its file of true boxes (there may be none), its layout.

    ``target``: the id of what it follows, where the folder holds several targets; else None. ``rows``: its true boxes
    as ``read_mot_truth`` has them, where that is the layout.
    """

    name: str
    folder: Path
    truth: Path
    layout: str
    target: int | None = None
    rows: Array | None = None

    @property
    def video(self) -> str:
        """The name that all targets of the folder share."""
        return self.folder.name

    def told_within(self, frames: int | None) -> bool:
        """Whether it can be followed in the first ``frames`` of its video: always but for MOT's."""
        return self.rows is None or frames is None or int((self.rows[:, 0] < frames).sum()) > 1

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

    They may lie one folder deeper, as LaSOT sorts them by class. One with several targets becomes a sequence for each,
    ``NAME-1``, ``NAME-2``, by their ids.
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
    pictures = any(_pictures(folder / place) for place in ("img", MOT_FRAMES))
    return (folder / "color").is_dir() or bool(_truths(folder)) or (folder / MOT_TRUTH).is_file() or pictures


def sequences_in(folder: Path) -> list[Found]:
    """The sequence in one folder; one for each target where it has several. Raises DataError for MOT's bad files."""
    if _place(folder) == MOT_FRAMES or (folder / MOT_TRUTH).is_file():
        return _of_mot(folder)
    truths = _truths(folder) or [folder / TRUTH]
    layout = _layout(folder, truths[0])
    if len(truths) == 1:
        return [Found(folder.name, folder, truths[0], layout)]
    numbered = ((_target(path), path) for path in truths)
    return [Found(f"{folder.name}-{key}", folder, path, layout, key) for key, path in numbered]


def _of_mot(folder: Path) -> list[Found]:
    """One for each target that has at least two true boxes."""
    path = folder / MOT_TRUTH
    told = {key: rows for key, rows in read_mot_truth(path).items() if len(rows) > 1}
    if not told:
        raise DataError(f"{path} has no target that can be followed: at least one must have two boxes to judge by")
    if len(told) == 1:
        return [Found(folder.name, folder, path, "MOT", None, rows) for rows in told.values()]
    return [Found(f"{folder.name}-{key}", folder, path, "MOT", key, rows) for key, rows in told.items()]


def _below(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and is_sequence(path)]


def _truths(folder: Path) -> list[Path]:
    """Its files of true boxes: ``groundtruth.txt``, or OTB's ``groundtruth_rect.txt``, or one for each target."""
    for name in (TRUTH, "groundtruth_rect.txt"):
        if (folder / name).is_file():
            return [folder / name]
    numbered = [path for path in folder.glob("groundtruth_rect.*.txt") if path.name.split(".")[1].isdecimal()]
    return sorted(numbered, key=_target)


def _target(path: Path) -> int:
    return int(path.name.split(".")[1])


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
    for name in ("color", "img", MOT_FRAMES):
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
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p]
