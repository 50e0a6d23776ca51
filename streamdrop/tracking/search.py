"""Where the target was, where to look for it, and which peak of the score maps is it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamdrop.boxes import Box
from streamdrop.tracking.config import STRIDE, BoxConfig, LostConfig, SearchConfig, TrackerConfig, UpdateConfig
from streamdrop.tracking.crops import View, sweep
from streamdrop.tracking.distractors import GO_ON, TURN, Distractor, Place, at, blanked, followed, peaks
from streamdrop.tracking.eye import Map

_SMALLEST = 2.0  # pixels a box's side never falls below
_REACH = 0.9  # targets around a peak that are its own
_PATIENCE = 25  # frames for which a lost target is at least thought to be none of the distractors
_NEAR = 0.7  # targets around the expected place where a peak is the target's, whatever was seen there
_FIRST_LEVEL = 0.6  # what peaks are like soon after the first frame, whose own says little
_LEAST_LEVEL = 0.5  # a target that keeps scoring less is still judged by this
_FIRST_SURPRISE = 0.3
_CURVE = (5.0, 1.4)
_PACE = 0.1  # share of a frame in what "of late" means
_LEAST_ANCHORED = 0.1  # an anchor that has come to give the target less than this is asked for no more
_ANCHOR_PACE = 0.01  # share of a frame in its "of late"; slow: what is followed by mistake is not soon usual
_TWIN = 0.8  # a rival of this share of a peak's score might as well be the target


@dataclass
class Motion:
    """The target's state in plain numbers. ``box`` is the last known one, ``lost`` counts frames since it was seen.

    ``steady``: frames since it was found (again); ``waiting``: samples not yet learned from;
    ``swept``: crops of the sweep in which it was searched for since it was seen;
    ``aspect``: width over height in the first frame; ``usual``: √(w·h) it has had of late where it scored well;
    ``level``: the peak it has had of late; ``anchored``: what the anchor has given it of late, ``opinions`` times in
    all; ``vx``, ``vy``: pixels a frame; ``surprise``: how far from where it was expected it has been of late, in
    targets; ``distractors``: others like it that were seen of late.
    """

    box: Box
    width: int
    height: int
    frame: int = 0
    score: float = 1.0
    lost: int = 0
    steady: int = 1_000_000
    waiting: int = 0
    swept: int = 0
    aspect: float = 1.0
    usual: float = 0.0
    level: float = _FIRST_LEVEL
    anchored: float = 0.0
    opinions: int = 0
    vx: float = 0.0
    vy: float = 0.0
    surprise: float = _FIRST_SURPRISE
    distractors: list[Distractor] = field(default_factory=list)

    @classmethod
    def starting(cls, box: Box, width: int, height: int) -> Motion:
        """On the first frame; a box larger than the frame is followed at the frame's size."""
        x, y = box.centre
        w, h = min(box.w, 2.0 * width), min(box.h, 2.0 * height)
        return cls(Box(x - w / 2, y - h / 2, w, h), width, height, aspect=w / h, usual=math.sqrt(w * h))

    @classmethod
    def restored(cls, values: dict[str, Any]) -> Motion:
        """From ``dataclasses.asdict``."""
        others = [Distractor(**one) for one in values.get("distractors", ())]
        return cls(**{**values, "box": Box(*values["box"]), "distractors": others})

    def side(self, search: SearchConfig) -> float:
        """The search crop's side in frame pixels."""
        return max(search.context * math.sqrt(self.box.area), 8.0)

    def advance(self, width: int, height: int) -> None:
        """To the next frame; in one of another size the box keeps its relative place, all lengths are scaled."""
        self.frame += 1
        if (width, height) != (self.width, self.height):
            p, q = width / self.width, height / self.height
            self.box = Box(self.box.x * p, self.box.y * q, self.box.w * p, self.box.h * q)
            self.vx, self.vy = self.vx * p, self.vy * q
            self.usual, self.aspect = self.usual * math.sqrt(p * q), self.aspect * p / q
            self.distractors = []
            self.width, self.height = width, height

    def judge(self, peak: Peak, config: LostConfig) -> bool:
        """Note the best score; whether the target is there.

        A low peak without a rival is still followed: a target that changes fast scores low, but so does all else.
        """
        self.score = min(max(peak.score, 0.0), 1.0)
        followed = peak.score >= max(config.below * self.level, config.floor) or peak.stands_out(config)
        there = peak.found_again(config, self.level) if self.lost else followed
        if there:
            self.level = max(self.level + _PACE * (self.score - self.level), _LEAST_LEVEL)
        self.lost, self.steady = (0, 0 if self.lost else self.steady + 1) if there else (self.lost + 1, 0)
        self.swept = 0 if there else self.swept
        return there

    def vouched(self, opinion: float, update: UpdateConfig) -> bool:
        """Note what the anchor gives to what was found in this frame; whether that will do to learn from it.

        The first ``early`` times it always will: what an anchor gives to a target differs, and is not known yet.
        """
        usual = update.anchor * max(self.anchored, _LEAST_ANCHORED)
        enough = opinion >= usual or self.opinions < update.early
        self.opinions += 1
        self.anchored += max(_ANCHOR_PACE, 1 / self.opinions) * (opinion - self.anchored)
        return enough

    def note_distractors(self, scores: Map, views: list[View], found: bool, config: TrackerConfig) -> None:
        """Follow what else there is in this frame, once the target's place is known; ``scores`` [N, H, W] of views."""
        if config.search.distractors:
            length = math.sqrt(self.box.area)
            seen = peaks(scores, views, length)
            certain = found and self.score >= config.lost.found * self.level
            self.distractors = followed(self.distractors, seen, self.box.centre, length, certain)

    def move(self, box: Box, config: BoxConfig) -> None:
        """To the middle of ``box``, and part of the way to its size; the middle stays inside the frame."""
        x, y = box.centre
        x, y = self._inside(x, y)
        self._note_motion(x, y)
        trust = min(max((self.score - config.doubtful) / (config.sure - config.doubtful), 0.0), 1.0)
        w = self.box.w + config.step * trust * (box.w - self.box.w)
        h = self.box.h + config.step * trust * (box.h - self.box.h)
        w, h = _limited_aspect(w, h, self.aspect, config.aspect)
        w, h = (min(max(length, _SMALLEST), float(limit)) for length, limit in ((w, self.width), (h, self.height)))
        self.box = Box(x - w / 2, y - h / 2, w, h)
        self.usual *= (math.sqrt(w * h) / self.usual) ** (config.pace * trust)

    def expected(self) -> tuple[float, float]:
        """Where the target's middle should be in this frame; where it was last seen while it is lost."""
        (x, y), share = self.box.centre, 0.0 if self.lost else GO_ON
        return self._inside(x + share * self.vx, y + share * self.vy)

    def reach(self, search: SearchConfig) -> float:
        """The window's width, in targets: the more, the less regularly it moves and the longer it is lost."""
        narrow, wide = search.window_width
        return min(max(narrow / 2 + 3 * self.surprise, narrow), wide) * math.sqrt(1 + self.lost)

    def _inside(self, x: float, y: float) -> tuple[float, float]:
        return min(max(x, 0.0), float(self.width)), min(max(y, 0.0), float(self.height))

    def _note_motion(self, x: float, y: float) -> None:
        """Learn how it moves from where it is found; a jump back into sight teaches nothing."""
        if self.steady == 0:
            self.vx = self.vy = 0.0
            return
        (u, v), (p, q) = self.box.centre, self.expected()
        off = math.hypot(x - p, y - q) / math.sqrt(self.box.area)
        self.surprise += _PACE * (min(off, 1.0) - self.surprise)
        self.vx, self.vy = (old + TURN * (new - old) for old, new in ((self.vx, x - u), (self.vy, y - v)))

    def grow(self, factor: float) -> None:
        """The box resized about its middle."""
        (x, y), w, h = self.box.centre, self.box.w * factor, self.box.h * factor
        self.box = Box(x - w / 2, y - h / 2, w, h)

    def off_size(self, config: BoxConfig) -> float:
        """What would bring the box to its usual size; 1 where it is near enough."""
        factor = self.usual / math.sqrt(self.box.area)
        return 1.0 if abs(math.log(factor)) < math.log(config.unusual) else factor


@dataclass(frozen=True)
class Peak:
    """The best place of a target: which view, where in its crop (pixels), at what score.

    ``rival`` is the highest score of that view a target's length or more away, at least 0.
    """

    view: int
    x: float
    y: float
    score: float
    rival: float

    def stands_out(self, config: LostConfig) -> bool:
        """Whether a low score is clear nevertheless: above the floor, and no rival near it."""
        return self.score >= config.floor and self.rival <= config.rival * self.score

    def found_again(self, config: LostConfig, level: float) -> bool:
        """Whether a lost target is back: as good as it was, nearly, and no second one like it."""
        return self.score >= config.found * level and self.rival <= _TWIN * self.score


def confidence(score: float) -> float:
    """The odds, 0 to 1, that a box found at a peak of this ``score`` overlaps the target by more than one half.

    A logistic curve, fitted to 1,743 frames: eight of the README's nine sequences at a third of their frame rate,
    mirrored or reversed in grey, and the beginnings of three of them; every sequence counts alike.
    """
    return 1 / (1 + math.exp(_CURVE[1] - _CURVE[0] * score))


def crop_views(motion: Motion, config: TrackerConfig, hurry: bool = False, likely: Sequence[Place] = ()) -> list[View]:
    """The views to search: around the last place; when lost, others of the frame too, by turns and outwards.

    One of these is around one of the ``likely`` places, best first, then by turns.

    In a ``hurry`` the first only; the others come in the frames after: ``motion.swept`` counts the sweep's.
    """
    side, size = motion.side(config.search), config.search.size
    x, y = motion.expected()
    views = [View(x, y, side, size)]
    if hurry:
        return views
    factor = motion.off_size(config.box)
    if factor != 1.0 and (motion.lost or motion.frame % config.box.probe == 0):
        limit = math.inf if motion.lost else config.box.leap
        views.append(View(x, y, side * min(max(factor, 1 / limit), limit), size))
    if motion.lost:
        others = sweep(motion.width, motion.height, side, x, y)
        chosen = _glimpsed(motion, config.lost, [place for place in likely if math.dist(place, (x, y)) > side / 4])
        count = config.lost.windows - len(chosen)
        chosen += [others[(motion.swept + i) % len(others)] for i in range(min(count, len(others)))]
        views += [View(u, v, side, size) for u, v in chosen]
        motion.swept += count
    return views


def _glimpsed(motion: Motion, config: LostConfig, likely: Sequence[Place]) -> list[Place]:
    """The likely place whose turn it is; where there is one window only, in every other frame."""
    if not likely or (config.windows == 1 and motion.lost % 2 == 0):
        return []
    turns = motion.lost - 1 if config.windows > 1 else motion.lost // 2
    return [likely[turns % len(likely)]]


def best_peak(scores: Map, views: list[View], motion: Motion, config: TrackerConfig) -> Peak:
    """The highest score over all views [N, H, W]; away from where the target is expected, places count less.

    A distractor does not count, unless it is where the target is expected, or the target has been lost for so long that
    it may have been mistaken for one.
    """
    weighted, expected, length = scores, motion.expected(), math.sqrt(motion.box.area)
    if not motion.lost:
        middle = views[0].to_crop(*expected)
        weighted = scores * _window(scores.shape[1], config.search, motion.reach(config.search), middle)
    enough = max(config.search.distractors, 1)
    known = [one for one in motion.distractors if one.beside >= enough and motion.lost <= max(one.beside, _PATIENCE)]
    while True:
        peak = _highest(weighted, scores, config.search)
        place = views[peak.view].to_frame(peak.x, peak.y)
        other = at(known, place, length) if math.dist(place, expected) > _NEAR * length else None
        if other is None:
            return peak
        known.remove(other)
        weighted = blanked(weighted, views, place, length)


def _highest(weighted: Map, scores: Map, search: SearchConfig) -> Peak:
    view, row, column = np.unravel_index(int(weighted.argmax()), scores.shape)
    x, y = _refined(scores[view], int(column), int(row))
    rival = _highest_beyond(scores[view], int(column), int(row), _REACH * scores.shape[1] / search.context)
    return Peak(int(view), (x + 0.5) * STRIDE, (y + 0.5) * STRIDE, float(scores[view, row, column]), rival)


def _window(cells: int, search: SearchConfig, width: float, middle: tuple[float, float]) -> Map:
    across, down = ((np.arange(cells) + 0.5 - at / STRIDE) * search.context / cells for at in middle)
    distance = down[:, None] ** 2 + across[None, :] ** 2
    near = np.exp(-0.5 * distance / width**2)
    return (1 - search.window + search.window * near).astype(np.float32)


def _highest_beyond(scores: Map, x: int, y: int, apart: float) -> float:
    """The highest score, at least 0, outside the square of ``apart`` cells around a peak."""
    cells = np.arange(len(scores))
    far = (np.abs(cells[:, None] - y) > apart) | (np.abs(cells[None, :] - x) > apart)
    return float(scores[far].max(initial=0.0))


def _refined(scores: Map, x: int, y: int) -> tuple[float, float]:
    """The top of the parabola through a peak and its neighbours, in cells."""
    last = len(scores) - 1
    u = _top(scores[y, x - 1 : x + 2]) if 0 < x < last else 0.0
    v = _top(scores[y - 1 : y + 2, x]) if 0 < y < last else 0.0
    return x + u, y + v


def _top(values: Map) -> float:
    before, at, after = (float(value) for value in values)
    curve = before - 2 * at + after
    return 0.0 if curve >= -1e-6 else min(max(0.5 * (before - after) / curve, -0.5), 0.5)


def _limited_aspect(w: float, h: float, first: float, limit: float) -> tuple[float, float]:
    """The same area at an aspect within ``limit`` times the first one, either way."""
    aspect = min(max(w / h, first / limit), first * limit)
    area = w * h
    return math.sqrt(area * aspect), math.sqrt(area / aspect)
