"""Several trackers' checkpoints, replaced together.

::

    path/current          the name of the folder that counts, replaced in one step
    path/set-000007/      targets.json, and each tracker's checkpoint in a folder named by its id

targets.json carries a digest of the state in it, since format 2; format 1 is read too.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from streamdrop.atomic import replace_text
from streamdrop.checkpoint import numbered, remove_unfinished
from streamdrop.errors import CheckpointError, OutputError
from streamdrop.tracking.tracker import Tracker

FORMAT = 2
_UNDIGESTED = 1


def write_targets(path: str | os.PathLike[str], trackers: Mapping[int, Tracker], state: dict[str, Any]) -> None:
    """Save every tracker beside plain ``state``; killed at any point, ``path`` holds the old set or the new one.

    Raises OutputError.
    """
    root = Path(path)
    last = max(numbered(root, "set"), default=0)
    folder = root / f"set-{last + 1:06d}"
    try:
        folder.mkdir(parents=True)
        for key, tracker in sorted(trackers.items()):
            tracker.save(folder / str(key), hold=True)
        replace_text(folder / "targets.json", json.dumps({"format": FORMAT, "digest": _digest(state), **state}))
        replace_text(root / "current", folder.name)
    except BaseException as error:
        remove_unfinished(folder)
        if not isinstance(error, OSError):
            raise
        raise OutputError(
            f"{root}: the checkpoint cannot be written ({error}): free space or choose another folder"
        ) from None
    for tracker in trackers.values():
        tracker.learner.tuner.release()
    for old in numbered(root, "set").values():
        if old.name != folder.name:
            shutil.rmtree(old, ignore_errors=True)


def read_targets(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """The folder of the set that counts, and its plain state. Raises CheckpointError."""
    root = Path(path)
    try:
        folder = root / (root / "current").read_text(encoding="utf-8").strip()
        state = _whole(json.loads((folder / "targets.json").read_text(encoding="utf-8")))
    except OSError:
        raise CheckpointError(
            f"{root}: no checkpoint of several targets here: give the folder that save() wrote"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{root}: the checkpoint is damaged ({error}): start anew or take a backup") from None
    if state is None:
        raise CheckpointError(f"{folder}: not of format {FORMAT}: it needs another version of streamdrop")
    return folder, state


def _whole(written: Any) -> dict[str, Any] | None:
    """The state in what a file holds, None: of another format. Raises ValueError where it is not as it was written."""
    kept = dict(written) if isinstance(written, dict) else {}
    kind, digest = kept.pop("format", None), kept.pop("digest", None)
    if kind == FORMAT and digest != _digest(kept):
        raise ValueError("targets.json changed since it was written")
    return kept if kind in (FORMAT, _UNDIGESTED) else None


def _digest(state: dict[str, Any]) -> str:
    """xxh3-64 of plain data as JSON, in hex, whichever order its keys are in."""
    return xxhash.xxh3_64_hexdigest(json.dumps(state, sort_keys=True).encode())
