"""What a run with several targets leaves behind: files for each, and those that all share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from streamdrop.service.lines import PathLike, check_writable, opened
from streamdrop.service.recorder import Recorder, closed_by, key_frames_for, video_writer
from streamdrop.types import Image, Sample, Track

if TYPE_CHECKING:
    from streamdrop.streams import VideoWriter


class GroupRecorder:
    """As a Recorder, for several targets: ``add`` takes their tracks by id.

    ``boxes`` and ``report`` name files of each target: ``OUT.txt`` gives ``OUT.1.txt``, ``OUT.2.txt`` and so on, as a
    Recorder writes them; ``report`` itself is a page about all, with links. ``mot``, ``events`` (each object with
    ``target``, the id) and ``video`` are one file for all. ``truths``: a file of true boxes for some of the ids.
    Raises OutputError where files cannot be written, before work starts.
    """

    def __init__(
        self,
        stream: Iterable[Sample],
        ids: Iterable[int],
        *,
        boxes: PathLike | None = None,
        mot: PathLike | None = None,
        events: PathLike | None = None,
        video: PathLike | None = None,
        report: PathLike | None = None,
        truths: Mapping[int, PathLike] | None = None,
        layers: int | None = None,
    ) -> None:
        self._stream, self._report = stream, report
        self._video: VideoWriter | None = None
        self._sample: Sample | None = None
        self._filmed: tuple[int, Image, dict[int, Track]] | None = None  # frames in the video, what the last one shows
        self._key_frames = None if report is None else key_frames_for()
        self.recorders: dict[int, Recorder] = {}
        with ExitStack() as outputs:  # one that cannot be written closes those before it; the report comes last
            outputs.callback(self._finish_report)
            outputs.callback(self._finish_video)
            self._video_path = video
            self._video = None if video is None else _video_of(video, stream)
            check_writable(report)
            shared_mot, shared_events = (closed_by(outputs, opened(each)) for each in (mot, events))
            for key in ids:
                self.recorders[key] = outputs.enter_context(
                    Recorder(
                        _Passing(self),
                        mot=shared_mot,
                        events=shared_events,
                        boxes=None if boxes is None else of_target(boxes, key),
                        report=None if report is None else of_target(report, key),
                        truth=(truths or {}).get(key),
                        layers=layers,
                        target=key,
                    )
                )
            self._closing = outputs.pop_all()

    def __iter__(self) -> Iterator[Sample]:
        for sample in self._stream:
            self._sample = sample
            for recorder in self.recorders.values():
                recorder.see(sample)
            yield sample
        frames = getattr(self._stream, "seen", 0)
        self._film_missing(frames)
        for recorder in self.recorders.values():
            recorder.finish(frames)

    def __enter__(self) -> GroupRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def stream(self) -> Iterable[Sample]:
        """What is recorded."""
        return self._stream

    def add(self, tracks: Mapping[int, Track]) -> None:
        """Record the tracks of the frame last iterated over."""
        assert self._sample is not None, "iterate over the recorder, then add the tracks of each frame"
        for key, track in sorted(tracks.items()):
            self.recorders[key].add(track)
        if self._key_frames is not None and tracks:
            newest = {key: self.recorders[key].tracks[-1] for key in tracks}
            some_lost = any(track.lost for track in newest.values())
            first = newest[min(newest)]
            self._key_frames.offer(Track(first.frame, first.box, first.score, some_lost), self._sample.image)
        if self._video_path is not None:
            at, image = self._sample.index, self._sample.image
            if self._filmed is None:
                self._filmed = (0, image, dict(tracks))
            self._film_missing(at)
            self._film(image, tracks)
            self._filmed = (at + 1, image, dict(tracks))

    def _film_missing(self, frames: int) -> None:
        """Up to ``frames`` the last picture again, its targets lost: frames that could not be decoded."""
        if self._filmed is None or getattr(self._stream, "live", False):  # there frames go by unseen all the time
            return
        first, image, tracks = self._filmed
        lost = {key: replace(track, score=0.0, lost=True) for key, track in tracks.items()}
        for _ in range(first, frames):
            self._film(image, lost)

    def _film(self, image: Image, tracks: Mapping[int, Track]) -> None:
        assert self._video_path is not None
        if self._video is None:
            self._video = video_writer(self._video_path, self._stream, (image.shape[1], image.shape[0]))
        self._video.write(_with_boxes(image, tracks))

    def drawn(self, tracks: Mapping[int, Track]) -> Image:
        """The frame last iterated over with all boxes and their ids, uint8 H×W×3 RGB."""
        assert self._sample is not None, "iterate over the recorder first"
        return _with_boxes(self._sample.image, tracks)

    def summary(self) -> str:
        """The run in a line, and each target in one."""
        tracks = [recorder.tracks for recorder in self.recorders.values()]
        frames = max(map(len, tracks), default=0)
        each = [sum(one.ms for one in found) for found in zip(*tracks, strict=True)]
        updates = [ms for ms in each[1:] if ms > 0]
        line = f"{frames} frames, {len(tracks)} targets"
        if updates:
            line += f"; {1e3 * len(updates) / sum(updates):.1f} frames/s, first boxes after {each[0] / 1e3:.1f} s"
        lines = [f"target {key}: " + one.summary(brief=True) for key, one in self.recorders.items()]
        return "\n".join([line, *lines])

    def close(self) -> None:
        """Finish every file; idempotent. What was recorded so far is whole and readable."""
        self._closing.close()

    def _finish_video(self) -> None:
        if self._video is not None:
            self._video.close()

    def _finish_report(self) -> None:
        if self._report is not None and self.recorders and all(recorder.tracks for recorder in self.recorders.values()):
            self._write_report(Path(self._report))
            self._report = None

    def _write_report(self, path: Path) -> None:
        from streamdrop.evaluation.group_report import write_group_report
        from streamdrop.evaluation.hardware import describe_hardware

        assert self._key_frames is not None
        write_group_report(
            path,
            {key: recorder.tracks for key, recorder in self.recorders.items()},
            links={key: of_target(path, key).name for key in self.recorders},
            truths={key: recorder.truth for key, recorder in self.recorders.items() if recorder.truth is not None},
            source=getattr(self._stream, "name", "stream"),
            key_frames=self._key_frames,
            hardware=describe_hardware(),
            source_fps=getattr(self._stream, "fps", None),
        )


class _Passing:
    """The stream as each target's own recorder knows it: its name and rate, no frames."""

    def __init__(self, group: GroupRecorder) -> None:
        self.name = getattr(group.stream, "name", "stream")
        self.fps = getattr(group.stream, "fps", None)

    def __iter__(self) -> Iterator[Sample]:
        return iter(())


def _with_boxes(image: Image, tracks: Mapping[int, Track]) -> Image:
    from streamdrop.streams import annotate

    for key, track in sorted(tracks.items()):
        image = annotate(image, track.box, track.score, track.lost, name=str(key))
    return image


def of_target(path: PathLike, key: int) -> Path:
    """The file of one target: ``OUT.txt`` → ``OUT.3.txt``."""
    whole = Path(path)
    return whole.with_name(f"{whole.stem}.{key}{whole.suffix}")


def _video_of(path: PathLike, stream: Iterable[Sample]) -> VideoWriter | None:
    """A writer, where the size of the frames is known already."""
    size = getattr(stream, "size", None)
    return None if size is None else video_writer(path, stream, size)
