"""Stores to and from files that other programs read: ``.safetensors`` or ``.npz``, in shards, bit for bit.

``out.safetensors`` holds a whole export, or ``out-00001-of-00003.safetensors`` … its shards, samples in order of
arrival. Each is a file of named tensors, n samples along the first dimension:

=================== ================= ================================================================================
tensor              dtype, shape      what it is
=================== ================= ================================================================================
``activations.J``   any, [n, ...]     tensor J at the cut, decoded: a lossy store's values as it gives them out
``targets``         any, [n, ...]     where all targets are tensors of one shape and dtype
``targets.J``       any, [n, ...]     where all targets are tuples alike
``targets.present`` bool, [n]         only where some samples have none; their rows above are zeros
``targets.encoded`` uint8, [bytes]    targets of several structures instead, as ``records.encode_target`` makes them
                                      (of no bytes: no target)
``info.weight``     float64, [n]      of ``SampleInfo``, as are the next four
``info.pinned``     bool, [n]
``info.label``      int64, [n]        0 where ``info.labelled`` is false
``info.labelled``   bool, [n]
``info.stream``     int64, [n]        index into the metadata's ``streams``
``keys``            uint8, [bytes]
``sources``         uint8, [bytes]    encoded inputs (PNG, JPEG, raw: ``sources.py``), where any was kept
``sources.present`` bool, [n]
=================== ================= ================================================================================

Bytes lie one row after the other; beside ``X`` stands ``X.offsets``, int64 [n + 1]: row i is
``X[offsets[i]:offsets[i + 1]]``. The metadata (``tensorfile.py`` says where) is one JSON object: ``format`` (1),
``cut``, ``version``, ``codec`` (null: not known) and ``error`` of the store, ``stream`` (null: all), ``streams``,
``order`` (per tensor, a sample's dimensions from the largest stride to the smallest: restored on import), ``targets``
(none, tensor, tuple or encoded), ``export`` (the same in all shards), ``shard`` (from 1), ``first`` (number of the
shard's first sample), ``samples``, ``total``, ``tensors`` (dtype, shape and CRC-32 of each).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from streamdrop.atomic import sync
from streamdrop.errors import ConfigError, DataError, OutputError, StoreCorruptError, StoreError, StoreVersionError
from streamdrop.store.protocol import FeatureStore
from streamdrop.store.shards import Shard, pack, target_parts, unpack
from streamdrop.store.shardset import FORMAT, ShardFile, planned, shard_name
from streamdrop.store.tensorfile import SUFFIXES, Facts, read_tensors, write_tensors
from streamdrop.types import Activations, Target

SHARD_BYTES = 256 << 20
_CHUNK = 64

Tell = Callable[[int, int], None]
"""Called after each shard with the samples done and their total."""


def export_store(
    store: FeatureStore,
    out: str | os.PathLike[str],
    stream: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    tell: Tell | None = None,
) -> list[Path]:
    """Write all samples, or one ``stream``'s, to ``out``; returns the files. ``import_store`` reads them back.

    The suffix chooses the format, ``.safetensors`` or ``.npz``. One shard of about ``shard_bytes`` is in memory at a
    time; the files get their names when all are written. Raises DataError when the stream has no samples, StoreError
    when the store is promoted meanwhile, OutputError, ConfigError.
    """
    path = _target_path(out)
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes={shard_bytes} is not a number of bytes of at least 1")
    keys = store.keys(stream=stream) if stream is not None else store.keys()
    if stream is not None and not keys:
        raise DataError(f"the store has no samples of stream {stream!r}; it has {_stream_names(store)}")
    facts = _facts(store, stream, keys)
    parts: list[Path] = []
    done = 0
    try:
        for shard in _shards(store, keys, shard_bytes):
            parts.append(path.with_name(f".{path.stem}-{len(parts) + 1:05d}.part"))
            _write(store, shard, parts[-1], {**facts, "shard": len(parts), "first": done}, path.suffix)
            done += len(shard.keys)
            if tell is not None:
                tell(done, len(keys))
            del shard  # or it would stay while the next is read
        return _publish(parts, path)
    finally:
        for part in parts:
            with suppress(OSError):  # the export is done, or has failed already
                part.unlink()


def import_store(
    store: FeatureStore, files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], tell: Tell | None = None
) -> int:
    """Put the samples of an export's files into ``store``, durable when it returns; returns how many there were.

    All shards must be given, in any order. An empty store at cut 0 takes over cut and version; any other must have
    them. A shard is checked whole before its first sample is stored and is stored whole or not at all; a sample whose
    key is there is replaced. All count as arriving now. Raises DataError (missing files), StoreVersionError (other cut,
    version or format), StoreCorruptError, StoreFullError.
    """
    found = planned([Path(file) for file in ([files] if isinstance(files, (str, os.PathLike)) else files)])
    _check_fits(store, found)
    done, total = 0, sum(file.facts["samples"] for file in found)
    for file in found:
        shard = _read(file)
        _adopt(store, file)
        store.put_many(
            {key: tuple(t[i] for t in shard.batch) for i, key in enumerate(shard.keys)},
            {k: target for k, target in zip(shard.keys, shard.targets, strict=True) if target is not None},
            dict(zip(shard.keys, shard.info, strict=True)),
            {k: source for k, source in zip(shard.keys, shard.sources, strict=True) if source is not None},
        )
        done += len(shard.keys)
        if tell is not None:
            tell(done, total)
    store.flush()
    return done


def _target_path(out: str | os.PathLike[str]) -> Path:
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise OutputError(f"{path} is neither .safetensors nor .npz: end the name in the format you want")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} is no folder: create it first, or choose another")
    return path


def _stream_names(store: FeatureStore) -> str:
    names: set[str] = set()
    for keys in _chunks(store.keys()):
        names |= {info.stream for info in store.get_info(keys)}
    return ", ".join(repr(name) for name in sorted(names)[:10]) or "none"


def _chunks(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for at in range(0, len(keys), _CHUNK):
        yield keys[at : at + _CHUNK]


def _facts(store: FeatureStore, stream: str | None, keys: Sequence[bytes]) -> Facts:
    """What all shards say."""
    error = getattr(store, "error", None)
    facts: Facts = {
        "format": FORMAT,
        "cut": store.cut,
        "version": store.version,
        "codec": getattr(store, "codec", None),
        "error": error() if error is not None else {"max": 0.0, "mean": 0.0},
        "stream": stream,
        "total": len(keys),
    }
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8)
    for key in keys:
        digest.update(len(key).to_bytes(8, "big") + key)
    return {**facts, "export": digest.hexdigest()}


def _shards(store: FeatureStore, keys: Sequence[bytes], limit: int) -> Iterator[Shard]:
    """Consecutive samples of about ``limit`` bytes, without activations; one empty shard for an empty store."""
    row = sum(t.numel() * t.element_size() for t in store.get_many(keys[:1]))
    shard, size = Shard(), 0
    for chunk in _chunks(keys):
        for key, target, source in zip(chunk, _targets(store, chunk), store.get_sources(chunk), strict=True):
            more = row + len(source or b"") + sum(t.numel() * t.element_size() for t in target_parts(target))
            if shard.keys and size + more > limit:
                yield shard
                shard, size = Shard(), 0
            shard.keys.append(key)
            shard.targets.append(target)
            shard.sources.append(source)
            size += more
    if shard.keys or not keys:
        yield shard


def _targets(store: FeatureStore, keys: Sequence[bytes]) -> list[Target | None]:
    """Each sample's target: together where they stack, else one by one."""
    try:
        stacked = store.get_targets(keys)
    except DataError:
        if len(keys) == 1:
            raise
        return [target for key in keys for target in _targets(store, [key])]
    if stacked is None:
        return [None] * len(keys)
    if isinstance(stacked, tuple):
        return [tuple(t[i] for t in stacked) for i in range(len(keys))]
    return list(stacked.unbind())


def _write(store: FeatureStore, shard: Shard, path: Path, facts: Facts, suffix: str) -> None:
    shard.info = store.get_info(shard.keys)
    shard.batch = store.get_many(shard.keys) if shard.keys else ()
    if (store.cut, store.version) != (facts["cut"], facts["version"]):
        raise StoreError("the store was promoted while it was being exported: export it again")
    tensors, more = pack(shard)
    shard.batch = ()
    write_tensors(path, tensors, {**facts, **more}, suffix)


def _publish(parts: Sequence[Path], path: Path) -> list[Path]:
    count = len(parts)
    names = [path.with_name(shard_name(path.stem, n, count) + path.suffix) for n in range(1, count + 1)]
    try:
        for part, name in zip(parts, names, strict=True):
            os.replace(part, name)
        sync(path.parent)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): choose another name") from None
    return names


def _check_fits(store: FeatureStore, files: Sequence[ShardFile]) -> None:
    """Raise StoreVersionError unless all files can go into the store, as far as can be said without reading them."""
    blank = not len(store) and not store.cut
    cut, version = files[0].tail if blank else (store.cut, store.version)
    for file in files:
        if file.tail != (cut, version):
            raise StoreVersionError(
                f"{file.path} holds cut {file.facts['cut']} of version {file.facts['version']!r}, "
                f"{files[0].path if blank else 'the store'} cut {cut} of version {version!r}: import into a new store, "
                "or export from one at the same cut of the same model"
            )


def _read(file: ShardFile) -> Shard:
    tensors = read_tensors(file.path, file.facts)
    try:
        return unpack(tensors, file.facts)
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise StoreCorruptError(f"{file.path} is damaged ({reason}): export the store again") from error


def _adopt(store: FeatureStore, file: ShardFile) -> None:
    """An empty store at cut 0 becomes one of the files' cut and model."""
    if (store.cut, store.version) != file.tail:
        store.advance(file.facts["cut"], _nothing_to_promote, file.facts["version"])


def _nothing_to_promote(activations: Activations) -> Activations:
    raise StoreError("the store holds back removed samples of another cut: release them, or import into a new store")
