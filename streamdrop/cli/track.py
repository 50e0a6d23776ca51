"""``streamdrop track``."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdrop.cli.outputs import STDOUT, check_outputs, recorded, unequal, written
from streamdrop.cli.process import trim_process
from streamdrop.cli.terminal import Progress, note
from streamdrop.config import load
from streamdrop.errors import ConfigError, StreamError

if TYPE_CHECKING:
    from streamdrop.boxes import Box
    from streamdrop.service.group_recorder import GroupRecorder
    from streamdrop.service.recorder import Recorder
    from streamdrop.service.track_run import TrackRun
    from streamdrop.streams import Stream, Window
    from streamdrop.tracking import TrackerConfig
    from streamdrop.types import Sample, Track


def track(options: argparse.Namespace) -> int:
    """Track the target, or several, write what was asked for, print a summary."""
    _check_targets(options)
    trim_process(options)
    from streamdrop.streams import Window, open_stream

    check_outputs(options)
    config, state = _configuration(options), _state(options)
    with contextlib.ExitStack() as closing:
        window = closing.enter_context(Window(f"streamdrop: {options.source}")) if options.show else None
        stream = closing.enter_context(open_stream(options.source, verbose=options.verbose))
        begun = _begin(stream)
        boxes = _boxes(options, begun.first, window)
        recorder, run = (_of_one if len(boxes) == 1 else _of_several)(options, config, begun, boxes, state, closing)
        if options.resume:
            past = f"{run.replayed} frame{'' if run.replayed == 1 else 's'}"
            note(f"going on after {past}" if run.replayed else "nothing to resume: starting")
        whole = _watch(run, recorder, stream, window)
    if stream.notice:
        note(f"warning: {stream.notice}")
    for warning in unequal(options, recorder) if whole else ():
        note(f"warning: {warning}")
    files = written(options)
    print(recorder.summary(), file=sys.stderr if any(path == STDOUT for _, path in files) else sys.stdout)
    print("".join(f"{name}: {path}\n" for name, path in files if path != STDOUT), end="")
    return 0


def _of_one(
    options: argparse.Namespace,
    config: TrackerConfig,
    begun: _Begun,
    boxes: list[Box],
    state: Path | None,
    closing: contextlib.ExitStack,
) -> tuple[Recorder, TrackRun[Track]]:
    from streamdrop.service.recorder import Recorder
    from streamdrop.service.track_run import TrackRun
    from streamdrop.tracking import Tracker

    tracker = Tracker(config)
    closing.callback(tracker.close)
    truth = options.truth[0] if options.truth else None
    recorder = closing.enter_context(Recorder(begun, **recorded(options), truth=truth, layers=tracker.layers))
    started = {**_source(options, begun), "box": list(boxes[0]), "configuration": _plain(config)}
    return recorder, TrackRun(recorder, tracker, boxes[0], started=started, state=state, resume=options.resume)


def _of_several(
    options: argparse.Namespace,
    config: TrackerConfig,
    begun: _Begun,
    boxes: list[Box],
    state: Path | None,
    closing: contextlib.ExitStack,
) -> tuple[GroupRecorder, TrackRun[dict[int, Track]]]:
    from streamdrop.service.group_recorder import GroupRecorder
    from streamdrop.service.track_run import TrackRun
    from streamdrop.tracking import Targets

    targets = Targets(config)
    closing.callback(targets.close)
    ids = range(1, len(boxes) + 1)
    truths = dict(zip(ids, options.truth or [], strict=False))
    outputs = recorded(options)
    recorder = closing.enter_context(GroupRecorder(begun, ids, **outputs, truths=truths, layers=targets.layers))
    started = {**_source(options, begun), "boxes": [list(box) for box in boxes], "configuration": _plain(config)}
    return recorder, TrackRun(recorder, targets, boxes, started=started, state=state, resume=options.resume)


def _check_targets(options: argparse.Namespace) -> None:
    """Refuse no target, and true boxes that belong to none, before anything heavy is imported."""
    if not options.box and not options.show:
        raise ConfigError("no target: give --box X,Y,W,H, or --show to draw it with the mouse")
    targets, truths = len(options.box or [0]), len(options.truth or [])
    if truths not in (0, targets):
        raise ConfigError(f"--truth is given {truths} times for {targets} targets: give one for each --box, in order")


def _configuration(options: argparse.Namespace) -> TrackerConfig:
    from streamdrop.tracking import TrackerConfig

    overrides = list(options.set)
    if options.seed is not None:
        overrides.append(f"seed={options.seed}")
    if options.fps is not None:
        overrides.append(f"realtime.fps={options.fps}")
    if options.store is not None:
        overrides.append(f"store={Path(options.store) / 'features'}")
    config = load(options.config, TrackerConfig, overrides)
    config.check_targets(len(options.box or [0]))
    return config


def _state(options: argparse.Namespace) -> Path | None:
    if options.resume and options.store is None:
        raise ConfigError("--resume needs --store DIR, the folder that the run was started with")
    return None if options.store is None else Path(options.store)


@dataclass
class _Begun:
    """A stream whose first frame was looked at: iterating gives it again, then the rest."""

    first: Sample
    rest: Iterator[Sample]
    stream: Stream
    size: tuple[int, int]

    @property
    def name(self) -> str:
        return self.stream.name

    @property
    def fps(self) -> float | None:
        return self.stream.fps

    @property
    def live(self) -> bool:
        return self.stream.live

    @property
    def seen(self) -> int:
        return self.stream.seen

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
    return _Begun(first, samples, stream, (width, height))


def _boxes(options: argparse.Namespace, first: Sample, window: Window | None) -> list[Box]:
    """The boxes given, inside the first frame, or the one that the user draws on it."""
    from streamdrop.boxes import check_inside

    height, width = first.image.shape[:2]
    if window is None or options.box:
        return [check_inside(box, width, height) for box in options.box]
    box = window.select(first.image)
    if box is None:
        raise KeyboardInterrupt
    return [box]


def _watch(run: TrackRun[Any], recorder: Recorder | GroupRecorder, stream: Stream, window: Window | None) -> bool:
    """Run to the end of the stream, or until the window is closed; whether the end was reached."""
    with Progress("frames", stream.length) as progress, contextlib.closing(iter(run)) as tracks:
        for item in tracks:
            progress.advance(_word(item))
            if window is not None and not window.show(recorder.drawn(item)):
                return False
    return True


def _word(found: Track | dict[int, Track]) -> str:
    """A frame's result in a word."""
    if not isinstance(found, dict):
        return f"score {found.score:.2f}{'  lost' if found.lost else ''}"
    lost = sum(track.lost for track in found.values())
    return f"{len(found)} targets{f'  {lost} lost' if lost else ''}"


def _source(options: argparse.Namespace, begun: _Begun) -> dict[str, Any]:
    """What a run was started on: another video under the old name would go on with boxes that are not its own."""
    from streamdrop.service.track_run import FIRST_FRAME

    if begun.live or options.store is None:  # never the same frame twice, or nothing to go on from
        return {"source": options.source}
    return {"source": options.source, FIRST_FRAME: hashlib.sha256(begun.first.image.tobytes()).hexdigest()[:16]}


def _plain(config: TrackerConfig) -> dict[str, Any]:
    """What must be the same for a run to go on; where its state lies need not be."""
    return {key: value for key, value in asdict(config).items() if key != "store"}
