"""``streamdrop store info|verify|compact|export|import``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdrop.cli.terminal import Progress
from streamdrop.errors import ConfigError, StoreCorruptError

if TYPE_CHECKING:
    from streamdrop.store.inspection import Recompute


def print_info(options: argparse.Namespace) -> int:
    """Print what a store holds."""
    from streamdrop.store.inspection import store_info

    _print(store_info(options.path), options.json)
    return 0


def print_verify(options: argparse.Namespace) -> int:
    """Read every record of a store. Fails when one does not decode, or is not what its source gives again."""
    from streamdrop.store.examination import repair
    from streamdrop.store.inspection import verify

    recompute, note = _recomputer(options)
    repaired = repair(options.path) if options.repair else {}
    with _progress() as tell:
        result = {**verify(options.path, recompute, tell=tell), **repaired}
    if note is not None:
        result["note"] = note
    _print(result, options.json)
    if result["problems"]:
        remedy = "observe them again" if options.repair else "drop what is damaged with --repair, or observe it again"
        raise StoreCorruptError(
            f"{options.path}: {len(result['problems'])} records are not as they should be: {remedy}"
        )
    return 0


def compact(options: argparse.Namespace) -> int:
    """Give back the room of what was removed; print the bytes before and after."""
    from streamdrop.store.header import check_file
    from streamdrop.store.inspection import file_sizes
    from streamdrop.store.lmdb import LmdbStore

    path = Path(options.path)
    check_file(path, read_only=True)  # opening for writing would create one
    before = sum(file_sizes(path).values())
    with LmdbStore(path) as store:
        store.compact()
    after = sum(file_sizes(path).values())
    _print({"path": str(path), "bytes_before": before, "bytes_after": after}, options.json)
    return 0


def export(options: argparse.Namespace) -> int:
    """Write a store's samples to files; print their names."""
    from streamdrop.store.exchange import export_store
    from streamdrop.store.lmdb import LmdbStore

    with LmdbStore(options.path, read_only=True) as store, _progress() as tell:
        files = export_store(store, options.out, options.stream, tell=tell)
        result = {"path": str(store.path), "files": [str(file) for file in files]}
    if options.json:
        _print(result, as_json=True)
    else:
        print("\n".join(result["files"]))
    return 0


def import_files(options: argparse.Namespace) -> int:
    """Put the samples of exported files into a store, a new one where there is none; print how many."""
    from streamdrop.store.exchange import import_store
    from streamdrop.store.lmdb import LmdbStore
    from streamdrop.store.shardset import planned

    planned([Path(file) for file in options.files])  # wrong files are refused before a store is created for them
    with LmdbStore(options.path) as store, _progress() as tell:
        count = import_store(store, options.files, tell)
        result = {"path": str(store.path), "imported": count, "samples": len(store), "cut": store.cut}
    _print(result, options.json)
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    with Progress("samples", None) as progress:
        yield lambda done, total: progress.advance(f"{done} of {total}")


def _recomputer(options: argparse.Namespace) -> tuple[Recompute | None, str | None]:
    if options.model is None:
        if options.weights is not None or options.classes is not None:
            raise ConfigError("--weights and --classes say what --model is: give --model too")
        return None, None
    if options.weights is None:
        raise ConfigError(f"--model {options.model} without --weights would be a random network: give its weights")
    from streamdrop.cli.recompute import recomputer

    return recomputer(options.path, options.model, options.weights, options.classes)


def _print(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values, indent=1))
        return
    width = max(len(key) for key in values)
    for key, value in values.items():
        lines = value if isinstance(value, list) and value and isinstance(value[0], str) else [value]
        for at, line in enumerate(lines):
            print(f"{key if not at else '':<{width}}  {line}")
