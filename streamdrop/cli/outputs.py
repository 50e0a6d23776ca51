"""Where ``streamdrop track`` writes what."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdrop.errors import ConfigError

if TYPE_CHECKING:
    from streamdrop.service.group_recorder import GroupRecorder
    from streamdrop.service.recorder import Recorder

STDOUT = "-"
"""The name that stands for the standard output."""


def _named(options: argparse.Namespace) -> dict[str, str | None]:
    """The outputs as the user named them."""
    return {
        "boxes": options.boxes,
        "mot": options.mot,
        "events": options.events,
        "video": options.output,
        "report": options.report,
    }


def recorded(options: argparse.Namespace) -> dict[str, Any]:
    """The outputs as a recorder takes them."""
    return {name: _Stdout() if text == STDOUT else text for name, text in _named(options).items()}


def written(options: argparse.Namespace) -> list[tuple[str, str]]:
    """What is written, under which name: of several targets each has boxes and a page of its own."""
    targets = len(options.box or [0])
    found: list[tuple[str, str]] = []
    for name, text in _named(options).items():
        if text is None:
            continue
        if targets == 1 or name != "boxes":
            found.append((name, text))
        if targets > 1 and name in ("boxes", "report"):
            from streamdrop.service.group_recorder import of_target

            found += [(name, str(of_target(text, key))) for key in range(1, targets + 1)]
    return found


class _Stdout(io.TextIOBase):
    """The standard output as a file that a recorder may close."""

    def write(self, text: str) -> int:
        return sys.stdout.write(text)

    def flush(self) -> None:
        sys.stdout.flush()


def unequal(options: argparse.Namespace, recorder: Recorder | GroupRecorder) -> Iterator[str]:
    """A line for every file of true boxes that has more or fewer than the stream has frames."""
    recorders = getattr(recorder, "recorders", {1: recorder}).values()
    for path, one in zip(options.truth or (), recorders, strict=False):
        boxes, frames = len(one.truth), len(one.tracks)
        if boxes != frames:
            yield f"{path} has {boxes} lines for {frames} frames: the overlap is of the first {min(boxes, frames)}"


def check_outputs(options: argparse.Namespace) -> None:
    """Refuse outputs that would be written over each other, or over what is read."""
    from streamdrop.streams.images import SUFFIXES

    taken = {Path(text).resolve(): text for text in (options.source, options.config, *(options.truth or [])) if text}
    if options.boxes == STDOUT and len(options.box or [0]) > 1:
        raise ConfigError("boxes: each target has a file of its own: give a name, or --mot - or --events -")
    for name, text in written(options):
        if text == STDOUT and name in ("video", "report"):
            raise ConfigError(f"{name}: the standard output (-) is for boxes, mot or events: give a file's name")
        path = Path(text).resolve()
        if path.exists() and not path.is_file():  # devices and pipes take more than one
            continue
        if path.suffix.lower() in SUFFIXES and path.parent in taken and path.exists():
            raise ConfigError(f"{name}: {text} is a frame of {options.source}: give it another place")
        if path in taken:
            raise ConfigError(f"{name}: {text} would be written over {taken[path]}: give it another place")
        taken[path] = f"the {name}"
