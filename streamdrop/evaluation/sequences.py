"""Sequences with truth on disk: ``FOLDER/NAME/color/*.jpg`` (or png) and ``FOLDER/NAME/groundtruth.txt``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from streamdrop.boxes import Array, Box
from streamdrop.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png")
TRUTH = "groundtruth.txt"


@dataclass(frozen=True)
class VideoSequence:
    """Frames on disk and the true box of each.

    ``truth`` is float64 [N, 4] (``x, y, w, h``, pixels), NaN where the target is absent, never so in the first row:
    ``start`` frames before the first one with truth are left out of ``frames`` and ``truth``.
    """

    name: str
    frames: tuple[Path, ...]
    truth: Array
    start: int = 0

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def first_box(self) -> Box:
        """The true box of the first frame."""
        return Box(*(float(v) for v in self.truth[0]))

    def head(self, frames: int | None) -> VideoSequence:
        """The first ``frames`` of it (all when None)."""
        return replace(self, frames=self.frames[:frames], truth=self.truth[:frames])


def read_sequences(
    folder: str | Path, names: Iterable[str] | None = None, frames: int | None = None
) -> list[VideoSequence]:
    """The sequences of a folder in order of name, or those in ``names``; at most ``frames`` (≥ 2) frames of each.

    Raises DataError: no such folder, no sequence in it, an unknown name, or a sequence that cannot be used.
    """
    if frames is not None and frames < 2:
        raise DataError(f"{frames} frames per sequence leave nothing to track: give at least 2")
    known = _list_sequences(Path(folder))
    chosen = list(known) if names is None else [_choose(name, known, folder) for name in dict.fromkeys(names)]
    if not chosen:
        raise DataError("no sequence is chosen: name at least one, or leave the choice out to take all")
    return [read_sequence(known[name]).head(frames) for name in chosen]


def read_sequence(path: str | Path) -> VideoSequence:
    """The sequence in one folder (``color/*.jpg`` and ``groundtruth.txt``); raises DataError."""
    folder = Path(path)
    frames = _list_frames(folder)
    truth = read_truth(folder / TRUTH)
    if len(truth) != len(frames):
        raise DataError(
            f"{folder / TRUTH} has {len(truth)} lines for {len(frames)} frames in {folder / 'color'}: "
            "give one line per frame (NaN,NaN,NaN,NaN where the target is absent)"
        )
    known = np.flatnonzero(np.isfinite(truth).all(axis=1))
    if not len(known):
        raise DataError(f"{folder / TRUTH} has no box at all: at least one line must hold x,y,w,h")
    start = int(known[0])
    if len(frames) - start < 2:
        raise DataError(f"{folder} has nothing to track after frame {start}, the first with a true box")
    return VideoSequence(folder.name, tuple(frames[start:]), truth[start:], start)


def read_truth(path: str | Path) -> Array:
    """True boxes of a text file, float64 [N, 4]; raises DataError.

    A line holds ``x,y,w,h`` or a polygon of four corners (8 numbers, taken as its bounding box), separated by commas,
    semicolons or blanks. NaN and boxes without area (which some benchmarks write for an absent target) become NaN.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except FileNotFoundError:
        raise DataError(f"{path} is missing: a sequence needs one x,y,w,h line per frame there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): it must be a text file of x,y,w,h lines") from None
    if not lines:
        raise DataError(f"{path} is empty: give one x,y,w,h line per frame")
    return np.array([_parse_line(line, f"{path}, line {i}") for i, line in enumerate(lines, 1)])


def _parse_line(line: str, where: str) -> tuple[float, float, float, float]:
    try:
        numbers = [float(part) for part in re.split(r"\s*[,;]\s*|\s+", line.strip())]
    except ValueError:
        raise DataError(f"{where}: {line.strip()[:60]!r} is not numbers: give x,y,w,h") from None
    if len(numbers) == 8:
        xs, ys = numbers[0::2], numbers[1::2]
        numbers = (
            [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)] if np.isfinite(numbers).all() else [np.nan] * 4
        )
    if len(numbers) != 4:
        raise DataError(f"{where}: {len(numbers)} numbers: give x,y,w,h, or the 8 of a polygon's four corners")
    x, y, w, h = numbers
    return (x, y, w, h) if np.isfinite(numbers).all() and w > 0 and h > 0 else (np.nan,) * 4


def _list_frames(folder: Path) -> list[Path]:
    colour = folder / "color"
    if not colour.is_dir():
        raise DataError(f"{colour} is missing: a sequence keeps its frames there as .jpg or .png")
    frames = [p for p in colour.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    if not frames:
        raise DataError(f"{colour} holds no .jpg or .png: put the sequence's frames there")
    return sorted(frames, key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Numbers in a file name compare as numbers: 2.jpg comes before 10.jpg."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p]


def _list_sequences(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give one that holds NAME/color/*.jpg and NAME/{TRUTH}")
    found = {p.name: p for p in sorted(folder.iterdir()) if (p / "color").is_dir() or (p / TRUTH).is_file()}
    if not found and (folder / TRUTH).is_file():
        raise DataError(
            f"{folder} is one sequence itself: give its parent, {folder.resolve().parent}, and choose by name"
        )
    if not found:
        raise DataError(f"{folder} holds no sequence: it needs NAME/color/*.jpg and NAME/{TRUTH}")
    return found


def _choose(name: str, known: dict[str, Path], folder: str | Path) -> str:
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "there are " + ", ".join(sorted(known)[:10])
    raise DataError(f"no sequence {name!r} in {folder}: {hint}")
