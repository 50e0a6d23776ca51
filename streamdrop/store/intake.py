"""What a caller hands to ``put_many``, checked whole before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from streamdrop.errors import DataError, MissingKeyError
from streamdrop.store.layout import Layout
from streamdrop.store.protocol import Sources, Targets
from streamdrop.store.records import as_target, check_info, encode_target
from streamdrop.types import Activations, SampleInfo

_PLAIN = SampleInfo()


@dataclass(frozen=True)
class Incoming:
    """A sample on its way in: its target already as bytes, its source as the caller encoded it."""

    key: bytes
    activations: Activations
    target: bytes | None
    info: SampleInfo
    source: bytes | None = None


def take_in(
    samples: Mapping[bytes, Activations],
    targets: Targets | None,
    info: Mapping[bytes, SampleInfo] | None,
    layout: Layout | None,
    codec: str,
    sources: Sources | None = None,
) -> tuple[list[Incoming], Layout | None]:
    """Checked samples in order, and the layout (the first sample's when there was none). Raises DataError."""
    layout = check_activations(samples, layout, codec)
    encoded = _encode_targets(list(samples), targets)
    infos = {key: check_info(key, value) for key, value in _mapping("info", info).items()}
    _refuse_strangers("info", infos, samples)
    given = {key: _check_source(key, source) for key, source in _mapping("sources", sources).items()}
    _refuse_strangers("sources", given, samples)
    incoming = [
        Incoming(key, tuple(activations), encoded.get(key), infos.get(key, _PLAIN), given.get(key))
        for key, activations in samples.items()
    ]
    return incoming, layout


def check_activations(samples: Mapping[bytes, Activations], layout: Layout | None, codec: str) -> Layout | None:
    """The layout all samples fit: the given one, or the first sample's. Raises DataError."""
    for key, activations in samples.items():
        check_key(key)
        _check_tensors(key, activations)
        layout = layout or Layout.of(tuple(activations), codec)
        layout.check(key, activations)
    return layout


def check_key(key: object) -> bytes:
    """``key`` if it can name a sample. Raises DataError."""
    if not isinstance(key, bytes) or not key:
        raise DataError(f"sample key {key!r} is not bytes of at least one byte: encode it, e.g. str(i).encode()")
    return key


def check_keys(keys: Sequence[bytes]) -> list[bytes]:
    """A list of valid keys; one bytes object is taken for the mistake it is. Raises DataError."""
    if isinstance(keys, (bytes, str)):
        raise DataError(f"keys is the single key {keys!r}: give a list of keys")
    return [check_key(key) for key in keys]


def missing(keys: Iterable[bytes]) -> MissingKeyError:
    """The error that names keys which are not in the store."""
    names = list(dict.fromkeys(keys))
    shown = ", ".join(repr(k) for k in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return MissingKeyError(f"not in the store: {shown}; store.keys() lists what is")


def _check_source(key: bytes, source: object) -> bytes:
    if not isinstance(source, bytes):
        raise DataError(f"source of sample {key!r} is a {type(source).__name__}, not bytes: encode_source makes them")
    return source


def _check_tensors(key: bytes, activations: object) -> None:
    if not isinstance(activations, (tuple, list)) or not activations:
        raise DataError(f"sample {key!r} is a {type(activations).__name__}, not a tuple of at least one tensor")
    for tensor in activations:
        if not isinstance(tensor, torch.Tensor):
            raise DataError(f"sample {key!r} holds a {type(tensor).__name__} where a tensor belongs")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise DataError(f"sample {key!r} holds a sparse, quantised or meta tensor: give dense tensors")


def _mapping(what: str, given: Any) -> Mapping[bytes, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise DataError(f"{what} is a {type(given).__name__}: give a mapping by key")
    return given or {}


def _encode_targets(keys: list[bytes], targets: Targets | None) -> dict[bytes, bytes]:
    given = _by_key(keys, targets)
    _refuse_strangers("targets", given, keys)
    return {key: encode_target(as_target(key, value)) for key, value in given.items() if value is not None}


def _by_key(keys: list[bytes], targets: Targets | None) -> dict[bytes, Any]:
    if targets is None:
        return {}
    if isinstance(targets, Mapping):
        return dict(targets)
    if isinstance(targets, tuple) and targets and all(isinstance(t, torch.Tensor) for t in targets):
        rows: list[Any] = [_rows(t, len(keys)) for t in targets]
        return dict(zip(keys, zip(*rows, strict=True), strict=True))
    return dict(zip(keys, _rows(targets, len(keys)), strict=True))


def _rows(values: Any, count: int) -> Any:
    try:
        length = len(values)
    except TypeError as error:
        raise DataError(f"targets are a {type(values).__name__}: give a tensor, a list or a mapping by key") from error
    if length != count:
        raise DataError(f"{length} targets for {count} samples: give one for each")
    return values


def _refuse_strangers(what: str, given: Mapping[bytes, Any], samples: Iterable[bytes]) -> None:
    strangers = given.keys() - set(samples)
    if strangers:
        raise DataError(f"{what} for {min(strangers, key=repr)!r}, which is not among the samples being stored")
