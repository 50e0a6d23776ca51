"""Checkpoints on disk: safetensors and JSON in a folder of their own, made current by one pointer.

::

    path/current             the name of the state folder that counts, replaced in one step
    path/state-000007/       model, optimizer, scores (and store) .safetensors, state.json; digests.json of them all

A new state is written and made durable beside the old one before the pointer moves; killed at any point, the folder
holds one whole state. What has changed since it was written is refused. Earlier releases wrote no digests: state.json
says that there are some (``digests``), so that losing them does not make a state an old one.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from streamdrop.atomic import replace_text, sync, write_text
from streamdrop.errors import CheckpointError, OutputError
from streamdrop.safetensors_file import write_tensors
from streamdrop.store.digest import file_digest

FORMAT = 2
_DIGESTS = "digests.json"
Parts = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint will hold: ``parts``, tensors by part name, and ``state`` as JSON ``text``.

    The tensors are the ones that training changes, unless they are its ``own``: write it before that goes on, or a copy
    whenever you like.
    """

    parts: Parts
    state: dict[str, Any]
    text: str
    own: bool = False

    def copied(self) -> Snapshot:
        """With tensors of its own."""
        return replace(self, parts={name: _plain(tensors) for name, tensors in self.parts.items()}, own=True)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Make it durable at ``path``. Raises OutputError."""
        parts = self.parts.items() if self.own else ((name, _plain(part)) for name, part in self.parts.items())
        write_checkpoint(path, parts, self.text)


def take_snapshot(parts: Parts, state: dict[str, Any]) -> Snapshot:
    """Tensors by part name and a JSON-able ``state``. Raises CheckpointError where that is not plain data."""
    for part, held in parts.items():
        for name, tensor in held.items():
            _check_tensor(tensor, f"{name} ({part})")
    for place in _unnamed(state.get("extra"), "extra"):
        raise CheckpointError(f"the state to save has {place}, which JSON would give back as text: use text as keys")
    try:
        return Snapshot(parts, state, json.dumps({"format": FORMAT, "digests": True, **state}, default=_number))
    except TypeError as error:
        raise CheckpointError(f"the state to save is not plain data ({error}): keep to numbers and text") from None


def _check_tensor(tensor: Tensor, name: str) -> None:
    """Raise CheckpointError for a tensor that safetensors has no form for."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise CheckpointError(f"{name} is sparse or quantised, which no checkpoint holds: keep it dense")
    if not _storable(tensor.dtype):
        raise CheckpointError(f"{name} is {tensor.dtype}, which no checkpoint holds: keep it in another dtype")


@functools.cache
def _storable(dtype: torch.dtype) -> bool:
    try:
        save({"": torch.empty(1, dtype=dtype, device="cpu")})
    except (KeyError, SafetensorError, NotImplementedError, RuntimeError, TypeError):
        return False
    return True


def _number(value: Any) -> Any:
    """A number of numpy's, such as a learning rate, as a plain one."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _unnamed(value: Any, where: str) -> Iterator[str]:
    """Every key in plain data that is no text."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield f"the key {key!r} in {where}"
            yield from _unnamed(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _unnamed(item, f"{where}[{index}]")


def write_checkpoint(path: str | os.PathLike[str], parts: Iterable[tuple[str, dict[str, Tensor]]], text: str) -> None:
    """Write plain tensors by part name and the state's ``text``; killed at any point, ``path`` is the old or the new.

    Raises OutputError where the folder cannot be written.
    """
    root = Path(path)
    try:
        last = max(numbered(root, "state"), default=0)
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        raise OutputError(f"{str(root)[:80]!r}: no checkpoint can lie there ({error}): choose another folder") from None
    folder = root / f"state-{last + 1:06d}"
    try:
        folder.mkdir(parents=True)
        for name, tensors in parts:
            write_tensors(folder / f"{name}.safetensors", tensors)
        write_text(folder / "state.json", text)
        write_text(folder / _DIGESTS, json.dumps(_digests(folder)))
        sync(folder)
        replace_text(root / "current", folder.name)
    except BaseException as error:
        remove_unfinished(folder)
        if not isinstance(error, (OSError, SafetensorError)):
            raise
        raise OutputError(
            f"{root}: the checkpoint cannot be written ({error}): free space or choose another folder"
        ) from None
    for old in numbered(root, "state").values():
        if old.name != folder.name:
            shutil.rmtree(old, ignore_errors=True)


def numbered(root: Path, kind: str) -> dict[int, Path]:
    """The folders ``kind``-000001 … by number, whole or not; what else lies there is its owner's."""
    found = ((re.fullmatch(rf"{kind}-([0-9]{{6,}})", path.name), path) for path in root.glob(f"{kind}-*"))
    return {int(match[1]): path for match, path in found if match is not None}


def remove_unfinished(folder: Path) -> None:
    """Remove a state that could not be written, which would keep a full disk full, unless the pointer names it."""
    try:
        current = (folder.parent / "current").read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        current = ""
    except OSError:
        return
    if current != folder.name:
        shutil.rmtree(folder, ignore_errors=True)


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[Parts, dict[str, Any]]:
    """The tensors by part and the state of the current checkpoint. Raises CheckpointError."""
    root = Path(path)
    try:
        folder = root / (root / "current").read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{root}: no checkpoint here: give the folder that save() wrote") from None
    except OSError as error:
        raise CheckpointError(f"{root}: cannot be read ({error.strerror}): see to its disk or permissions") from None
    if (folder / "targets.json").is_file():
        raise CheckpointError(f"{root}: holds several targets: give the folder of one of them, such as {folder / '1'}")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        _check_digests(folder, state)
        parts = {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the checkpoint is damaged ({error}): start anew or take a backup") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{folder}: not a checkpoint of format {FORMAT}: it needs another version of streamdrop")
    return parts, state


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint was completed at ``path``."""
    return (Path(path) / "current").is_file()


def pack(values: Any, tensors: dict[str, Tensor], prefix: str = "") -> Any:
    """Nested dicts and lists as plain data, every tensor moved into ``tensors``; ``unpack`` undoes it."""
    if isinstance(values, Tensor):
        tensors[prefix] = values
        return {"tensor": prefix}
    if isinstance(values, Mapping):
        items = [[key, pack(value, tensors, f"{prefix}/{key}")] for key, value in values.items()]
        return {"counter" if isinstance(values, Counter) else "items": items}
    if isinstance(values, (list, tuple)):
        packed = [pack(value, tensors, f"{prefix}/{i}") for i, value in enumerate(values)]
        return {"tuple" if isinstance(values, tuple) else "list": packed}
    return values


def unpack(values: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What ``pack`` was given."""
    if not isinstance(values, dict):
        return values
    ((kind, inner),) = values.items()
    if kind == "tensor":
        return tensors[inner]
    if kind in ("items", "counter"):
        items = {key: unpack(value, tensors) for key, value in inner}
        return Counter(items) if kind == "counter" else items  # a MultiStepLR's milestones, which it counts
    parts = [unpack(value, tensors) for value in inner]
    return tuple(parts) if kind == "tuple" else parts


def _digests(folder: Path) -> dict[str, str]:
    """Of every file of a state but their own."""
    return {file.name: file_digest(file) for file in [*sorted(folder.glob("*.safetensors")), folder / "state.json"]}


def _check_digests(folder: Path, state: Any) -> None:
    """Raise ValueError for files that are not as they were written, OSError where they cannot be read."""
    file = folder / _DIGESTS
    if not file.exists():
        if isinstance(state, dict) and "digests" in state:
            raise ValueError(f"{_DIGESTS} is missing")
        return  # of an earlier release
    written, found = dict(json.loads(file.read_text(encoding="utf-8"))), _digests(folder)
    if changed := sorted(name for name in written.keys() | found if written.get(name) != found.get(name)):
        raise ValueError(f"{', '.join(changed)} changed since it was written")


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Dense copies on the CPU: safetensors refuses shared memory and other strides."""
    return {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
