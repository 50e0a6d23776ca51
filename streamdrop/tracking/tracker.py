"""The tracker: look, decide where the target is or that it is lost, remember, learn."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from streamdrop.boxes import Box, as_box, check_inside
from streamdrop.config import load
from streamdrop.errors import CheckpointError, StreamdropError
from streamdrop.tracking.config import TrackerConfig
from streamdrop.tracking.crops import View, take
from streamdrop.tracking.first_frame import examples
from streamdrop.tracking.fusion import Fusion
from streamdrop.tracking.learner import Learner
from streamdrop.tracking.pixels import Tones, as_rgb
from streamdrop.tracking.regression import BoxRegression
from streamdrop.tracking.search import Motion, Peak, best_peak, confidence, crop_views
from streamdrop.tracking.threads import threads
from streamdrop.types import Activations, Image, RoundReport, Track


class Tracker:
    """Follows one target, given in the first frame, and learns it on the way.

    Images are uint8 or uint16, H×W (grey), H×W×3 (RGB) or H×W×4 (RGBA, alpha left out); of 16 bits the range of the
    first frame is used. With the same configuration and frames it gives the same boxes on every run (unless
    ``update.deadline`` lets the clock decide). Raises WeightsError when there are no pretrained weights.
    """

    def __init__(self, config: TrackerConfig | None = None) -> None:
        self.config = config if config is not None else TrackerConfig()
        self._fusion = None if self.config.prior.backbone is None else Fusion(self.config)
        self._learner = Learner(self.config)
        self._motion: Motion | None = None
        self._regression: BoxRegression | None = None
        self._tones = Tones()

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
        return 0 if self._motion is None else self._motion.frame + 1

    def init(self, image: Image, box: object) -> Track:
        """Learn the target in ``box`` (x, y, w, h in pixels of this frame), forgetting any other.

        Raises BoxError for a box that is none or lies outside, DataError for what is no image.
        """
        with threads(self.config.threads):
            return self._init(image, box)

    def update(self, image: Image) -> Track:
        """Find the target in the next frame; when it is lost, the last box. Raises DataError as ``init`` does."""
        with threads(self.config.threads):
            return self._update(image)

    def _init(self, image: Image, box: object) -> Track:
        began = time.perf_counter()
        tones = Tones.of(image)
        image = as_rgb(image, tones)
        height, width = image.shape[:2]
        given = check_inside(as_box(box), width, height)
        self._motion, self._tones = None, tones
        motion = Motion.starting(given, width, height)
        search = self.config.search
        shown = examples(image, motion.box, motion.side(search), search.size, self.config.first_frame, self.config.seed)
        reports = self._learner.start([one.crop for one in shown], [one.box for one in shown])
        upright = {index: one.box for index, one in enumerate(shown) if one.upright and one.box is not None}
        maps = self._learner.first_maps([one.crop for one in shown], list(upright))
        self._regression = BoxRegression.fit(self.config.box, maps, list(upright.values()), self.config.seed)
        if self._fusion is not None:
            self._fusion.start(image, motion.box)
        self._motion = motion
        return Track(0, given, 1.0, False, _ms(began), reports[-1], tuple(reports[:-1]))

    def _update(self, image: Image) -> Track:
        began = time.perf_counter()
        motion = self._started()
        image = as_rgb(image, self._tones)
        height, width = image.shape[:2]
        motion.advance(width, height)
        views = crop_views(motion, self.config)
        activations, maps, scores = self._learner.look([take(image, view) for view in views])
        if self._fusion is not None:
            scores = self._fusion.look(image, scores, views, motion)
        peak = best_peak(scores, views, motion, self.config)
        found = motion.judge(peak, self.config.lost)
        if found:
            motion.grow(views[peak.view].side / views[0].side)
            self._follow(peak, views[peak.view], maps)
            self._remember(peak, views[peak.view], activations, maps)
        report = self._learn()
        return Track(motion.frame, motion.box, confidence(motion.score), not found, _ms(began), report)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint from which ``restore`` goes on to exactly the same boxes. Raises OutputError."""
        motion, regression = self._started(), self._regression
        assert regression is not None
        extra = {
            "configuration": _identity(self.config),
            "motion": dataclasses.asdict(motion),
            "regression": regression.state(),
            "tones": dataclasses.asdict(self._tones),
            "prior": None if self._fusion is None else self._fusion.state(),
        }
        self._learner.save(path, extra)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint of a tracker with the same configuration. Raises CheckpointError."""
        self._motion = None
        extra = self._learner.restore(path)
        try:
            configuration, motion, regression, tones = (
                extra[key] for key in ("configuration", "motion", "regression", "tones")
            )
        except KeyError as error:
            raise CheckpointError(f"{path}: not a tracker's checkpoint ({error} is missing): check the path") from None
        if configuration != _identity(self.config):
            raise CheckpointError(f"{path}: saved by a tracker configured otherwise: give the configuration it had")
        if self._fusion is not None:
            self._fusion.restore(extra.get("prior"))
        self._regression = BoxRegression.restored(self.config.box, regression)
        self._motion, self._tones = Motion.restored(motion), Tones(**tones)

    def close(self) -> None:
        """Let go of the target and the feature store. Twice is fine."""
        self._motion = None
        self._learner.close()

    def _started(self) -> Motion:
        if self._motion is None:
            raise StreamdropError("the tracker has no target: call init(image, box) first")
        return self._motion

    def _follow(self, peak: Peak, view: View, maps: Activations) -> None:
        """Move the box onto the peak, then refine it."""
        motion, regression = self._started(), self._regression
        assert regression is not None
        w, h = motion.box.w / view.scale, motion.box.h / view.scale
        refined = view.box_in_frame(regression(maps, peak.view, Box(peak.x - w / 2, peak.y - h / 2, w, h)))
        if self._fusion is not None:
            refined = self._fusion.refine(peak.view, view.to_frame(peak.x, peak.y), motion.box, refined)
        motion.move(refined, self.config.box)

    def _remember(self, peak: Peak, view: View, activations: Activations, maps: Activations) -> None:
        """Keep the frame to learn from, if it is certain enough."""
        motion, update, regression = self._started(), self.config.update, self._regression
        assert regression is not None
        certain = peak.score >= update.certain or peak.stands_out(self.config.lost)
        if self.config.strategy != "none" and certain and motion.steady >= update.confirm:
            sample = tuple(tensor[peak.view : peak.view + 1] for tensor in activations)
            box = view.box_in_crop(motion.box)
            self._learner.remember(motion.frame, sample, box, weight=motion.score)
            regression.remember(maps, peak.view, box, (self.config.seed, motion.frame))
            motion.waiting += 1

    def _learn(self) -> RoundReport | None:
        """An adaptation round, when one is due, there is something new to learn from and the target is in sight."""
        motion, update = self._started(), self.config.update
        due = motion.frame % update.every == 0 or motion.frame <= update.early
        if not due or motion.waiting == 0 or motion.lost:
            return None
        motion.waiting = 0
        if self._regression is not None:
            self._regression.adapt()
        return self._learner.adapt()


def track(stream: Iterable[Any], tracker: Tracker, box: object) -> Iterator[Track]:
    """Every frame's track of a stream (Samples, or plain images); the first is the given box.

    Raises what the stream raises, and BoxError, DataError.
    """
    started = False
    for item in stream:
        image = getattr(item, "image", item)
        yield tracker.update(image) if started else tracker.init(image, box)
        started = True


def _identity(config: TrackerConfig) -> Any:
    """The configuration as plain data, without where the features lie."""
    values = {key: value for key, value in dataclasses.asdict(config).items() if key != "store"}
    return json.loads(json.dumps(values))


def _ms(began: float) -> float:
    return (time.perf_counter() - began) * 1000
