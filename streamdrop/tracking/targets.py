"""Several targets in one video: a tracker for each, one pass of the tail for those near each other, rounds in turns."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from streamdrop.boxes import as_box, check_inside
from streamdrop.checkpoint import read_checkpoint
from streamdrop.config import load
from streamdrop.errors import CheckpointError, ConfigError, StreamdropError
from streamdrop.pixels import Tones, as_rgb
from streamdrop.tracking.config import TrackerConfig
from streamdrop.tracking.crops import View, take
from streamdrop.tracking.saved_targets import read_targets, write_targets
from streamdrop.tracking.sheets import Area, Sheet, as_batch, grouped
from streamdrop.tracking.threads import computing
from streamdrop.tracking.tracker import SMALLEST, Tracker, with_reports
from streamdrop.tracking.turns import Turns
from streamdrop.types import Image, RoundReport, Track

Boxes: TypeAlias = Mapping[int, object] | Sequence[object]


class Targets:
    """Follows several targets of one video, each known by its id, a whole number from 1 on.

    ``init`` takes boxes by id, or in order (ids 1, 2, …); ``update`` gives a Track for each. With one target the tracks
    are those of a Tracker, bit for bit. With more, targets near each other are looked for in one crop, seen at its own
    scale, and rounds take turns (``TargetsConfig``), so that boxes differ from those of as many Trackers; a target that
    shares its crop with nobody is looked for as a Tracker does. Under the strategy ``drop`` the one with the
    lowest id trains the upper backbone; the others learn on top of it, as under ``fixed``, and so does what is added
    later. The same configuration, frames and boxes by id give the same tracks on every run, whatever the order in which
    the boxes are given. ``waiting``, as a Tracker has it, is for the rounds of a target that is the only one. Raises
    WeightsError when there are no pretrained weights.
    """

    def __init__(self, config: TrackerConfig | None = None, waiting: Callable[[], bool] | None = None) -> None:
        self.config = config if config is not None else TrackerConfig()
        self._waiting = waiting
        self._trackers: dict[int, Tracker] = {}
        self._spare: dict[tuple[int, bool], Tracker] = {}
        self._turns = Turns()
        self._frame = -1
        self._layers = self._built(1, False).layers

    @classmethod
    def from_config(cls, source: str | os.PathLike[str] | Mapping[str, Any] | None = None) -> Targets:
        """From a YAML file, a mapping, or None for the defaults. Raises ConfigError, WeightsError."""
        return cls(load(source, TrackerConfig))

    @property
    def ids(self) -> tuple[int, ...]:
        """The targets, in order."""
        return tuple(sorted(self._trackers))

    @property
    def frames(self) -> int:
        """Frames seen since ``init``, the first included; 0 before."""
        return self._frame + 1

    @property
    def layers(self) -> int:
        """How many droppable layers the network has; RoundReport.cut counts towards it."""
        return self._layers

    def init(self, image: Image, boxes: Boxes) -> dict[int, Track]:
        """Learn the targets in ``boxes`` (x, y, w, h in pixels of this frame), forgetting all others.

        Raises BoxError for a box that is none or lies outside, ConfigError for ids that cannot be, for no boxes and too
        many, DataError for what is no image; nothing is learned then.
        """
        given = boxes if isinstance(boxes, Mapping) else dict(enumerate(boxes, 1))
        if not given:
            raise ConfigError("no targets: give at least one box")
        self._check(image, given, tuple(given))
        self.close()
        self._frame = 0
        return {key: self._learn(key, image, box) for key, box in sorted(given.items())}

    def update(self, image: Image, hurry: bool = False) -> dict[int, Track]:
        """Find every target in the next frame; of one that is lost the last box. Raises DataError as ``init`` does.

        Raises StreamdropError before the first ``init`` or ``add``; when all targets were removed there are no tracks.
        ``Track.ms`` is a target's own time and its share of the passes that it shares. ``hurry``: as a Tracker has it.
        """
        if self._frame < 0:
            raise StreamdropError("there are no targets: call init(image, boxes) first")
        if len(self._trackers) == 1:
            return self._update_one(self.ids[0], image, hurry)
        with computing(self.config.threads):
            frames = {key: self._trackers[key].rgb(image) for key in self.ids}
            self._frame += 1
            views = {key: self._views(key, frame, hurry) for key, frame in frames.items()}
            tracks = {key: track for area in self._areas() for key, track in self._find(area, frames, views).items()}
            return self._round({key: tracks[key] for key in self.ids})

    @property
    def spares(self) -> bool:
        """Whether ``spare`` has something to do, and time for it."""
        return len(self._trackers) == 1 and all(tracker.spares for tracker in self._trackers.values())

    def spare(self) -> dict[int, tuple[RoundReport, ...]]:
        """Go on with the only target's round, as ``Tracker.spare`` does; the reports by id."""
        reports = {key: tracker.spare() for key, tracker in self._trackers.items() if len(self._trackers) == 1}
        return {key: ended for key, ended in reports.items() if ended}

    def add(self, image: Image, box: object, key: int | None = None) -> Track:
        """Learn one more target, in the frame that was last looked at; ``key``: its id, by default the next free one.

        One of that id is forgotten. Raises as ``init`` does.
        """
        key = self.free_id() if key is None else key
        self._check(image, {key: box}, {*self.ids, key})
        self._frame = max(self._frame, 0)
        return self._learn(key, image, box)

    def remove(self, key: int) -> None:
        """Let go of a target. Raises ConfigError where there is none of that id."""
        self.tracker(key).close()
        self._turns.forget(key)
        del self._trackers[key]

    def free_id(self) -> int:
        """The id above all that are in use."""
        return max(self.ids, default=0) + 1

    def tracker(self, key: int) -> Tracker:
        """The tracker of one target. Raises ConfigError where there is none of that id."""
        if key not in self._trackers:
            raise ConfigError(f"no target {key}: the targets are {', '.join(map(str, self.ids)) or 'none'}")
        return self._trackers[key]

    def reserve(self, key: int, borrows: bool | None = None) -> None:
        """Build what ``add`` (or ``restore_one``, of one that ``borrows``) will need, so that it need not."""
        self._built(key, self._donor(key) is not None if borrows is None else borrows)

    def borrows(self, key: int) -> bool:
        """Whether a target learned on top of another one's backbone. Raises ConfigError."""
        return self.tracker(key).config.strategy != self.config.strategy

    # ---------------------------------------------------------------- checkpoints

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint of all from which ``restore`` goes on to exactly the same boxes. Raises OutputError."""
        state = {
            "frame": self._frame,
            "turns": self._turns.state(),
            "borrows": {str(key): self.borrows(key) for key in self.ids},
        }
        write_targets(path, self._trackers, state)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint of targets with the same configuration. Raises CheckpointError.

        Those that are followed are let go of once the checkpoint was read, and is whole: a store has one owner.
        """
        folder, state = read_targets(path)
        try:
            borrows = {int(key): bool(value) for key, value in state["borrows"].items()}
            frame, turns = int(state["frame"]), Turns.restored(state["turns"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{folder}: damaged ({error}): start anew or take a backup") from None
        for key in borrows:
            read_checkpoint(folder / str(key))
        self.close()
        try:
            for key, borrowed in borrows.items():
                self.restore_one(key, folder / str(key), borrowed)
        except BaseException:  # all or none
            self.close()
            raise
        self._frame, self._turns = frame, turns

    def restore_one(self, key: int, path: str | os.PathLike[str], borrowed: bool) -> None:
        """Go on with one target from a checkpoint that its tracker saved. Raises CheckpointError."""
        tracker = self._built(key, borrowed)
        tracker.restore(path)
        self._adopt(key, tracker)
        self._frame = max(self._frame, 0)

    def close(self) -> None:
        """Let go of all targets and their feature stores. Twice is fine."""
        for tracker in self._trackers.values():
            tracker.close()
        self._trackers, self._turns, self._frame = {}, Turns(), -1

    # ---------------------------------------------------------------- learning

    def _check(self, image: Image, boxes: Mapping[int, object], ids: Sequence[int] | set[int]) -> None:
        """Refuse what cannot be learned, before anything is forgotten."""
        shown = as_rgb(image, Tones.of(image), least=SMALLEST)
        for key, box in boxes.items():
            if not isinstance(key, int) or isinstance(key, bool) or key < 1:
                raise ConfigError(f"a target's id is {key!r}: give a whole number of at least 1")
            check_inside(as_box(box), shown.shape[1], shown.shape[0])
        self.config.check_targets(len(ids))

    def _learn(self, key: int, image: Image, box: object) -> Track:
        donor = self._donor(key)
        tracker = self._built(key, donor is not None)
        self._forget(key)
        try:
            with computing(self.config.threads):
                track = tracker.learn(image, box, None if donor is None else donor.learner.backbone)
        except BaseException:  # whoever interrupts it goes on without this target
            tracker.close()
            raise
        self._adopt(key, tracker)
        return dataclasses.replace(track, frame=self._frame)

    def _donor(self, key: int) -> Tracker | None:
        """Whose backbone a new target takes over: the first one's whose is at rest; None: it has its own."""
        others = (self._trackers[one] for one in self.ids if one != key)
        resting = (one for one in others if one.learner.resting is not None)
        return next(resting, None) if self.config.strategy == "drop" else None

    def _built(self, key: int, borrowed: bool) -> Tracker:
        """A tracker without a target, kept for as long as none is learned."""
        if (key, borrowed) not in self._spare:
            store = self.config.store
            self._spare[key, borrowed] = Tracker(
                dataclasses.replace(
                    self.config,
                    target=self.config.target + key - 1,
                    store=store if store is None or key == 1 else f"{store}-{key}",
                    strategy="fixed" if borrowed else self.config.strategy,
                ),
                self._waiting,
            )
        return self._spare[key, borrowed]

    def _adopt(self, key: int, tracker: Tracker) -> None:
        self._trackers[key] = tracker
        self._spare = {at: spare for at, spare in self._spare.items() if at[0] != key}

    def _forget(self, key: int) -> None:
        if key in self._trackers:
            self.remove(key)

    # ---------------------------------------------------------------- looking

    def _update_one(self, key: int, image: Image, hurry: bool) -> dict[int, Track]:
        track = self._trackers[key].update(image, hurry)
        self._frame += 1
        return {key: dataclasses.replace(track, frame=self._frame)}

    def _views(self, key: int, frame: Image, hurry: bool) -> list[View]:
        """Where to look for a target; for a second look at another size it waits its turn, unless it is lost."""
        tracker = self._trackers[key]
        views, motion = tracker.advance(frame, hurry), tracker.motion
        probes = motion.lost or self._in_turn(key, motion.frame // self.config.box.probe)
        return views if probes else views[:1]

    def _areas(self) -> list[Area]:
        """What to look at: areas of one target each, and of those that are seen together."""
        config = self.config
        alone, alike = [], dict[tuple[str, Tones], list[Area]]()
        for key in self.ids:
            tracker = self._trackers[key]
            area = Area.of(key, tracker.motion, config.search)
            made_by = tracker.learner.resting if config.targets.share else None
            if made_by is None:
                alone.append(area)
            else:
                alike.setdefault((made_by, tracker.tones), []).append(area)
        together = [grouped(areas, config.search.size, config.targets.alike) for areas in alike.values()]
        return [*alone, *(area for areas in together for area in areas)]

    def _find(self, area: Area, frames: dict[int, Image], views: dict[int, list[View]]) -> dict[int, Track]:
        """The tracks of an area's targets, before any round."""
        began, first = time.perf_counter(), min(area.ids)
        sheet = Sheet.of(area, self.config.search.size) if len(area.ids) > 1 else None
        maps = () if sheet is None else self._trackers[first].learner.maps([sheet.take(frames[first])])
        shared = (time.perf_counter() - began) / len(area.ids)
        tracks = {}
        for key in area.ids:
            tracker, seen, began = self._trackers[key], views[key], time.perf_counter() - shared
            if sheet is None:
                looked = tracker.learner.eye([take(frames[key], view) for view in seen])
            else:
                seen = [sheet.window(tracker.motion, self.config.search.size), *seen[1:]]
                parts = [sheet.cut(maps, seen[0])]
                if seen[1:]:
                    parts.append(tracker.learner.maps([take(frames[key], view) for view in seen[1:]]))
                looked = tracker.learner.look_at(as_batch(parts))
            found = tracker.find(frames[key], seen, looked, self._keeps(key))
            tracks[key] = dataclasses.replace(tracker.track(found, began), frame=self._frame)
        return tracks

    # ---------------------------------------------------------------- rounds

    def _keeps(self, key: int) -> bool:
        """Whether this frame is one to learn from: the rarer its rounds, the fewer a target needs."""
        return self._in_turn(key, self._frame)

    def _in_turn(self, key: int, count: int) -> bool:
        """Of all targets as many at every count as the budget of rounds is for, and each at its own counts."""
        every = max(int(len(self._trackers) / self.config.targets.rounds), 1)
        return (count + self.ids.index(key)) % every == 0

    def _round(self, tracks: dict[int, Track]) -> dict[int, Track]:
        """One target's round, where one is due."""
        part = min(1.0, self.config.targets.rounds / max(len(tracks), 1))
        for key in tracks:
            tracker = self._trackers[key]
            if tracker.round_due:
                self._turns.ask(key, part if tracker.early else 0.0)
        apart = self.config.update.every / self.config.targets.rounds
        while (turn := self._turns.next(self._frame, apart)) is not None:
            began = time.perf_counter()
            reports = self._trackers[turn].adapt()
            if reports:
                self._turns.last[turn] = self._frame
                ms = tracks[turn].ms + (time.perf_counter() - began) * 1e3
                return {**tracks, turn: with_reports(dataclasses.replace(tracks[turn], ms=ms), reports)}
        return tracks
