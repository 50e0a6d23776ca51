"""The report of a video with several targets: one page about all of them, with links to each one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from streamdrop.boxes import Array
from streamdrop.evaluation import metrics
from streamdrop.evaluation.figures import Line, line_chart
from streamdrop.evaluation.pictures import KeyFrames
from streamdrop.evaluation.report import match_truth, render, write_page
from streamdrop.types import Track

_COLOURS = 8
"""Of the page's palette; the ninth is for what is beside the point."""


def write_group_report(
    path: str | Path,
    tracks: Mapping[int, Sequence[Track]],
    *,
    links: Mapping[int, str],
    source: str,
    key_frames: KeyFrames,
    truths: Mapping[int, Array] | None = None,
    hardware: str = "",
    source_fps: float | None = None,
) -> None:
    """Write one self-contained HTML page about the ``tracks`` of targets by id, first frame included.

    ``links`` lead to each one's own page, ``truths`` are true boxes [M, 4], ``key_frames`` collected pictures,
    ``source_fps`` the video's rate. Raises DataError for a truth of another shape, OutputError.
    """
    known = {key: match_truth(truth, tracks[key]) for key, truth in (truths or {}).items()}
    page = render(
        "group_report.html",
        title=f"Tracking report: {len(tracks)} targets",
        source=source,
        hardware=hardware,
        cards=_cards(list(tracks.values())),
        rows=[_row(key, found, links[key], known.get(key)) for key, found in tracks.items()],
        has_truth=bool(known),
        pictures=_pictures(tracks, key_frames),
        charts=_charts(tracks, source_fps),
    )
    write_page(path, page)


def _cards(tracks: Sequence[Sequence[Track]]) -> list[tuple[str, str, str]]:
    ms = _together(tracks)
    seconds = ms[1:].sum() / 1000
    reports = [report for found in tracks for track in found for report in track.reports]
    return [
        ("Targets", str(len(tracks)), f"first boxes after {ms[0] / 1000:.1f} s"),
        ("Frames", f"{len(ms):,}", "of the video"),
        ("Speed", f"{(len(ms) - 1) / seconds:.1f} fps" if seconds else "–", "all targets, rounds included"),
        ("Rounds", f"{len(reports):,}", "of all targets, at most one a frame after the first"),
    ]


def _together(tracks: Sequence[Sequence[Track]]) -> Array:
    """Milliseconds of each frame, all targets."""
    ms: Array = np.sum([[track.ms for track in found] for found in tracks], axis=0)
    return ms


def _row(key: int, tracks: Sequence[Track], link: str, truth: Array | None) -> dict[str, Any]:
    scores = None
    if truth is not None and np.isfinite(truth).all(axis=1).any():
        scores = metrics.scores([track.box for track in tracks], truth)
    return {
        "key": key,
        "colour": _colour(key),
        "link": link,
        "lost": sum(track.lost for track in tracks),
        "score": float(np.mean([track.score for track in tracks])),
        "rounds": sum(len(track.reports) for track in tracks),
        "truth": scores,
    }


def _colour(key: int) -> int:
    return (key - 1) % _COLOURS


def _pictures(tracks: Mapping[int, Sequence[Track]], key_frames: KeyFrames) -> list[dict[str, Any]]:
    shown = key_frames.pictures()
    at = {key: {track.frame: track for track in found} for key, found in tracks.items()}
    return [
        {
            "picture": picture,
            "frame": frame,
            "targets": [
                {"key": key, "colour": _colour(key), "track": found[frame]}
                for key, found in at.items()
                if frame in found
            ],
        }
        for frame, picture in shown.items()
    ]


def _charts(tracks: Mapping[int, Sequence[Track]], source_fps: float | None) -> list[Markup]:
    frames = np.array([track.frame for track in next(iter(tracks.values()))], float)
    extent = (float(frames[0]), float(max(frames[-1], frames[0] + 1)))
    scores = [
        Line(f"target {key}", [track.frame for track in found], [track.score for track in found], _colour(key))
        for key, found in tracks.items()
    ]
    lines = [Line("per frame", frames[1:], _together(list(tracks.values()))[1:], 0)]
    if source_fps:
        budget = 1000 / source_fps
        lines.append(Line(f"real time ({source_fps:g} fps)", [*extent], [budget, budget], 1, "dashed"))
    return [
        line_chart("Score", scores, x_label="frame", x_range=extent, y_range=(0, 1)),
        line_chart("Milliseconds per frame, all targets", lines, x_label="frame", x_range=extent),
    ]
