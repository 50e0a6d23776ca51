"""The tracker: look, decide where the target is or that it is lost, remember, learn."""

from __future__ import annotations

import dataclasses
import json
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from streamdrop.boxes import Box, as_box, check_inside
from streamdrop.checkpoint import Snapshot
from streamdrop.config import differing_keys, load
from streamdrop.errors import CheckpointError, StreamdropError
from streamdrop.pixels import Tones, as_rgb
from streamdrop.tracking.anchor import Anchor
from streamdrop.tracking.beside import BesideRounds
from streamdrop.tracking.config import TrackerConfig
from streamdrop.tracking.crops import View, take
from streamdrop.tracking.distractors import Place
from streamdrop.tracking.eye import Look
from streamdrop.tracking.first_frame import examples, upright
from streamdrop.tracking.fusion import Fusion
from streamdrop.tracking.learner import Learner
from streamdrop.tracking.regression import BoxRegression
from streamdrop.tracking.rounds import Rounds, SpareRounds, Turn
from streamdrop.tracking.search import Motion, Peak, best_peak, confidence, crop_views
from streamdrop.tracking.templates import Templates
from streamdrop.tracking.threads import computing
from streamdrop.types import Activations, Image, RoundReport, Track

SMALLEST = 2
"""Pixels that a frame must have each way."""


@dataclass
class _Target:
    """What is known of the target since the first frame; ``anchor``: None where it is not asked."""

    motion: Motion
    regression: BoxRegression
    anchor: Anchor | None
    templates: Templates
    tones: Tones


class Tracker:
    """Follows one target, given in the first frame, and learns it on the way.

    Images are uint8 or uint16, H×W (grey), H×W×3 (RGB) or H×W×4 (RGBA, alpha left out); of 16 bits the range of the
    first frame is used. With the same configuration and frames it gives the same boxes on every run, unless the clock
    has a say (``update.deadline``, ``realtime``, ``waiting``). ``waiting`` says whether the next frame is there: rounds
    are left to ``spare``, which makes way for it between two iterations. Raises WeightsError when there are no
    pretrained weights.
    """

    def __init__(self, config: TrackerConfig | None = None, waiting: Callable[[], bool] | None = None) -> None:
        self.config = config if config is not None else TrackerConfig()
        self._fusion = None if self.config.prior.backbone is None else Fusion(self.config)
        self._learner = Learner(self.config, alone=waiting is None)
        self._rounds = _rounds(self.config, self._learner, waiting)
        if self.config.realtime.beside:  # its thread must end with the tracker
            weakref.finalize(self, self._rounds.close)
        self._target: _Target | None = None

    @classmethod
    def from_config(cls, source: str | os.PathLike[str] | Mapping[str, Any] | None = None) -> Tracker:
        """A tracker from a YAML file, a mapping, or None for the defaults. Raises ConfigError, WeightsError."""
        return cls(load(source, TrackerConfig))

    @property
    def layers(self) -> int:
        """How many droppable layers the network has; RoundReport.cut counts towards it."""
        return self._learner.layers

    @property
    def frames(self) -> int:
        """Frames seen since ``init``, the first included; 0 before."""
        return 0 if self._target is None else self._target.motion.frame + 1

    def init(self, image: Image, box: object) -> Track:
        """Learn the target in ``box`` (x, y, w, h in pixels of this frame), forgetting any other.

        Raises BoxError for a box that is none or lies outside, DataError for what is no image.
        """
        with computing(self.config.threads):
            return self.learn(image, box)

    def update(self, image: Image, hurry: bool = False) -> Track:
        """Find the target in the next frame; when it is lost, the last box. Raises DataError as ``init`` does.

        ``hurry``: there is time for one crop only; elsewhere a lost target is searched for in the frames after.
        """
        with computing(self.config.threads):
            return self._update(image, hurry)

    @property
    def spares(self) -> bool:
        """Whether ``spare`` has something to do, and time for it."""
        return self._rounds.spares

    def spare(self) -> tuple[RoundReport, ...]:
        """Go on with a round until the next frame is ``waiting``; reports of what ended."""
        with computing(self.config.threads):
            return self._rounds.spare()

    # ---------------------------------------------------------------- the parts of a frame, for Targets

    @property
    def learner(self) -> Learner:
        """The network and what it has learned."""
        return self._learner

    @property
    def motion(self) -> Motion:
        """Where the target is and how it moves. Raises StreamdropError before ``init``."""
        return self._followed().motion

    @property
    def tones(self) -> Tones:
        """How 16-bit values are shown. Raises StreamdropError before ``init``."""
        return self._followed().tones

    def learn(self, image: Image, box: object, backbone: Mapping[str, Tensor] | None = None) -> Track:
        """``init`` in the caller's setting of threads; with ``backbone``, beginning from another tracker's."""
        began = time.perf_counter()
        tones = Tones.of(image)
        image = as_rgb(image, tones, least=SMALLEST)
        height, width = image.shape[:2]
        given = check_inside(as_box(box), width, height)
        self._target = None
        motion = Motion.starting(given, width, height)
        search, seed = self.config.search, self.config.seed
        shown = examples(image, motion.box, motion.side(search), search.size, self.config.first_frame, seed)
        fitted: list[BoxRegression] = []

        def fit_boxes(maps: Activations) -> None:
            fitted.append(BoxRegression.fit(self.config.box, maps, list(upright(shown).values()), seed))

        reports = self._rounds.start(shown, fit_boxes, began, backbone)
        if self._fusion is not None:
            self._fusion.start(image, motion.box)
        anchor = self._learner.anchor() if self.config.update.anchor else None
        self._target = _Target(motion, fitted[0], anchor, Templates.of(image, motion.box), tones)
        return with_reports(Track(0, given, 1.0, False, _ms(began)), reports)

    def _update(self, image: Image, hurry: bool) -> Track:
        began = time.perf_counter()
        image = self.rgb(image)
        views = self.advance(image, hurry or self._rounds.late)
        found = self.find(image, views, self._rounds.look([take(image, view) for view in views]))
        turn = self._learn(began)
        track = dataclasses.replace(self.track(found, began), ms=_ms(began), put_off=turn.put_off)
        return with_reports(track, turn.reports)

    def rgb(self, image: Image) -> Image:
        """A frame as the network takes it. Raises DataError."""
        return as_rgb(image, self.tones, least=SMALLEST)

    def advance(self, image: Image, hurry: bool = False) -> list[View]:
        """To the next frame; where to look in it, ``hurry`` as in ``update``."""
        motion = self.motion
        height, width = image.shape[:2]
        motion.advance(width, height)
        likely: Sequence[Place] = ()
        if motion.lost and not hurry:
            likely = self._followed().templates.places(image, motion.box, self.config.lost.likely)
        return crop_views(motion, self.config, hurry, likely)

    def find(self, image: Image, views: list[View], looked: Look, keep: bool = True) -> bool:
        """Move the box onto the target in a frame, and remember the frame unless told not to; whether it is there."""
        motion = self.motion
        activations, maps, scores = looked
        if self._fusion is not None:
            scores = self._fusion.look(image, scores, views, motion)
        peak = best_peak(scores, views, motion, self.config)
        found = motion.judge(peak, self.config.lost)
        if found:
            motion.grow(1.0 if peak.view == 0 else views[peak.view].side / motion.side(self.config.search))
            self._follow(peak, views[peak.view], maps)
            if self._vouched(peak, maps) and keep:
                self._remember(image, peak, views[peak.view], activations, maps)
        motion.note_distractors(scores, views, found, self.config)
        return found

    def track(self, found: bool, began: float) -> Track:
        """The result of this frame, begun at ``began`` (perf_counter), before any round."""
        motion = self.motion
        return Track(motion.frame, motion.box, confidence(motion.score), not found, _ms(began))

    @property
    def early(self) -> bool:
        """Whether this is one of the frames that each get a round."""
        return self.motion.frame <= self.config.update.early

    @property
    def round_due(self) -> bool:
        """Whether this frame is one with a round."""
        return self.motion.frame % self.config.update.every == 0 or self.early

    def adapt(self) -> tuple[RoundReport, ...]:
        """A whole round, if there is something new to learn from and the target is in sight; reports of what ended."""
        target = self._followed()
        motion = target.motion
        if motion.waiting == 0 or motion.lost:
            return ()
        motion.waiting = 0
        reports = self._rounds.whole(target.regression)
        self._heard(reports)
        return reports

    # ---------------------------------------------------------------- checkpoints

    def save(self, path: str | os.PathLike[str], hold: bool = False) -> None:
        """Write a checkpoint from which ``restore`` goes on to exactly the same boxes. Raises OutputError.

        ``hold``: the one before, in another folder, can be restored too, until ``learner.tuner.release``.
        """
        taken = self.snapshot()
        taken.write(path)
        self.written(taken, path, hold)

    def snapshot(self) -> Snapshot:
        """What ``save`` writes. Any thread may write a copy of it; then call ``written`` in this one.

        Frames may be tracked in between, but no round that stores at a new cut may begin. Raises StoreError.
        """
        target = self._followed()
        extra = {
            "configuration": _identity(self.config),
            "motion": dataclasses.asdict(target.motion),
            "tones": dataclasses.asdict(target.tones),
            "prior": None if self._fusion is None else self._fusion.state(),
        }
        anchor = {} if target.anchor is None else target.anchor.state()
        return self._rounds.snapshot(extra, {**target.regression.state(), **target.templates.state(), **anchor})

    def written(self, taken: Snapshot, path: str | os.PathLike[str], hold: bool = False) -> None:
        """A snapshot is at ``path`` now, durable: what only earlier ones need can go, unless ``hold``."""
        self._rounds.written(taken, path, hold)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint of a tracker with the same configuration. Raises CheckpointError."""
        self._target = None
        with computing(self.config.threads):
            extra = self._rounds.restore(path)
        try:
            configuration, motion, tones = (extra[key] for key in ("configuration", "motion", "tones"))
            _check_same(configuration, self.config, path)
            regression = BoxRegression.restored(self.config.box, self._learner.tuner.extra_tensors)
            templates = Templates.restored(self._learner.tuner.extra_tensors)
        except KeyError as error:
            raise CheckpointError(f"{path}: not a tracker's checkpoint ({error} is missing): check the path") from None
        if self._fusion is not None:
            self._fusion.restore(extra.get("prior"))
        anchor = self._learner.restored_anchor()
        self._target = _Target(Motion.restored(motion), regression, anchor, templates, Tones(**tones))

    def close(self) -> None:
        """Let go of the target and the feature store. Twice is fine."""
        self._target = None
        self._rounds.close()

    def _followed(self) -> _Target:
        if self._target is None:
            raise StreamdropError("the tracker has no target: call init(image, box) first")
        return self._target

    def _follow(self, peak: Peak, view: View, maps: Activations) -> None:
        """Move the box onto the peak, then refine it."""
        target = self._followed()
        motion = target.motion
        w, h = motion.box.w / view.scale, motion.box.h / view.scale
        refined = view.box_in_frame(target.regression(maps, peak.view, Box(peak.x - w / 2, peak.y - h / 2, w, h)))
        if self._fusion is not None:
            refined = self._fusion.refine(peak.view, view.to_frame(peak.x, peak.y), motion.box, refined)
        motion.move(refined, self.config.box)

    def _vouched(self, peak: Peak, maps: Activations) -> bool:
        """Whether the anchor, where there is one, takes what was found for the target."""
        target = self._followed()
        anchor = target.anchor
        return anchor is None or target.motion.vouched(anchor.score(maps, peak), self.config.update)

    def _remember(self, image: Image, peak: Peak, view: View, activations: Activations, maps: Activations) -> None:
        """Keep the frame to learn from, if it is certain enough."""
        target, update = self._followed(), self.config.update
        motion = target.motion
        certain = peak.score >= update.certain or peak.stands_out(self.config.lost)
        if self.config.strategy != "none" and certain and motion.steady >= update.confirm:
            sample = tuple(tensor[peak.view : peak.view + 1] for tensor in activations)
            box = view.box_in_crop(motion.box)
            crop = take(image, view) if self._learner.tries else None
            self._rounds.remember(motion.frame, sample, box, motion.score, crop)
            target.regression.remember(maps, peak.view, box, motion.frame, self.config.seed)
            target.templates.see(image, motion.box)
            motion.waiting += 1

    def _heard(self, reports: Sequence[RoundReport]) -> None:
        """An anchor knows the maps of the first frame's backbone: it is asked no more where that learned on."""
        if any(report.thawed for report in reports):
            self._followed().anchor = None

    def _learn(self, began: float) -> Turn:
        """Time to learn: a round is due on schedule, where there is something new and the target is in sight."""
        target = self._followed()
        motion = target.motion
        due = self.round_due and motion.waiting > 0 and not motion.lost
        turn = self._rounds.turn(due, target.regression, began, motion.lost > 0)
        self._heard(turn.reports)
        if turn.begun:
            motion.waiting = 0
        return turn


def track(stream: Iterable[Any], tracker: Tracker, box: object) -> Iterator[Track]:
    """Every frame's track of a stream (Samples, or plain images); the first is the given box.

    Raises what the stream raises, and BoxError, DataError.
    """
    started = False
    for item in stream:
        image = getattr(item, "image", item)
        yield tracker.update(image) if started else tracker.init(image, box)
        started = True


def with_reports(track: Track, reports: Sequence[RoundReport]) -> Track:
    """The track with the rounds that ended after its frame."""
    return dataclasses.replace(track, report=reports[-1], earlier=tuple(reports[:-1])) if reports else track


def _rounds(config: TrackerConfig, learner: Learner, waiting: Callable[[], bool] | None) -> Rounds:
    """When rounds run, as configured."""
    if config.realtime.beside:
        return BesideRounds(config, learner)
    if config.realtime.fps is None and waiting is None:
        return Rounds(config, learner)
    return SpareRounds(config, learner, config.realtime.fps, waiting)


def _identity(config: TrackerConfig) -> Any:
    """The configuration as plain data, without where the features lie and what concerns several targets."""
    values = {key: value for key, value in dataclasses.asdict(config).items() if key not in ("store", "targets")}
    return json.loads(json.dumps(values))


def _check_same(configuration: Mapping[str, Any], config: TrackerConfig, path: str | os.PathLike[str]) -> None:
    """Raise CheckpointError unless ``configuration``, of a checkpoint, is ``config``."""
    differing = differing_keys(configuration, _identity(config))
    if differing:
        raise CheckpointError(
            f"{path}: saved by a tracker configured otherwise, or of another version ({', '.join(differing)}): "
            "give what it had, or begin anew"
        )


def _ms(began: float) -> float:
    return (time.perf_counter() - began) * 1000
