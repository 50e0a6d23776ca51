"""What one stream tells the world: events to its journal and listeners, files, pictures to viewers."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from streamdrop.errors import StreamdropError
from streamdrop.service.files import OutputFiles
from streamdrop.service.frames import Arrival
from streamdrop.service.journal import Journal, last_events
from streamdrop.service.pictures import Pictures
from streamdrop.service.recorder import events_of, round_event
from streamdrop.service.settings import LimitsConfig, OutputsConfig
from streamdrop.service.stats import Stats
from streamdrop.types import RoundReport, Track

log = logging.getLogger("streamdrop")


class Broadcast:
    """``listeners`` are called with every event, ``viewers`` whenever there is a new picture; they must not raise.

    An output that fails is counted and named in ``error`` until it works again; the stream goes on. Raises OutputError
    where a file cannot be opened at all.
    """

    def __init__(
        self, name: str, config: OutputsConfig, limits: LimitsConfig, folder: Path, fps: float | None, stats: Stats
    ) -> None:
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self.viewers: list[Callable[[], None]] = []
        self.pictures = Pictures()
        self._errors: dict[str, str] = {}  # what cannot be written at present, and why
        self._name, self._stats = name, stats
        self._telling = threading.Lock()  # the reader's thread and the worker's both have something to tell
        journal = folder / "events.jsonl"
        stats.remember(last_events(journal) if config.events else [])
        self._journal = Journal(journal, limits.events_mb * 2**20, limits.events_files) if config.events else None
        self._files = OutputFiles(config, folder, fps)

    @property
    def error(self) -> str | None:
        """What cannot be written at present; None while all is well."""
        return next(iter(tuple(self._errors.values())), None)

    def tell(self, event: dict[str, Any]) -> None:
        """An event to the journal and every listener, with the time of day."""
        event = {**event, "time": event.get("time", round(time.time(), 3))}
        with self._telling:
            journal = self._journal
            if journal is not None:
                self.written("events", lambda: journal.write(event))
            for listener in tuple(self.listeners):
                listener(event)

    def show(self, arrival: Arrival, targets: list[dict[str, Any]]) -> None:
        """A new picture to look at."""
        self.pictures.put(arrival.number, arrival.image, targets)
        for viewer in tuple(self.viewers):
            viewer()

    def record(self, arrival: Arrival, tracks: dict[int, Track], film: bool = True) -> None:
        """A tracked frame into the files; ``film``: into the video too."""
        self.written("files", lambda: self._files.add(arrival.number, arrival.image, tracks, film))

    def written(self, what: str, write: Callable[[], None]) -> None:
        """Run what writes; a failure is counted, the log hears of it once, and once more when ``what`` works again."""
        try:
            write()
        except (StreamdropError, ValueError, OSError) as error:
            self._stats.counters.output_failures += 1
            if self._errors.get(what) != str(error):
                self._errors[what] = str(error)
                log.error("%s: %s", self._name, error)
        else:
            if self._errors.pop(what, None) is not None:
                log.info("%s: %s can be written again", self._name, what)

    def close(self) -> None:
        """Finish all files, durable."""
        with contextlib.suppress(StreamdropError, OSError):
            self._files.close()
        if self._journal is not None:
            with contextlib.suppress(OSError):
                self._journal.sync()
            self._journal.close()


def stream_events(number: int, tracks: dict[int, Track], latency: float) -> list[dict[str, Any]]:
    """Each target's event of a frame and its rounds', with the time of day and ``latency`` seconds from arrival on."""
    now = round(time.time(), 3)
    events = []
    for key, track in tracks.items():
        frame = next(events_of(number, track, key))
        events.append({**frame, "time": now, "latency_ms": round(latency * 1e3, 1)})
        events += stream_rounds(number, key, track.reports)
    return events


def stream_rounds(number: int, key: int, reports: Iterable[RoundReport]) -> list[dict[str, Any]]:
    """A target's rounds after a frame, with the time of day and what the page shows of them: importance, the reason."""
    now = round(time.time(), 3)
    return [
        {
            **round_event(number, report),
            "target": key,
            "time": now,
            "importance": report.importance,
            "why": report.why,
            "thawed": report.thawed,
        }
        for report in reports
    ]
