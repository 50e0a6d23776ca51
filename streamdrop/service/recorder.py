"""What a run leaves behind: boxes, events, an annotated video, a report."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TypeVar

from streamdrop.boxes import Array
from streamdrop.service.files import box_line
from streamdrop.service.lines import Lines, PathLike, check_writable, opened
from streamdrop.types import Image, RoundReport, Sample, Track

if TYPE_CHECKING:
    from streamdrop.evaluation.pictures import KeyFrames
    from streamdrop.streams import VideoWriter

Output = TypeVar("Output", bound="Lines | VideoWriter")


class Recorder:
    """Iterate over it in place of the stream and ``add`` every track: each frame's result goes to the files asked for.

    ``boxes``: one ``x,y,w,h`` line per frame, the last box while lost. ``mot``: ``frame,id,x,y,w,h,score,-1,-1,-1``
    lines as the MOT challenge has them (frames and pixels from 1), none while lost. ``events``: JSON lines, one object
    per frame and per round, with ``target``, its id, where that is given. ``video``: the annotated frames. ``report``:
    one self-contained HTML page, written by ``close``; ``truth`` (a file of ``x,y,w,h`` lines) adds the overlap to it,
    ``layers`` how many droppable layers the model has. A frame that could not be decoded takes the last box, and in the
    video the last picture. Files are opened at once: raises OutputError where they cannot be written, before work
    starts.
    """

    def __init__(
        self,
        stream: Iterable[Sample],
        *,
        boxes: PathLike | IO[str] | None = None,
        mot: PathLike | IO[str] | Lines | None = None,
        events: PathLike | IO[str] | Lines | None = None,
        video: PathLike | None = None,
        report: PathLike | None = None,
        truth: PathLike | None = None,
        layers: int | None = None,
        target: int | None = None,
    ) -> None:
        self.tracks: list[Track] = []
        self._stream, self._report, self._layers, self._target = stream, report, layers, target
        self._truth = None if truth is None else _read_truth(truth)
        self._video_path = video
        self._video: VideoWriter | None = None
        self._closed = False
        self._sample: Sample | None = None
        self._drawn: Image | None = None  # the picture last drawn on
        self._key_frames = None if report is None else key_frames_for()
        with ExitStack() as outputs:  # one that cannot be written closes those before it
            self._boxes, self._mot, self._events = (closed_by(outputs, opened(each)) for each in (boxes, mot, events))
            check_writable(report)
            size = getattr(stream, "size", None)
            if video is not None and size is not None:
                self._video = video_writer(video, stream, size)
            outputs.pop_all()

    def __iter__(self) -> Iterator[Sample]:
        for sample in self._stream:
            self.see(sample)
            yield sample
        self.finish(getattr(self._stream, "seen", 0))

    def finish(self, frames: int) -> None:
        """The stream has ended after so many frames: the last ones may not have been decoded."""
        if self.tracks:
            self._fill(frames)

    def see(self, sample: Sample) -> None:
        """The next frame, where somebody else iterates over the stream."""
        self._sample = sample

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def image(self) -> Image:
        """The frame last iterated over, uint8 H×W×3 RGB."""
        assert self._sample is not None, "iterate over the recorder first"
        image: Image = self._sample.image
        return image

    def drawn(self, track: Track) -> Image:
        """The frame last iterated over with the track's box, uint8 H×W×3 RGB."""
        from streamdrop.streams import annotate

        return annotate(self.image, track.box, track.score, track.lost)

    def add(self, track: Track) -> None:
        """Record the track of the frame last iterated over."""
        assert self._sample is not None, "iterate over the recorder, then add the track of each frame"
        self._fill(self._sample.index, track)
        track = replace(track, frame=self._sample.index)
        self._write(track)
        if self._key_frames is not None:
            self._key_frames.offer(track, self._sample.image)
        self._draw(self._sample.image, track)

    def _fill(self, frames: int, following: Track | None = None) -> None:
        """Lost frames up to ``frames``: they could not be decoded. Before the first of all the ``following`` stands."""
        assert self._sample is not None
        last = self.tracks[-1] if self.tracks else following
        image = self._drawn if self._drawn is not None else self._sample.image
        for frame in range(len(self.tracks), frames):
            assert last is not None
            track = Track(frame, last.box, 0.0, True)
            self._write(track)
            if not getattr(self._stream, "live", False):  # there frames go by unseen all the time
                self._draw(image, track)

    @property
    def truth(self) -> Array | None:
        """The true boxes that were given, [frames, 4]."""
        return self._truth

    def summary(self, brief: bool = False) -> str:
        """The run in lines: frames, speed, losses; rounds and what is dropped; rounds that had no time, if any.

        What the policy said last comes at the end, if it says why.

        ``brief``: in one line, without speed.
        """
        reports = [report for track in self.tracks for report in track.reports]
        updates = [track.ms for track in self.tracks[1:] if track.ms > 0]
        lines = [f"{len(self.tracks)} frames, {sum(track.lost for track in self.tracks)} of them lost"]
        if updates and not brief:
            rate, first = 1e3 * len(updates) / sum(updates), self.tracks[0].ms / 1e3
            lines[0] += f"; {rate:.1f} frames/s, first box after {first:.1f} s"
        if reports:
            median = statistics.median(report.seconds for report in reports) * 1e3
            total = f" of {self._layers}" if self._layers else ""
            dropped = f"{reports[-1].next_cut}{total} layers"
            lines.append(f"{len(reports)} rounds, median {median:.0f} ms; dropped: {dropped}")
        short, off = sum(report.cut_short for report in reports), sum(track.put_off for track in self.tracks)
        if short or off:
            lines.append(f"rounds: {len(reports) - short} whole, {short} cut short, {off} put off for want of time")
        said = [report.why for report in reports if report.why]
        if said and not brief:
            lines.append(f"policy: {said[-1]}")
        return ("; " if brief else "\n").join(lines)

    def close(self) -> None:
        """Finish every file; idempotent. What was recorded so far is whole and readable."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as outputs:  # one that cannot be finished leaves the others whole
            if self._report is not None and self.tracks:
                outputs.callback(self._write_report)
            for output in (self._video, self._events, self._mot, self._boxes):
                closed_by(outputs, output)

    def _write(self, track: Track) -> None:
        frame = len(self.tracks)
        self.tracks.append(track)
        if self._boxes is not None:
            self._boxes.write(",".join(f"{value:.4f}" for value in track.box) + "\n")
        if self._mot is not None:
            self._mot.write(box_line("mot", frame, track, self._target or 1))
        if self._events is not None:
            self._events.write("".join(json.dumps(event) + "\n" for event in events_of(frame, track, self._target)))

    def _draw(self, image: Image, track: Track) -> None:
        from streamdrop.streams import annotate

        if self._video_path is None:
            return
        self._drawn = image
        if self._video is None:
            self._video = video_writer(self._video_path, self._stream, (image.shape[1], image.shape[0]))
        self._video.write(annotate(image, track.box, track.score, track.lost, text=self._caption()))

    def _caption(self) -> str:
        """What the model does now, from the newest round."""
        report = next((track.report for track in reversed(self.tracks[-60:]) if track.report), None)
        return f"round {report.round}  cut {report.next_cut}  loss {report.loss:.4f}" if report else ""

    def _write_report(self) -> None:
        from streamdrop.evaluation.hardware import describe_hardware
        from streamdrop.evaluation.report import write_report

        assert self._report is not None
        assert self._key_frames is not None
        write_report(
            Path(self._report),
            self.tracks,
            source=getattr(self._stream, "name", "stream"),
            key_frames=self._key_frames,
            truth=self._truth,
            layers=self._layers,
            hardware=describe_hardware(),
            source_fps=getattr(self._stream, "fps", None),
        )


def events_of(frame: int, track: Track, target: int | None = None) -> Iterator[dict[str, Any]]:
    """The frame's event and those of the rounds that ran after it; with ``target``, its id, where that is given."""
    box = [round(float(value), 4) for value in track.box]
    whose = {} if target is None else {"target": target}
    off = {"put_off": True} if track.put_off else {}
    yield {"frame": frame, **whose, "box": box, "score": track.score, "lost": track.lost, "ms": track.ms, **off}
    for report in track.reports:
        yield {**round_event(frame, report), **whose}


def round_event(frame: int, report: RoundReport) -> dict[str, Any]:
    """A round as an event: what it did, at which cut, and what it cost in milliseconds."""
    return {
        "round": report.round,
        "after_frame": frame,
        "cut": report.cut,
        "next_cut": report.next_cut,
        "loss": report.loss,
        "ms": report.seconds * 1e3,
        "samples": report.samples,
        "tail_ms": report.tail_seconds * 1e3,
        "read_ms": report.read_seconds * 1e3,
        "write_ms": report.write_seconds * 1e3,
        "train_ms": report.train_seconds * 1e3,
        "cut_short": report.cut_short,
        **({"why": report.why} if report.why else {}),
        **({"thawed": True} if report.thawed else {}),
    }


def closed_by(outputs: ExitStack, output: Output | None) -> Output | None:
    """The output itself, which the stack will close."""
    if output is not None:
        outputs.callback(output.close)
    return output


def key_frames_for() -> KeyFrames:
    """What collects a report's pictures."""
    from streamdrop.evaluation.pictures import KeyFrames

    return KeyFrames()


def _read_truth(path: PathLike) -> Array:
    from streamdrop.evaluation.sequences import read_truth

    return read_truth(Path(path))


def video_writer(path: PathLike, stream: Iterable[Sample], size: tuple[int, int]) -> VideoWriter:
    """A writer of frames (width, height) at the stream's rate. Raises OutputError."""
    from streamdrop.streams import VideoWriter

    return VideoWriter(Path(path), getattr(stream, "fps", None), size)
