"""``streamdrop track``."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdrop.cli.terminal import Progress, note
from streamdrop.config import load
from streamdrop.errors import ConfigError, StreamError

if TYPE_CHECKING:
    from streamdrop.boxes import Box
    from streamdrop.service.recorder import Recorder
    from streamdrop.service.session import Session
    from streamdrop.streams import Stream, Window
    from streamdrop.tracking import TrackerConfig
    from streamdrop.types import Sample


def track(options: argparse.Namespace) -> int:
    """Track the target, write what was asked for, print a summary."""
    from streamdrop.service.recorder import Recorder
    from streamdrop.service.session import Session
    from streamdrop.streams import Window, open_stream
    from streamdrop.tracking import Tracker

    config, state = _configuration(options), _state(options)
    with contextlib.ExitStack() as closing:
        window = closing.enter_context(Window(f"streamdrop: {options.source}")) if options.show else None
        stream = closing.enter_context(open_stream(options.source, verbose=options.verbose))
        begun = _begin(stream)
        box = _box(options, begun.first, window)
        tracker = Tracker(config)
        closing.callback(tracker.close)
        outputs = {"boxes": options.boxes, "events": options.events, "video": options.output, "report": options.report}
        recorder = closing.enter_context(Recorder(begun, **outputs, truth=options.truth, layers=tracker.layers))
        started = {"source": options.source, "box": list(box), "configuration": _digest(config)}
        session = Session(recorder, tracker, box, started=started, state=state, resume=options.resume)
        if options.resume:
            note(f"going on after {session.replayed} frames" if session.replayed else "nothing to resume: starting")
        _watch(session, recorder, stream, window)
    if stream.notice:
        note(f"warning: {stream.notice}")
    print(recorder.summary())
    print("".join(f"{name}: {path}\n" for name, path in outputs.items() if path), end="")
    return 0


def _configuration(options: argparse.Namespace) -> TrackerConfig:
    from streamdrop.tracking import TrackerConfig

    overrides = list(options.set)
    if options.seed is not None:
        overrides.append(f"seed={options.seed}")
    if options.fps is not None:
        overrides.append(f"realtime.fps={options.fps}")
    if options.store is not None:
        overrides.append(f"store={Path(options.store) / 'features'}")
    return load(options.config, TrackerConfig, overrides)


def _state(options: argparse.Namespace) -> Path | None:
    if options.resume and options.store is None:
        raise ConfigError("--resume needs --store DIR, the folder that the run was started with")
    return None if options.store is None else Path(options.store)


@dataclass
class _Begun:
    """A stream whose first frame was looked at: iterating gives it again, then the rest."""

    first: Sample
    rest: Iterator[Sample]
    name: str
    fps: float | None
    size: tuple[int, int]

    def __iter__(self) -> Iterator[Sample]:
        return itertools.chain([self.first], self.rest)


def _begin(stream: Stream) -> _Begun:
    """Look at the first frame: what is wrong with the source or the box is said before any file is written."""
    samples = iter(stream)
    first = next(samples, None)
    if first is None:
        raise StreamError(f"{stream.name}: holds no frame that can be decoded: check the source")
    if not hasattr(first, "image"):
        raise StreamError(f"{stream.name}: holds labelled images, not a video: give a video or a folder of frames")
    height, width = first.image.shape[:2]
    return _Begun(first, samples, stream.name, stream.fps, (width, height))


def _box(options: argparse.Namespace, first: Sample, window: Window | None) -> Box:
    """The box given, inside the first frame, or the one that the user draws on it."""
    from streamdrop.boxes import check_inside

    height, width = first.image.shape[:2]
    if options.box is not None:
        return check_inside(options.box, width, height)
    if window is None:
        raise ConfigError("no target: give --box X,Y,W,H, or --show to draw it with the mouse")
    box = window.select(first.image)
    if box is None:
        raise KeyboardInterrupt
    return box


def _watch(session: Session, recorder: Recorder, stream: Stream, window: Window | None) -> None:
    """Run to the end of the stream, or until the window is closed."""
    from streamdrop.streams import annotate

    with Progress("frames", stream.length) as progress:
        for item in session:
            progress.advance(f"score {item.score:.2f}{'  lost' if item.lost else ''}")
            if window is not None and not window.show(annotate(recorder.image, item.box, item.score, item.lost)):
                break


def _digest(config: TrackerConfig) -> str:
    """What must be the same for a run to go on; where its state lies need not be."""
    values: dict[str, Any] = {key: value for key, value in asdict(config).items() if key != "store"}
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]
