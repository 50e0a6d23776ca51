"""One run of an evaluation and how good it was."""

from __future__ import annotations

from dataclasses import dataclass

from streamdrop.boxes import Array
from streamdrop.evaluation.confidence import Calibration, LostCount
from streamdrop.evaluation.protocol import Run


@dataclass(frozen=True)
class Outcome:
    """One run and its scores.

    ``curves`` are success [21] and precision [51], ``overlaps`` [N] (NaN where there is no truth), ``calibration`` is
    None for rivals, whose scores mean nothing; ``peak_mb`` is the process's peak in MiB. ``protocol`` is ``ope`` (one
    pass), ``realtime`` or ``perturbed``, the last with the number of its first box as ``variant``. ``video`` and
    ``target`` are the sequence's.
    """

    sequence: str
    arm: str
    seed: int
    start: int
    run: Run
    scores: dict[str, float]
    curves: tuple[Array, Array]
    overlaps: Array
    lost: LostCount
    calibration: Calibration | None = None
    peak_mb: float | None = None
    protocol: str = "ope"
    variant: int = 0
    video: str = ""
    target: int | None = None
