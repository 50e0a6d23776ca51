"""Sequences with truth on disk, in the layouts of VOT, OTB, GOT-10k, LaSOT and MOT (see ``layouts``)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from streamdrop.boxes import Array, Box
from streamdrop.errors import DataError
from streamdrop.evaluation.layouts import Found, find_sequences, sequences_in
from streamdrop.evaluation.truth import Flags, read_absence, read_truth

__all__ = ["VideoSequence", "read_sequence", "read_sequences", "read_truth"]


@dataclass(frozen=True)
class VideoSequence:
    """Frames on disk and the true box of each.

    ``truth`` is float64 [N, 4] (``x, y, w, h``, pixels), NaN where there is none, never so in the first row: ``start``
    frames before the first one with truth are left out of ``frames`` and ``truth``. ``absent`` [N] is where there is
    no truth because nothing can be seen; elsewhere a missing truth is unknown (the test sets that tell the first box
    only). ``layout`` is the benchmark whose layout it has. Where a video has several targets, each has a sequence of
    its own with its ``target``, an id; ``video`` is the name they share. MOT's end with their last true box.
    """

    name: str
    frames: tuple[Path, ...]
    truth: Array
    absent: Flags
    start: int = 0
    layout: str = "VOT"
    video: str = ""
    target: int | None = None

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def first_box(self) -> Box:
        """The true box of the first frame."""
        return Box(*(float(v) for v in self.truth[0]))

    def head(self, frames: int | None) -> VideoSequence:
        """The first ``frames`` of it (all when None)."""
        return self.part(slice(frames))

    def part(self, chosen: slice) -> VideoSequence:
        """The ``chosen`` frames of it."""
        return replace(self, frames=self.frames[chosen], truth=self.truth[chosen], absent=self.absent[chosen])


def read_sequences(
    folder: str | Path, names: Iterable[str] | None = None, frames: int | None = None
) -> list[VideoSequence]:
    """The sequences of a folder in order of name, or those in ``names``; at most ``frames`` (≥ 2) frames of each.

    The name of a video with several targets stands for all of them. In MOT's layout ``frames`` counts from the start
    of the video, and targets that cannot be followed there are left out. Raises DataError: no such folder, no sequence
    in it, an unknown name, or a sequence that cannot be used.
    """
    if frames is not None and frames < 2:
        raise DataError(f"{frames} frames per sequence leave nothing to track: give at least 2")
    known = find_sequences(Path(folder))
    chosen = list(known) if names is None else [one for name in names for one in _choose(name, known, folder)]
    if not chosen:
        raise DataError("no sequence is chosen: name at least one, or leave the choice out to take all")
    found = [known[name] for name in dict.fromkeys(chosen) if known[name].told_within(frames)]
    if not found:
        raise DataError(f"none of the targets in {folder} is seen twice in the first {frames} frames: give more")
    return [_read(one, frames) for one in found]


def read_sequence(path: str | Path) -> VideoSequence:
    """The sequence in one folder; raises DataError, also where it has several targets."""
    found = sequences_in(Path(path))
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise DataError(f"{path} has several targets: read its parent's sequences and choose of {names}")
    return _read(found[0])


def _read(found: Found, most: int | None = None) -> VideoSequence:
    if found.rows is not None:
        return _read_mot(found, found.rows, most)
    frames = found.frames()
    truth = read_truth(found.truth)
    told = len(truth)
    if told == 1 < len(frames):  # the first box is all that the benchmark tells
        truth = np.vstack([truth, np.full((len(frames) - 1, 4), np.nan)])
    if len(truth) != len(frames):
        raise DataError(
            f"{found.truth} has {told} lines for {len(frames)} frames in {frames[0].parent}: "
            "give one line per frame (NaN,NaN,NaN,NaN where the target is absent)"
        )
    marked = read_absence(found.folder, len(frames))
    truth[marked] = np.nan
    known: Flags = np.asarray(np.isfinite(truth).all(axis=1))
    if not known.any():
        raise DataError(f"{found.truth} has no box at all: at least one line must hold x,y,w,h of a visible target")
    start = int(known.argmax())
    if len(frames) - start < 2:
        raise DataError(f"{found.folder} has nothing to track after frame {start}, the first with a true box")
    absent = ~known if told > 1 else marked
    return _sequence(found, frames, truth, absent, slice(start, None)).head(most)


def _read_mot(found: Found, rows: Array, most: int | None) -> VideoSequence:
    """One target's part of the first ``most`` frames: from its first true box to its last."""
    frames = found.frames()
    last = int(rows[-1, 0])
    if last >= len(frames):
        raise DataError(f"{found.truth} has a box in frame {last + 1} of {len(frames)} in {frames[0].parent}: "
                        "give all frames, or take the line out")  # fmt: skip
    rows = rows if most is None else rows[rows[:, 0] < most]
    at = rows[:, 0].astype(int)
    truth = np.full((len(frames), 4), np.nan)
    truth[at] = rows[:, 1:]
    absent: Flags = np.asarray(np.isnan(truth).all(axis=1))
    return _sequence(found, frames, truth, absent, slice(int(at[0]), int(at[-1]) + 1))


def _sequence(found: Found, frames: list[Path], truth: Array, absent: Flags, part: slice) -> VideoSequence:
    return VideoSequence(
        found.name,
        tuple(frames[part]),
        truth[part],
        absent[part],
        part.start,
        found.layout,
        found.name if found.target is None else found.video,
        found.target,
    )


def _choose(name: str, known: dict[str, Found], folder: str | Path) -> list[str]:
    """The sequence of that name, or those of all targets of the video of that name."""
    if name in known:
        return [name]
    targets = [key for key, one in known.items() if one.target is not None and one.video == name]
    if targets:
        return sorted(targets, key=lambda key: known[key].target or 0)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "there are " + ", ".join(sorted(known)[:10])
    raise DataError(f"no sequence {name!r} in {folder}: {hint}")
