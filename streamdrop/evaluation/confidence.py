"""What a tracker's own word is worth: its report of being lost, and its score as a probability.

The first frame, where the box is given, is left out, and so are frames whose truth is not known. Where the target is
absent there is nothing to overlap with: the overlap is 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from streamdrop.boxes import Array
from streamdrop.evaluation.metrics import overlaps

BINS = 10
"""Equal bins of the score, over which calibration is judged."""

HIT = 0.5
"""A box is right where its overlap is above this: a score of 0.5 should mean that one in two is."""

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LostCount:
    """Frames reported lost rightly (the target is absent, or the box overlaps nothing), wrongly, and missed."""

    right: int = 0
    wrong: int = 0
    missed: int = 0

    def __add__(self, other: LostCount) -> LostCount:
        return LostCount(self.right + other.right, self.wrong + other.wrong, self.missed + other.missed)

    @property
    def precision(self) -> float:
        """Share of lost reports that are right; NaN without any."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else float("nan")

    @property
    def recall(self) -> float:
        """Share of lost frames that are reported; NaN without any."""
        return self.right / (self.right + self.missed) if self.right + self.missed else float("nan")


@dataclass(frozen=True)
class Calibration:
    """Per bin of the score: frames, the sum of their scores, and how many boxes are right; [BINS] each."""

    frames: Array = field(default_factory=lambda: np.zeros(BINS))
    scores: Array = field(default_factory=lambda: np.zeros(BINS))
    hits: Array = field(default_factory=lambda: np.zeros(BINS))

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(self.frames + other.frames, self.scores + other.scores, self.hits + other.hits)

    @property
    def error(self) -> float:
        """Expected calibration error in [0, 1] (Guo et al. 2017, eq. 5): |mean score − share of right boxes|, weighted
        by the bins' frames; NaN without a frame.
        """
        total = self.frames.sum()
        return float(np.abs(self.scores - self.hits).sum() / total) if total else float("nan")

    def curve(self) -> list[tuple[float, float, int]]:
        """Mean score, share of right boxes, frames, of every bin that has any."""
        rows = zip(self.frames, self.scores, self.hits, strict=True)
        return [(float(s / n), float(h / n), int(n)) for n, s, h in rows if n]


def count_lost(boxes: npt.ArrayLike, lost: npt.ArrayLike, truth: npt.ArrayLike, absent: npt.ArrayLike) -> LostCount:
    """A run's lost reports [N] judged by its boxes [N, 4] and the truth [N, 4]; ``absent`` [N] as VideoSequence."""
    gone, known = _gone_and_known(boxes, truth, absent)
    said = np.asarray(lost, bool)[1:][known]
    return LostCount(int((said & gone).sum()), int((said & ~gone).sum()), int((~said & gone).sum()))


def calibrate(boxes: npt.ArrayLike, scores: npt.ArrayLike, truth: npt.ArrayLike, absent: npt.ArrayLike) -> Calibration:
    """A run's scores [N] in [0, 1] against whether its boxes are right."""
    overlap, known = _later_overlaps(boxes, truth, absent)
    given = np.clip(np.nan_to_num(np.asarray(scores, float)[1:][known]), 0.0, 1.0)
    bins = np.minimum((given * BINS).astype(int), BINS - 1)

    def total(weights: npt.ArrayLike | None) -> Array:
        counted: Array = np.bincount(bins, weights, BINS).astype(float)
        return counted

    return Calibration(total(None), total(given), total((overlap[known] > HIT).astype(float)))


def _gone_and_known(boxes: npt.ArrayLike, truth: npt.ArrayLike, absent: npt.ArrayLike) -> tuple[Flags, Flags]:
    overlap, known = _later_overlaps(boxes, truth, absent)
    gone: Flags = overlap[known] == 0
    return gone, known


def _later_overlaps(boxes: npt.ArrayLike, truth: npt.ArrayLike, absent: npt.ArrayLike) -> tuple[Array, Flags]:
    """Overlaps of all frames but the first, 0 where the target is absent, and which of them are known."""
    overlap = overlaps(boxes, truth)[1:]
    overlap[np.asarray(absent, bool)[1:]] = 0.0
    known: Flags = ~np.isnan(overlap)
    return overlap, known
