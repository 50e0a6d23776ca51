"""A run's boxes on disk: as plain text, and as the toolkits of GOT-10k, VOT and MOT read them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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


def remove_earlier(folder: Path) -> None:
    """Take away what an earlier evaluation left in the folder, by the names in its results, and nothing else.

    Files of arms, seeds and sequences that are run no more would look like results of this one. Raises OutputError.
    """
    place = folder.resolve()
    for name in _earlier(folder / "results.json"):
        path = (place / name).resolve()
        if place in path.parents:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{path} is of an earlier run and cannot be removed ({error.strerror})") from None
            with contextlib.suppress(OSError):  # the folders that are empty now
                for parent in path.parents[: path.parents.index(place)]:
                    parent.rmdir()


def _earlier(results: Path) -> list[str]:
    """The files that results name, the page and, last, their own."""
    try:
        found: Any = json.loads(results.read_text(encoding="utf-8"))
        return [*map(str, found["files"]), "report.html", results.name]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_boxes(path: Path, run: Run, start: int) -> None:
    """``x,y,w,h`` per frame of the whole sequence: NaN for the ``start`` frames before its first true box."""
    _write(path, _rows(run.boxes, start, 4))


def write_formats(folder: Path, formats: Sequence[str], outcomes: Sequence[Outcome]) -> list[Path]:
    """The last outcome's arm and sequence in each format, its seeds in order, each a repetition; the files.

    Raises OutputError.

    Only the one pass has such files. GOT-10k: ``got10k/ARM/SEQUENCE/SEQUENCE_001.txt`` and ``SEQUENCE_time.txt``
    (seconds, a column per repetition). VOT: ``vot/ARM/unsupervised/SEQUENCE/SEQUENCE_001.txt`` (``1`` where the tracker
    is initialised, ``0`` before), ``SEQUENCE_001_time.value`` (seconds) and ``SEQUENCE_001_confidence.value``. MOT:
    ``mot/ARM_SEED/data/VIDEO.txt``, all targets of a video with their ids, lost frames left out.
    """
    last = outcomes[-1]
    if last.protocol != "ope":
        return []
    same = [o for o in outcomes if (o.arm, o.sequence, o.protocol) == (last.arm, last.sequence, "ope")]
    runs = [o.run for o in sorted(same, key=lambda o: o.seed)]
    written: list[Path] = []
    if "got10k" in formats:
        written += _write_got10k(folder / "got10k" / last.arm / last.sequence, last.sequence, runs, last.start)
    if "vot" in formats:
        written += _write_vot(
            folder / "vot" / last.arm / VOT_EXPERIMENT / last.sequence, last.sequence, runs, last.start
        )
    if "mot" in formats:
        key = (last.arm, last.seed, last.video, "ope")
        targets = [o for o in outcomes if (o.arm, o.seed, o.video, o.protocol) == key]
        written.append(folder / "mot" / f"{last.arm}_{last.seed}" / "data" / f"{last.video}.txt")
        _write_mot(written[-1], targets)
    return written


def _write_got10k(folder: Path, sequence: str, runs: Sequence[Run], start: int) -> list[Path]:
    times = np.column_stack([np.concatenate([np.zeros(start), seconds(run)]) for run in runs])
    files = {f"{sequence}_{number:03d}.txt": _rows(run.boxes, start, 3) for number, run in enumerate(runs, 1)}
    return _write_all(folder, {**files, f"{sequence}_time.txt": _rows(times, 0, 8)})


def _write_vot(folder: Path, sequence: str, runs: Sequence[Run], start: int) -> list[Path]:
    files: dict[str, list[str]] = {}
    for repetition, run in enumerate(runs, 1):
        name = f"{sequence}_{repetition:03d}"
        files[f"{name}.txt"] = ["0"] * start + ["1", *_rows(run.boxes[1:], 0, 4)]
        files[f"{name}_time.value"] = ["0"] * start + [f"{s:.6f}" for s in seconds(run)]
        files[f"{name}_confidence.value"] = [""] * (start + 1) + [f"{s:.6f}" for s in run.scores[1:]]
    return _write_all(folder, files)


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


def _write_all(folder: Path, files: dict[str, list[str]]) -> list[Path]:
    for name, lines in files.items():
        _write(folder / name, lines)
    return [folder / name for name in files]


def _write(path: Path, lines: Sequence[str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, "".join(line + "\n" for line in lines))  # a torn one would look like a result
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): give a folder with room") from None
