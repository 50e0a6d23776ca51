"""A look at a store on disk without changing it: ``streamdrop store info`` and ``verify``."""

from __future__ import annotations

import zlib
from collections import Counter
from os import PathLike
from pathlib import Path
from typing import Any

from streamdrop.errors import StoreCorruptError
from streamdrop.store.header import check_file
from streamdrop.store.integrity import survives
from streamdrop.store.layout import dtype_name
from streamdrop.store.lmdb import LmdbStore
from streamdrop.store.records import decode_entry, stack_targets
from streamdrop.store.state import FORMAT, State
from streamdrop.store.tables import Tables


def store_info(path: str | PathLike[str]) -> dict[str, Any]:
    """What the store at ``path`` holds, as JSON values. Sizes in bytes; ``error`` is that of a lossy codec.

    Opens read-only, beside a writer too, and never creates. Raises StoreError when nothing is there,
    StoreVersionError, StoreCorruptError.
    """
    with LmdbStore(path, read_only=True) as store, store.reading() as (tables, state):
        parts = state.layout.tensors if state.layout else ()
        held = tables.count(b"held")
        streams = Counter(info.stream for _, info in tables.infos(state.last))
        return {
            "path": str(store.path),
            "format": FORMAT,
            "codec": state.codec,
            "error": state.drift.report(),
            "cut": state.cut,
            "version": state.version,
            "samples": state.count,
            "pinned": state.pinned,
            "held": held,
            "streams": dict(sorted(streams.items())),
            "shapes": [list(t.shape) for t in parts],
            "dtypes": [dtype_name(t.dtype) for t in parts],
            "bytes_per_sample": state.layout.nbytes if state.layout else 0,
            "bytes_live": state.count * (state.layout.nbytes if state.layout else 0),
            "bytes_on_disk": sum(f.stat().st_blocks * 512 for f in store.path.iterdir() if f.is_file()),
        }


def verify(path: str | PathLike[str]) -> dict[str, Any]:
    """Read every record: {"path", "samples", "held", "problems": [one line each]}; no problems means all decode.

    Opens read-only and never creates. Raises as ``store_info`` does.
    """
    folder = Path(path)
    check_file(folder, read_only=True)
    if not survives(folder):  # tried in a process of its own: damaged pages can kill the one that reads them
        raise StoreCorruptError(f"{folder} cannot be read through: restore it from a copy, or remove it to start anew")
    with LmdbStore(folder, read_only=True) as store, store.reading() as (tables, state):
        return {
            "path": str(folder),
            "samples": state.count,
            "held": tables.count(b"held"),
            "problems": _check(tables, state),
        }


def _check(tables: Tables, state: State) -> list[str]:
    problems: list[str] = []
    count = 0
    for seq, entry in tables.living(state.last):
        count += 1
        problems += _check_sample(tables, state, seq, bytes(entry), live=True)
    for seq, _, entry in tables.held():
        problems += _check_sample(tables, state, seq, entry, live=False)
    if count != state.count:
        problems.append(f"{count} samples are there, {state.count} were counted")
    return problems


def _check_sample(tables: Tables, state: State, seq: int, entry: bytes, live: bool) -> list[str]:
    try:
        key, _ = decode_entry(entry)
        target = tables.target(seq)
        if target is not None:
            stack_targets([target])
        value = tables.value(state.generation, seq, state.layout.nbytes if state.layout else 0)
    except StoreCorruptError as error:
        return [f"sample {seq}: {error}"]
    problems = []
    if live and tables.find(key) != seq:
        problems.append(f"sample {seq}: its key {key!r} leads elsewhere")
    if zlib.crc32(value[: -CRC.size]) != CRC.unpack(value[-CRC.size :])[0]:
        problems.append(f"sample {seq} ({key!r}): its activations have changed since they were written")
    return problems
