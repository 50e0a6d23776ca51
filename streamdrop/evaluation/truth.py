"""True boxes and visibility marks of a sequence, as the benchmarks' text files hold them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamdrop.boxes import Array
from streamdrop.errors import DataError

Flags = npt.NDArray[np.bool_]
Row = tuple[float, float, float, float]

ABSENT = (float("nan"),) * 4
ABSENCE_FILES = {
    "full_occlusion.txt": "LaSOT: 1 where the target is hidden wholly",
    "out_of_view.txt": "LaSOT: 1 where the target has left the frame",
    "absence.label": "GOT-10k: 1 where the target is absent",
}
"""Files with one 0 or 1 per frame, on lines or separated by commas; 1 means there is nothing to find."""

COVER_FILE = "cover.label"
"""GOT-10k: how much of the target is visible, 0 … 8 eighths; 0 means there is nothing to find."""


def read_truth(path: str | Path) -> Array:
    """True boxes of a text file, float64 [N, 4]; raises DataError.

    A line holds ``x,y,w,h``, a polygon of at least three corners (taken as its bounding box), or VOT's mask (``m`` and
    its box), separated by commas, semicolons or blanks. NaN, boxes without area and a lone 0 (VOT's absent or unknown
    target) become NaN. Numbers stand as published: OTB counts pixels from 1, the others from 0.
    """
    path = Path(path)
    lines = _text(path, "a sequence needs one x,y,w,h line per frame there").rstrip().splitlines()
    if not lines:
        raise DataError(f"{path} is empty: give one x,y,w,h line per frame")
    return np.array([_parse_line(line, f"{path}, line {i}") for i, line in enumerate(lines, 1)])


def read_absence(folder: Path, frames: int) -> Flags:
    """Frames [N] in which a sequence's own marks say that the target cannot be seen; raises DataError.

    Marks of partial occlusion (VOT's ``occlusion.tag``, GOT-10k's cover of one eighth and more) leave the truth.
    """
    absent = np.zeros(frames, bool)
    for name in ABSENCE_FILES:
        if (folder / name).is_file():
            absent |= _read_numbers(folder / name, frames) > 0
    if (folder / COVER_FILE).is_file():
        absent |= _read_numbers(folder / COVER_FILE, frames) == 0
    return absent


def _text(path: Path, need: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {need}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): it must be a text file of numbers") from None


def _read_numbers(path: Path, frames: int) -> npt.NDArray[np.int64]:
    parts = re.split(r"[\s,;]+", _text(path, "").strip(" \t\r\n,;"))
    try:
        numbers = np.array([int(float(part)) for part in parts], np.int64)
    except ValueError:
        raise DataError(f"{path}: holds something else than one whole number per frame: correct or remove it") from None
    if len(numbers) != frames:
        raise DataError(f"{path} marks {len(numbers)} frames of {frames}: give one number per frame, or remove it")
    return numbers


def _parse_line(line: str, where: str) -> Row:
    text = line.strip(" \t\r,;")
    mask = text[:1] == "m"
    try:
        numbers = [float(part) for part in re.split(r"\s*[,;]\s*|\s+", text.removeprefix("m").strip())]
    except ValueError:
        raise DataError(f"{where}: {line.strip()[:60]!r} is not numbers: give x,y,w,h") from None
    if mask:
        numbers = numbers[:4]  # what follows are the runs of the mask inside this box
    elif numbers == [0.0] or (len(numbers) == 1 and np.isnan(numbers[0])):
        return ABSENT
    elif len(numbers) >= 6 and len(numbers) % 2 == 0:
        numbers = _around(numbers)
    if len(numbers) != 4:
        raise DataError(f"{where}: {len(numbers)} numbers: give x,y,w,h, or the 8 of a polygon's four corners")
    x, y, w, h = numbers
    return (x, y, w, h) if np.isfinite(numbers).all() and w > 0 and h > 0 else ABSENT


def _around(corners: list[float]) -> list[float]:
    """The bounding box of a polygon ``x0, y0, x1, y1, …``."""
    if not np.isfinite(corners).all():
        return list(ABSENT)
    xs, ys = corners[0::2], corners[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
