"""One tracking run that can be killed and resumed: tracks in a journal, the tracker in checkpoints.

::

    state/run.json        what was started: source, its first frame, box, configuration
    state/journal.jsonl   every track so far, one a line
    state/tracker/        the newest checkpoint; it knows how many frames it has seen
    state/features/       the feature store, where the configuration keeps it on disk

A resumed run replays the journal up to the checkpoint (no model runs), then goes on: the boxes are those of a run that
was never stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeAlias, TypeVar, cast

from streamdrop import checkpoint
from streamdrop.atomic import replace_text
from streamdrop.boxes import Box
from streamdrop.config import differing_keys
from streamdrop.errors import CheckpointError, OutputError, StreamError
from streamdrop.types import RoundReport, Sample, Track

CHECKPOINT_SECONDS = 5.0
"""Work that a kill may cost; a checkpoint takes a fraction of a second."""

FIRST_FRAME = "first frame"
"""The key of what a run started with that tells one video from another under its name."""

Tracks: TypeAlias = Track | dict[int, Track]
"""What a frame gives: the track of one target, or those of several by id."""

Found = TypeVar("Found", bound=Tracks)
Found_co = TypeVar("Found_co", bound=Tracks, covariant=True)
Found_contra = TypeVar("Found_contra", bound=Tracks, contravariant=True)


class Follower(Protocol[Found_co]):
    """A Tracker, or Targets."""

    @property
    def frames(self) -> int:
        """Frames seen, the first included."""

    def init(self, image: Any, box: Any, /) -> Found_co:
        """The first frame."""

    def update(self, image: Any, /) -> Found_co:
        """The next frame."""

    def save(self, path: Path, /) -> None:
        """Write a checkpoint."""

    def restore(self, path: Path, /) -> None:
        """Go on from one."""


class Recording(Protocol[Found_contra]):
    """A Recorder, or a GroupRecorder."""

    def __iter__(self) -> Iterator[Sample]: ...

    def add(self, found: Found_contra, /) -> None:
        """Record what the frame last iterated over gave."""


class TrackRun(Generic[Found]):
    """Tracks ``recorder``'s stream from ``box``; with ``state``, a folder, the run survives being killed.

    ``tracker`` may be a Tracker, whose target is in ``box``, or Targets, with as many boxes. ``resume`` goes on from
    what ``state`` holds (from the beginning if nothing). Raises CheckpointError when ``state`` holds another run, or
    one that was not asked to be resumed.
    """

    def __init__(
        self,
        recorder: Recording[Found],
        tracker: Follower[Found],
        box: object,
        *,
        started: dict[str, Any],
        state: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> None:
        self._recorder, self._tracker, self._box = recorder, tracker, box
        self._state = None if state is None else Path(state)
        self._past: list[Found] = []
        self._journal: IO[str] | None = None
        if self._state is not None:
            _open_state(self._state, started, resume)
            if checkpoint.exists(self._state / "tracker"):
                tracker.restore(self._state / "tracker")
                self._past = cast(list[Found], _read_journal(self._state / "journal.jsonl", tracker.frames))

    @property
    def replayed(self) -> int:
        """Frames that the checkpoint had behind it when the run was opened."""
        return len(self._past)

    def __iter__(self) -> Generator[Found, None, None]:
        """Every track, recorded before it is yielded; replayed ones first. Closed early, it leaves a checkpoint.

        Raises StreamError when no frame comes, OutputError.
        """
        try:
            self._open_journal()
            done, saved = 0, time.monotonic()
            for sample in self._recorder:
                track = self._past[done] if done < len(self._past) else self._live(sample.image, done)
                self._recorder.add(track)
                done += 1
                if done > len(self._past):
                    self._note(track)
                    if done == 1 or _cut_moved(track) or time.monotonic() - saved > CHECKPOINT_SECONDS:
                        self._checkpoint()
                        saved = time.monotonic()
                try:
                    yield track
                except GeneratorExit:  # whoever watches has seen enough
                    if done > len(self._past):
                        self._checkpoint()
                    raise
            if done == 0:
                raise StreamError("the stream holds no frame that can be decoded: check the source")
            if done < len(self._past):
                past = len(self._past)
                raise CheckpointError(f"the source ends after {done} frames, the run had {past}: give the same source")
        finally:
            if self._journal is not None:
                with self._writing():
                    self._journal.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The journal cannot be written: OutputError."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self._state}: cannot be written ({error.strerror}): free some space, then go on with --resume"
            ) from None

    def _live(self, image: Any, done: int) -> Found:
        return self._tracker.init(image, self._box) if done == 0 else self._tracker.update(image)

    def _open_journal(self) -> None:
        """Begin the journal with the replayed tracks; the old one stands until the new one is whole."""
        if self._state is None:
            return
        path, temporary = self._state / "journal.jsonl", self._state / "journal.new"
        with self._writing():
            self._journal = temporary.open("w", encoding="utf-8")
            for track in self._past:
                self._note(track)
            self._sync_journal()
            os.replace(temporary, path)

    def _note(self, track: Found) -> None:
        if self._journal is not None:
            with self._writing():
                self._journal.write(json.dumps(_plain(track)) + "\n")

    def _sync_journal(self) -> None:
        if self._journal is not None:
            with self._writing():
                self._journal.flush()
                os.fsync(self._journal.fileno())

    def _checkpoint(self) -> None:
        if self._state is not None:
            self._sync_journal()  # never behind the checkpoint that counts on it
            self._tracker.save(self._state / "tracker")


def _cut_moved(found: Tracks) -> bool:
    """Whether a decision was just made: the checkpoint that names a cut comes before the store moves to it."""
    tracks = found.values() if isinstance(found, dict) else [found]
    return any(report.next_cut != report.cut for track in tracks for report in track.reports)


def _open_state(state: Path, started: dict[str, Any], resume: bool) -> None:
    """Make the folder a state of the run ``started`` describes, or find it to be one."""
    mark, started = state / "run.json", json.loads(json.dumps(started))
    if not mark.exists():
        try:
            state.mkdir(parents=True, exist_ok=True)
            replace_text(mark, json.dumps(started))  # a torn one would be in the way of starting again
        except OSError as error:
            raise OutputError(f"{state}: cannot be written ({error.strerror}): choose another folder") from None
        return
    if not resume:
        raise CheckpointError(f"{state}: holds an earlier run: add --resume to go on with it, or give another folder")
    try:
        before = json.loads(mark.read_text(encoding="utf-8"))
        before.setdefault(FIRST_FRAME, started.get(FIRST_FRAME))  # earlier versions did not note it
        differing = differing_keys({key: before.get(key) for key in started}, started)
    except (OSError, ValueError, AttributeError):
        raise CheckpointError(f"{mark}: damaged: remove {state} to start anew") from None
    if differing:
        raise CheckpointError(f"{state}: was started with another {', '.join(differing)}: give the same one")


def _read_journal(path: Path, count: int) -> list[Tracks]:
    """The first ``count`` tracks of a journal; what came after the checkpoint is tracked again."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[:count]
        tracks = [_found(json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}): remove {path.parent} to start anew") from None
    if len(tracks) < count:
        raise CheckpointError(f"{path}: holds {len(tracks)} tracks of {count}: remove {path.parent} to start anew")
    return tracks


def _plain(found: Tracks) -> dict[str, Any]:
    """A frame's tracks as plain data: one's fields, or several's by id."""
    if isinstance(found, dict):
        return {str(key): dataclasses.asdict(track) for key, track in found.items()}
    return dataclasses.asdict(found)


def _found(fields: dict[str, Any]) -> Tracks:
    if "box" in fields:
        return _track(fields)
    return {int(key): _track(values) for key, values in fields.items()}


def _track(fields: dict[str, Any]) -> Track:
    report, earlier = fields.pop("report"), fields.pop("earlier")
    last = None if report is None else RoundReport(**report)
    return Track(
        box=Box(*fields.pop("box")), report=last, earlier=tuple(RoundReport(**each) for each in earlier), **fields
    )
