"""A run's boxes on disk: as plain text, and as the toolkits of GOT-10k, VOT and MOT read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from streamdrop.atomic import replace_text
from streamdrop.boxes import Array, mot_line
from streamdrop.errors import ConfigError, OutputError
from streamdrop.evaluation.outcomes import Outcome
from streamdrop.evaluation.protocol import Run

FORMATS = ("got10k", "vot", "mot")
VOT_EXPERIMENT = "unsupervised"
"""VOT's name for one pass without restarts."""


def check_formats(formats: Iterable[str]) -> None:
    """Refuse a format that is none; raises ConfigError."""
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"no result format {name!r}: choose from {', '.join(FORMATS)}")


def write_boxes(path: Path, run: Run, start: int) -> None:
    """``x,y,w,h`` per frame of the whole sequence: NaN for the ``start`` frames before its first true box."""
    _write(path, _rows(run.boxes, start, 4))


def write_formats(folder: Path, formats: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """The last outcome's arm and sequence in each format, its seeds in order, each a repetition; raises OutputError.

    Only the one pass has such files. GOT-10k: ``got10k/ARM/SEQUENCE/SEQUENCE_001.txt`` and ``SEQUENCE_time.txt``
    (seconds, a column per repetition). VOT: ``vot/ARM/unsupervised/SEQUENCE/SEQUENCE_001.txt`` (``1`` where the tracker
    is initialised, ``0`` before), ``SEQUENCE_001_time.value`` (seconds) and ``SEQUENCE_001_confidence.value``. MOT:
    ``mot/ARM_SEED/data/VIDEO.txt``, all targets of a video with their ids, lost frames left out.
    """
    last = outcomes[-1]
    if last.protocol != "ope":
        return
    same = [o for o in outcomes if (o.arm, o.sequence, o.protocol) == (last.arm, last.sequence, "ope")]
    runs = [o.run for o in sorted(same, key=lambda o: o.seed)]
    if "got10k" in formats:
        _write_got10k(folder / "got10k" / last.arm / last.sequence, last.sequence, runs, last.start)
    if "vot" in formats:
        _write_vot(folder / "vot" / last.arm / VOT_EXPERIMENT / last.sequence, last.sequence, runs, last.start)
    if "mot" in formats:
        key = (last.arm, last.seed, last.video, "ope")
        targets = [o for o in outcomes if (o.arm, o.seed, o.video, o.protocol) == key]
        _write_mot(folder / "mot" / f"{last.arm}_{last.seed}" / "data" / f"{last.video}.txt", targets)


def _write_got10k(folder: Path, sequence: str, runs: Sequence[Run], start: int) -> None:
    for repetition, run in enumerate(runs, 1):
        _write(folder / f"{sequence}_{repetition:03d}.txt", _rows(run.boxes, start, 3))
    times = np.column_stack([np.concatenate([np.zeros(start), seconds(run)]) for run in runs])
    _write(folder / f"{sequence}_time.txt", _rows(times, 0, 8))


def _write_vot(folder: Path, sequence: str, runs: Sequence[Run], start: int) -> None:
    for repetition, run in enumerate(runs, 1):
        name = f"{sequence}_{repetition:03d}"
        _write(folder / f"{name}.txt", ["0"] * start + ["1", *_rows(run.boxes[1:], 0, 4)])
        _write(folder / f"{name}_time.value", ["0"] * start + [f"{s:.6f}" for s in seconds(run)])
        _write(folder / f"{name}_confidence.value", [""] * (start + 1) + [f"{s:.6f}" for s in run.scores[1:]])


def _write_mot(path: Path, targets: Sequence[Outcome]) -> None:
    """``frame,id,x,y,w,h,score,-1,-1,-1``, counted from 1, in order of frames, then of ids."""
    lines = [
        (frame, one.target or 1, mot_line(frame, one.target or 1, box, score))
        for one in targets
        for frame, box, score, lost in zip(
            range(one.start, one.start + len(one.run.boxes)), one.run.boxes, one.run.scores, one.run.lost, strict=True
        )
        if not lost
    ]
    _write(path, [line for _, _, line in sorted(lines)])


def seconds(run: Run) -> Array:
    """Seconds per frame [N]; 0 for frames that went by unseen."""
    found: Array = np.nan_to_num(run.ms) / 1000
    return found


def _rows(values: Array, start: int, digits: int) -> list[str]:
    padded = np.vstack([np.full((start, values.shape[1]), np.nan), values])
    return [",".join(f"{value:.{digits}f}" for value in row) for row in padded]


def _write(path: Path, lines: Sequence[str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, "".join(line + "\n" for line in lines))  # a torn one would look like a result
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): give a folder with room") from None
