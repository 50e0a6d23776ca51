"""True boxes of several targets as the MOT challenge tells them: ``gt/gt.txt``, a line for each box of each target."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from streamdrop.boxes import Array
from streamdrop.errors import DataError

MOT_TRUTH = Path("gt") / "gt.txt"
MOT_FRAMES = "img1"
_MARK, _VISIBLE = 6, 8  # columns: 0 means not to be judged, and that nothing of it can be seen
_NEEDS = "give frame,id,x,y,w,h on each line, counted from 1"


def read_mot_truth(path: Path) -> dict[int, Array]:
    """Rows [N, 5] by target, in order of ids: frame (from 0), then ``x, y, w, h`` (pixels, 0-based). Raises DataError.

    The file counts frames and pixels from 1. Left out are boxes marked as not to be judged, those of which nothing can
    be seen, and those without area.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path} is missing: frames in {MOT_FRAMES}/ need it: {_NEEDS}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): it must be a text file of numbers") from None
    told: dict[int, dict[int, list[float]]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        frame, target, box = _parse(line, f"{path}, line {number}")
        boxes = told.setdefault(target, {})
        if frame in boxes:
            raise DataError(f"{path}, line {number}: target {target} has a box in frame {frame + 1} already: keep one")
        boxes[frame] = box
    found = {target: _rows(told[target]) for target in sorted(told)}
    return {target: rows for target, rows in found.items() if len(rows)}


def _parse(line: str, where: str) -> tuple[int, int, list[float]]:
    """Frame (from 0), target, and box, empty where there is none to judge by."""
    try:
        numbers = [float(part) for part in re.split(r"\s*[,;]\s*|\s+", line.strip(" \t\r,;"))]
        frame, target = int(numbers[0]), int(numbers[1])
        x, y, w, h = numbers[2:6]
    except (ValueError, OverflowError):
        raise DataError(f"{where}: {line.strip()[:60]!r} does not fit: {_NEEDS}") from None
    if frame < 1 or target < 0:
        raise DataError(f"{where}: frame {frame}, target {target}: {_NEEDS}")
    counts = all(numbers[at] != 0 for at in (_MARK, _VISIBLE) if at < len(numbers))
    real = counts and bool(np.isfinite([x, y, w, h]).all()) and w > 0 and h > 0
    return frame - 1, target, [x - 1, y - 1, w, h] if real else []


def _rows(boxes: dict[int, list[float]]) -> Array:
    return np.array([[frame, *box] for frame, box in sorted(boxes.items()) if box], float).reshape(-1, 5)
