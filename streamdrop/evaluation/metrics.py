"""How well predicted boxes match the truth: success and precision as OTB, average overlap and success rate as GOT-10k.

Every function takes predicted and true boxes ``[N, 4]`` (``x, y, w, h``, pixels) of one sequence, first frame included.
Frames without truth (NaN) are left out; a prediction that is not finite overlaps nothing. A score over no frame at all
is NaN.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamdrop.boxes import Array, centre_distance, iou
from streamdrop.errors import DataError

THRESHOLDS: Array = np.linspace(0.0, 1.0, 21)
"""Overlaps at which success is counted."""

PIXELS: Array = np.arange(0.0, 51.0)
"""Centre distances at which the precision curve is drawn; the headline precision is the one at 20."""


def overlaps(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> Array:
    """Intersection over union per frame, [N] in [0, 1]; NaN where there is no truth. Raises DataError."""
    boxes, true = _pair(predicted, truth)
    return np.where(_known(true), np.nan_to_num(iou(boxes, true), nan=0.0), np.nan)


def centre_errors(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> Array:
    """Distance of the centres per frame, [N] in pixels; NaN where there is no truth. Raises DataError."""
    boxes, true = _pair(predicted, truth)
    return np.where(_known(true), np.nan_to_num(centre_distance(boxes, true), nan=np.inf), np.nan)


def success_curve(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> Array:
    """Share of frames whose overlap is strictly above each of the 21 THRESHOLDS, [21]."""
    known = _drop_nan(overlaps(predicted, truth))
    return _mean(known[:, None] > THRESHOLDS)


def success(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Area under the success curve (AUC), first frame counted: at most 20/21."""
    return float(success_curve(predicted, truth).mean())


def precision_curve(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> Array:
    """Share of frames whose centre is within each of PIXELS of the true one, [51]."""
    known = _drop_nan(centre_errors(predicted, truth))
    return _mean(known[:, None] <= PIXELS)


def precision(predicted: npt.ArrayLike, truth: npt.ArrayLike, pixels: float = 20.0) -> float:
    """Share of frames whose centre is within ``pixels`` of the true one, first frame counted."""
    known = _drop_nan(centre_errors(predicted, truth))
    return float(_mean(known[:, None] <= pixels)[0])


def average_overlap(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Mean overlap without the first frame (GOT-10k's AO)."""
    known = _drop_nan(overlaps(predicted, truth)[1:])
    return float(known.mean()) if len(known) else float("nan")


def success_rate(predicted: npt.ArrayLike, truth: npt.ArrayLike, threshold: float = 0.5) -> float:
    """Share of frames whose overlap is above ``threshold``, without the first frame (GOT-10k's SR)."""
    known = _drop_nan(overlaps(predicted, truth)[1:])
    return float((known > threshold).mean()) if len(known) else float("nan")


def scores(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> dict[str, float]:
    """``auc``, ``precision`` (20 px), ``ao`` and ``sr50`` of one sequence."""
    return {
        "auc": success(predicted, truth),
        "precision": precision(predicted, truth),
        "ao": average_overlap(predicted, truth),
        "sr50": success_rate(predicted, truth),
    }


def calibration_error(
    confidence: npt.ArrayLike, predicted: npt.ArrayLike, truth: npt.ArrayLike, bins: int = 10
) -> float:
    """How far confidences [N] in [0, 1] are from the odds of an overlap above one half, [0, 1]; first frame left out.

    Frames are put into ``bins`` of equal width by confidence; the mean over frames of their bin's gap between mean
    confidence and share of such overlaps (expected calibration error, Naeini et al. 2015). Raises DataError.
    """
    found = overlaps(predicted, truth)[1:]
    known = ~np.isnan(found)
    said, right = np.asarray(confidence, float)[1:][known], (found > 0.5)[known]
    if not len(said):
        return float("nan")
    bin_of = np.minimum((said * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, weights=said - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(said))


def _pair(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[Array, Array]:
    boxes, true = np.asarray(predicted, float), np.asarray(truth, float)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.shape != true.shape:
        raise DataError(
            f"predicted boxes {boxes.shape} and truth {true.shape} do not pair: give [frames, 4] arrays of equal length"
        )
    return boxes, true


def _known(true: Array) -> npt.NDArray[np.bool_]:
    return np.asarray(np.isfinite(true).all(axis=1))


def _drop_nan(values: Array) -> Array:
    return values[~np.isnan(values)]


def _mean(hits: npt.NDArray[np.bool_]) -> Array:
    """Column means of [frames, thresholds]; NaN when there is no frame."""
    return hits.mean(axis=0) if len(hits) else np.full(hits.shape[1], np.nan)
