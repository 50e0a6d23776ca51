"""The report of a tracked video: one HTML page that needs nothing else, neither files nor a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from streamdrop._version import __version__
from streamdrop.atomic import replace_text
from streamdrop.boxes import Array
from streamdrop.errors import DataError, OutputError
from streamdrop.evaluation import metrics
from streamdrop.evaluation.figures import Line, line_chart, stacked_bars
from streamdrop.evaluation.pictures import KeyFrames, Picture, encode
from streamdrop.types import Image, RoundReport, Track

MAX_ROUNDS = 400
"""Rows of the table of rounds; of more, the last ones are shown."""

Card = tuple[str, str, str]
"""What it is, its value, a word on it."""


def write_report(
    path: str | Path,
    tracks: Sequence[Track],
    *,
    source: str,
    key_frames: KeyFrames | Mapping[int, Image],
    truth: npt.ArrayLike | None = None,
    title: str = "Tracking report",
    layers: int | None = None,
    hardware: str = "",
    source_fps: float | None = None,
) -> None:
    """Write one self-contained HTML page about a run.

    ``tracks`` are the run's, first frame included; ``source`` names what was tracked; ``key_frames`` are pictures by
    frame number (uint8 H×W×3 RGB) or the collector that gathered them. ``truth`` [M, 4] adds overlaps: row i belongs
    to frame i, NaN and missing rows have none. ``layers`` is the model's count of droppable layers, ``source_fps`` the
    video's rate. Raises DataError for no tracks or a truth of another shape, OutputError when it cannot be written.
    """
    if not tracks:
        raise DataError("no tracks to report on: track at least one frame first")
    overlap_truth = None if truth is None else match_truth(truth, tracks)
    rounds = [(track.frame, report) for track in tracks for report in track.reports]
    page = render(
        "track_report.html",
        title=title,
        source=source,
        hardware=hardware,
        cards=_cards(tracks, rounds, overlap_truth, layers),
        pictures=_pictures(tracks, key_frames, overlap_truth),
        has_truth=overlap_truth is not None,
        charts=_charts(tracks, rounds, overlap_truth, source_fps),
        rounds=rounds[-MAX_ROUNDS:],
        hidden_rounds=max(len(rounds) - MAX_ROUNDS, 0),
    )
    write_page(path, page)


def render(template: str, **values: Any) -> str:
    """A template of this folder, filled in; text is escaped."""
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(version=__version__, **values)


def write_page(path: str | Path, page: str) -> None:
    """Write a page whole or not at all; raises OutputError."""
    path = Path(path)
    try:
        replace_text(path, page)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}): give a file in a folder you may write"
        ) from None


def match_truth(truth: npt.ArrayLike, tracks: Sequence[Track]) -> Array:
    """One row of truth per track, NaN where there is none."""
    rows = np.asarray(truth, float)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise DataError(f"truth of shape {rows.shape} is not [frames, 4]: give one x,y,w,h row per frame")
    frames = np.array([track.frame for track in tracks])
    matched = np.full((len(tracks), 4), np.nan)
    known = frames < len(rows)
    matched[known] = rows[frames[known]]
    return matched


def _cards(
    tracks: Sequence[Track], rounds: Sequence[tuple[int, RoundReport]], truth: Array | None, layers: int | None
) -> list[Card]:
    ms = np.array([track.ms for track in tracks])
    seconds = ms[1:].sum() / 1000
    lost = sum(track.lost for track in tracks)
    cards: list[Card] = [
        ("Frames", f"{len(tracks):,}", f"first box after {ms[0] / 1000:.1f} s"),
        ("Speed", f"{(len(tracks) - 1) / seconds:.1f} fps" if seconds else "–", "rounds included, decoding left out"),
        ("Lost", f"{lost:,}", f"{100 * lost / len(tracks):.0f} % of the frames"),
    ]
    if truth is not None and np.isfinite(truth).all(axis=1).any():
        scores = metrics.scores([track.box for track in tracks], truth)
        cards.append(("Overlap", f"{scores['ao']:.3f}", "mean with the truth (AO)"))
        cards.append(("AUC", f"{scores['auc']:.3f}", f"{100 * scores['precision']:.0f} % of the centres within 20 px"))
    return cards + _round_cards([report for _, report in rounds], layers)


def _round_cards(rounds: Sequence[RoundReport], layers: int | None) -> list[Card]:
    if not rounds:
        return [("Rounds", "0", "the model was not updated")]
    ms = np.array([report.seconds for report in rounds]) * 1000
    cut = rounds[-1].next_cut
    of = f" of {layers}" if layers else ""
    cards: list[Card] = [
        ("Rounds", f"{len(rounds):,}", f"median {np.median(ms):.0f} ms, p99 {np.percentile(ms, 99):.0f} ms"),
        ("Layers dropped", f"{cut}{of}", f"from cut {rounds[0].cut} to cut {cut}"),
    ]
    first, last = ([r for r in rounds if r.cut == c and not r.stored] for c in (rounds[0].cut, rounds[-1].cut))
    if rounds[0].cut != rounds[-1].cut and first and last:
        before, after = (float(np.median([r.seconds for r in part])) * 1000 for part in (first, last))
        cards.append(
            ("Round cost", f"÷ {before / max(after, 1e-6):.1f}", f"{before:.0f} ms → {after:.0f} ms (medians)")
        )
    return cards


def _pictures(
    tracks: Sequence[Track], key_frames: KeyFrames | Mapping[int, Image], truth: Array | None
) -> list[dict[str, Any]]:
    """What the film strip shows: pictures with their track and true box, in order of frame."""
    pictures: Mapping[int, Picture]
    if isinstance(key_frames, KeyFrames):
        pictures = key_frames.pictures()
    else:
        pictures = {frame: encode(image) for frame, image in sorted(key_frames.items())}
    strip = []
    for row, track in enumerate(tracks):
        if track.frame in pictures:
            true = None if truth is None or not np.isfinite(truth[row]).all() else truth[row].tolist()
            strip.append({"picture": pictures[track.frame], "track": track, "truth": true})
    return strip


def _charts(
    tracks: Sequence[Track], rounds: Sequence[tuple[int, RoundReport]], truth: Array | None, source_fps: float | None
) -> list[Markup]:
    frames = np.array([track.frame for track in tracks], float)
    extent = (frames[0], max(frames[-1], frames[0] + 1))
    shade = {"x_label": "frame", "x_range": extent, "shaded": lost_spans(tracks), "shaded_label": "lost"}
    scores = [Line("score", frames, [track.score for track in tracks], 0)]
    charts = [line_chart("Score", scores, y_range=(0, 1), **shade)]  # type: ignore[arg-type]
    if truth is not None:
        overlap = metrics.overlaps([track.box for track in tracks], truth)
        lines = [Line("overlap", frames, overlap, 1)]
        charts.append(line_chart("Overlap with the truth", lines, y_range=(0, 1), **shade))  # type: ignore[arg-type]
    if rounds:
        charts.append(_cut_chart(rounds, extent))
    charts.append(_time_chart(tracks, frames, extent, source_fps))
    return charts + (_round_charts([report for _, report in rounds]) if rounds else [])


def _cut_chart(rounds: Sequence[tuple[int, RoundReport]], extent: tuple[float, float]) -> Markup:
    x = [extent[0], *(float(frame) for frame, _ in rounds), extent[1]]
    y = [rounds[0][1].cut, *(report.next_cut for _, report in rounds), rounds[-1][1].next_cut]
    return line_chart(
        "Cut: layers dropped",
        [Line("cut", x, y, 2, "step")],
        x_label="frame",
        x_range=extent,
        y_range=(0, max(max(y) * 1.1, 1)),
        whole=True,
    )


def _time_chart(
    tracks: Sequence[Track], frames: Array, extent: tuple[float, float], source_fps: float | None
) -> Markup:
    later = [(track.frame, track.ms) for track in tracks[1:]]
    lines = [Line("per frame", [x for x, _ in later], [y for _, y in later], 0)]
    with_round = [(t.frame, t.ms) for t in tracks[1:] if t.report is not None]
    if with_round:
        lines.append(Line("frames with a round", [x for x, _ in with_round], [y for _, y in with_round], 3, "dots"))
    if source_fps:
        budget = 1000 / source_fps
        lines.append(Line(f"real time ({source_fps:g} fps)", [extent[0], extent[1]], [budget, budget], 1, "dashed"))
    return line_chart("Milliseconds per frame", lines, x_label="frame", x_range=extent)


def _round_charts(rounds: Sequence[RoundReport]) -> list[Markup]:
    shown = rounds[-MAX_ROUNDS:]
    numbers = [report.round for report in shown]
    tail = [r.tail_seconds * 1000 for r in shown]
    store = [(r.read_seconds + r.write_seconds) * 1000 for r in shown]
    train = [r.train_seconds * 1000 for r in shown]
    named = zip(tail, store, train, strict=True)
    rest = [max(r.seconds * 1000 - sum(parts), 0.0) for r, parts in zip(shown, named, strict=True)]
    parts = [("training the head", train, 0), ("running the tail", tail, 3), ("store", store, 2), ("other", rest, 8)]
    return [
        stacked_bars("Milliseconds per round", numbers, parts, x_label="round"),
        line_chart("Loss", [Line("loss", numbers, [r.loss for r in shown], 4)], x_label="round"),
    ]


def lost_spans(tracks: Sequence[Track]) -> list[tuple[float, float]]:
    """Spans of frames, half a frame wider on either side, in which the target was lost."""
    spans: list[tuple[float, float]] = []
    for track in tracks:
        if track.lost and spans and spans[-1][1] >= track.frame - 0.5:
            spans[-1] = (spans[-1][0], track.frame + 0.5)
        elif track.lost:
            spans.append((track.frame - 0.5, track.frame + 0.5))
    return spans
