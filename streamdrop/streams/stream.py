"""A stream: frames of one source as samples, numbered, keyed and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from streamdrop.errors import StreamError
from streamdrop.types import Batch, Image, Sample

Prepare = Callable[[Image], Any]
"""From a frame, uint8 H×W×3 RGB, to what the model takes."""

LONGEST_NAME = 200
"""Bytes of a stream's name that enter a key: LMDB keys end at 511 bytes."""


def sample_key(stream: str, target: str | int, frame: int) -> bytes:
    """``stream/target/`` and the frame number as 8 big-endian bytes: keys of one target sort by arrival.

    Raises ValueError for a target that holds a slash, or a frame outside 0 … 2**64 - 1.
    """
    if "/" in str(target):
        raise ValueError(f"target {target!r} holds a slash: name it without one")
    if not 0 <= frame < 2**64:
        raise ValueError(f"frame {frame} is not in 0 … 2**64 - 1")
    name = stream.encode(errors="surrogateescape")[-LONGEST_NAME:]
    return name + b"/" + str(target).encode() + b"/" + frame.to_bytes(8, "big")


@dataclass(frozen=True)
class Frame:
    """What a source yields: ``image`` uint8 H×W×3 RGB, or None where it could not be decoded.

    ``seconds`` is the presentation time where the source knows it; ``dropped`` counts frames that arrived before
    this one and were passed over because the consumer was busy (live sources only). ``damaged``: the decoder made up
    what was missing.
    """

    image: Image | None
    seconds: float | None = None
    dropped: int = 0
    damaged: bool = False


class Source(Protocol):
    """Where a stream's frames come from. ``frames`` starts again each time unless the source is live or one-shot."""

    name: str
    fps: float | None
    size: tuple[int, int] | None
    length: int | None
    live: bool
    notice: str | None

    def frames(self) -> Iterator[Frame | Sample | Batch]:
        """Yields in order of arrival. A set ``notice`` at the end says that the source ended too early."""
        ...

    def close(self) -> None:
        """Gives the device, file or connection back. Idempotent."""
        ...


class Stream:
    """An iterable of Samples (or of Batches, when the source is labelled) with what is known about the source.

    ``fps``: frames per second, None when the source does not say. ``size``: (width, height) of the first frame, None
    when unknown before reading. ``length``: frames according to the header, None when unknown. ``live``: frames come
    when they come, and those that arrive while the consumer is busy are ``dropped``. ``skipped``: frames of the
    current pass that could not be decoded; their index is passed over. ``damaged``: those that were decoded in part.
    ``seen``: frames of the current pass so far, skipped and dropped ones among them. ``truncated``: the pass ended
    before the header said; ``notice`` then says so in one line.

    Files start again with every ``iter``; the counters then start again too. ``close`` ends the stream.
    """

    def __init__(self, source: Source, prepare: Prepare | None = None) -> None:
        self._source = source
        self._prepare = prepare
        self._closed = False
        self.name = source.name
        self.fps = source.fps
        self.size = source.size
        self.length = source.length
        self.live = source.live
        self.skipped = 0
        self.dropped = 0
        self.damaged = 0
        self.seen = 0

    @property
    def notice(self) -> str | None:
        """One line on what was wrong with the pass just made, None when nothing was."""
        if self._source.notice:
            return self._source.notice
        if self.skipped:
            return f"{self.name}: {self.skipped} frame(s) could not be decoded and were skipped"
        if self.damaged:
            return f"{self.name}: {self.damaged} frame(s) are damaged, their pictures partly made up by the decoder"
        return None

    @property
    def truncated(self) -> bool:
        """Whether the pass just made ended before the header says."""
        return self._source.notice is not None

    def __iter__(self) -> Iterator[Any]:
        """Samples or Batches; raises StreamError when the stream was closed."""
        if self._closed:
            raise StreamError(f"stream {self.name} is closed: open it again with open_stream")
        self.skipped, self.dropped, self.damaged, self.seen = 0, 0, 0, 0
        return self._samples()

    def _samples(self) -> Iterator[Any]:
        index = 0
        for item in self._source.frames():
            if isinstance(item, Batch):
                yield item
                continue
            if isinstance(item, Sample):
                yield item if self._prepare is None else self._prepared(item)
                continue
            index += item.dropped
            self.seen = index + 1
            self.dropped += item.dropped
            self.damaged += item.damaged
            if item.image is None:
                self.skipped += 1
            else:
                image = item.image if self._prepare is None else self._prepare(item.image)
                yield Sample(sample_key(self.name, 0, index), image, index, item.seconds)
            index += 1
            if self._closed:
                return

    def _prepared(self, sample: Sample) -> Sample:
        assert self._prepare is not None
        return Sample(sample.key, self._prepare(sample.image), sample.index, sample.seconds)

    def close(self) -> None:
        """Ends the stream and frees the source. Idempotent."""
        self._closed = True
        self._source.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        size = f"{self.size[0]}x{self.size[1]}" if self.size else "size unknown"
        rate = f"{self.fps:g} fps" if self.fps else "rate unknown"
        count = f"{self.length} frames" if self.length is not None else "length unknown"
        return f"Stream({self.name!r}, {size}, {rate}, {count}{', live' if self.live else ''})"
