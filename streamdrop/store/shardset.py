"""Which files make an export: their names, and whether all of its shards are there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streamdrop.errors import DataError, StoreCorruptError, StoreVersionError
from streamdrop.store.tensorfile import Facts, read_facts

FORMAT = 1
"""Number of the file format; files with a higher one are refused."""

_NUMBERED = re.compile(r"(.*)-(\d{5,})-of-(\d{5,})")
_FACTS = {
    "cut": int, "version": str, "export": str, "shard": int, "first": int, "samples": int, "total": int,
    "order": list, "streams": list, "targets": str, "tensors": dict,
}  # fmt: skip


def shard_name(stem: str, number: int, count: int) -> str:
    """``out-00001-of-00003``; ``out`` when it is the only one."""
    return f"{stem}-{number:05d}-of-{count:05d}" if count > 1 else stem


@dataclass(frozen=True)
class ShardFile:
    """A file and what it says about itself."""

    path: Path
    facts: Facts

    @property
    def tail(self) -> tuple[int, str]:
        """Cut and version of its activations."""
        return self.facts["cut"], self.facts["version"]

    @property
    def export(self) -> str:
        """Which export it belongs to."""
        return str(self.facts["export"])

    @property
    def shard(self) -> int:
        """As which shard, from 1."""
        return int(self.facts["shard"])


def _described(path: Path) -> ShardFile:
    facts = read_facts(path)
    written = facts.get("format")
    if isinstance(written, int) and written > FORMAT:
        raise StoreVersionError(f"{path} has format {written}, this release reads up to {FORMAT}: upgrade streamdrop")
    wrong = [name for name, kind in _FACTS.items() if not isinstance(facts.get(name), kind)]
    if wrong:
        raise StoreCorruptError(f"{path} does not say its {wrong[0]}: export the store again")
    return ShardFile(path, facts)


def planned(paths: Sequence[Path]) -> list[ShardFile]:
    """The files in order of arrival, each export whole. Raises DataError, StoreVersionError, StoreCorruptError."""
    files = [_described(path) for path in dict.fromkeys(paths)]
    if not files:
        raise DataError("no file to import: give the files that an export wrote")
    exports: dict[str, list[ShardFile]] = {}
    for file in files:
        exports.setdefault(file.export, []).append(file)
    for shards in exports.values():
        shards.sort(key=lambda file: file.shard)
        _check_whole(shards)
    return [file for shards in exports.values() for file in shards]


def _check_whole(shards: Sequence[ShardFile]) -> None:
    count = 0
    for number, file in enumerate(shards, 1):
        if file.shard < number:
            raise DataError(
                f"{file.path} is shard {number - 1}, which {shards[number - 2].path} is too: give one of them"
            )
        if file.shard > number or file.facts["first"] != count:
            raise _missing(file, number)
        count += file.facts["samples"]
    if count != shards[-1].facts["total"]:
        raise _missing(shards[-1], len(shards) + 1)


def _missing(beside: ShardFile, number: int) -> DataError:
    numbered = _NUMBERED.fullmatch(beside.path.stem)
    name = f"{numbered[1]}-{number:05d}-of-{numbered[3]}{beside.path.suffix}" if numbered else "a file"
    return DataError(f"{name} is missing: shard {number} of the export that {beside.path} belongs to; give all shards")
