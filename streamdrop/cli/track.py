"""``streamdrop track``."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdrop.cli.terminal import Progress, note
from streamdrop.config import load
from streamdrop.errors import ConfigError

if TYPE_CHECKING:
    from streamdrop.boxes import Box
    from streamdrop.streams import Stream, Window
    from streamdrop.tracking import TrackerConfig
    from streamdrop.types import Track


def track(options: argparse.Namespace) -> int:
    """Track the target, write what was asked for, print a summary."""
    from streamdrop.service.recorder import Recorder
    from streamdrop.service.session import Session
    from streamdrop.streams import decoder_messages, open_stream
    from streamdrop.tracking import Tracker

    config, state = _configuration(options), _state(options)
    with contextlib.ExitStack() as closing:
        closing.enter_context(decoder_messages(options.verbose))
        stream = closing.enter_context(open_stream(options.source))
        window = closing.enter_context(_window(options)) if options.show else None
        box = options.box if options.box is not None else _drawn(stream, window)
        tracker = Tracker(config)
        outputs = {"boxes": options.boxes, "events": options.events, "video": options.output, "report": options.report}
        recorder = closing.enter_context(Recorder(stream, **outputs, truth=options.truth, layers=tracker.layers))
        started = {"source": options.source, "box": list(box), "configuration": _digest(config)}
        session = Session(recorder, tracker, box, started=started, state=state, resume=options.resume)
        if options.resume:
            note(f"going on after frame {session.replayed - 1}" if session.replayed else "nothing to resume: starting")
        tracks = _watch(session, recorder, stream, window)
    if stream.notice:
        note(f"warning: {stream.notice}")
    print(_summary(tracks, {name: path for name, path in outputs.items() if path}, tracker.layers))
    return 0


def _configuration(options: argparse.Namespace) -> TrackerConfig:
    from streamdrop.tracking import TrackerConfig

    overrides = list(options.set)
    if options.seed is not None:
        overrides.append(f"seed={options.seed}")
    if options.store is not None:
        overrides.append(f"store={Path(options.store) / 'features'}")
    return load(options.config, TrackerConfig, overrides)


def _state(options: argparse.Namespace) -> Path | None:
    if options.resume and options.store is None:
        raise ConfigError("--resume needs --store DIR, the folder that the run was started with")
    return None if options.store is None else Path(options.store)


def _drawn(stream: Stream, window: Window | None) -> Box:
    """The box that the user draws on the first frame."""
    if window is None:
        raise ConfigError("no target: give --box X,Y,W,H, or --show to draw it with the mouse")
    return window.draw(next(iter(stream)).image)


def _window(options: argparse.Namespace) -> Window:
    from streamdrop.streams import Window

    return Window(f"streamdrop: {options.source}")


def _watch(session: Any, recorder: Any, stream: Stream, window: Window | None) -> list[Track]:
    with Progress("frames", stream.length) as progress:
        for item in session:
            progress.advance(f"score {item.score:.2f}{'  lost' if item.lost else ''}")
            if window is not None and not window.show(recorder.image, item):
                break
    return list(recorder.tracks)


def _digest(config: TrackerConfig) -> str:
    """What must be the same for a run to go on; where the features lie is not."""
    values = {key: value for key, value in asdict(config).items() if key != "store"}
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def _summary(tracks: list[Track], written: dict[str, str], layers: int) -> str:
    rounds = [item.report for item in tracks if item.report is not None]
    updates = [item.ms for item in tracks[1:] if item.ms > 0]
    lines = [f"{len(tracks)} frames, {sum(item.lost for item in tracks)} of them lost"]
    if updates:
        lines[0] += f"; {1e3 * len(updates) / sum(updates):.1f} frames/s, first box after {tracks[0].ms / 1e3:.1f} s"
    if rounds:
        median = statistics.median(report.seconds for report in rounds) * 1e3
        lines.append(
            f"{len(rounds)} rounds of {median:.0f} ms (median); {rounds[-1].next_cut} of {layers} layers dropped"
        )
    lines += [f"{name}: {path}" for name, path in written.items()]
    return "\n".join(lines)
