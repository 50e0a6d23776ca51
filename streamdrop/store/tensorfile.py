"""Named tensors and JSON facts in one ``.safetensors`` or ``.npz`` file, each checked when it is read.

The facts stand in a safetensors file's metadata under ``streamdrop`` (``crc32`` guards them), in a npz file as the
text array ``streamdrop``. Their ``tensors`` give each tensor's dtype, shape and CRC-32. A dtype that the format lacks
(bfloat16 and float8 in npz, some complex ones in safetensors) is stored as unsigned integers of the same bits.
No pickle.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from streamdrop import safetensors_file
from streamdrop.errors import DataError, OutputError, StoreCorruptError, StoreVersionError
from streamdrop.store.layout import byte_view, dtype_name, dtype_named

SUFFIXES = (".safetensors", ".npz")
FACTS = "streamdrop"

Facts = dict[str, Any]
Tensors = Mapping[str, torch.Tensor]

_EVERYWHERE = {
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.float16, torch.float32, torch.float64,
}  # fmt: skip
_NATIVE = {
    ".npz": _EVERYWHERE | {torch.complex64, torch.complex128},
    ".safetensors": _EVERYWHERE | {torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2},
}
_BITS = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
_BROKEN = (
    SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip


def write_tensors(path: Path, tensors: Tensors, facts: Facts, suffix: str) -> None:
    """Write to ``path`` in the format of ``suffix``, durable when it returns. Raises OutputError."""
    table = {name: _described(tensor) for name, tensor in tensors.items()}
    text = json.dumps({**facts, "tensors": table})
    carried = {name: _carried(tensor, suffix) for name, tensor in tensors.items()}
    try:
        if suffix == ".npz":
            arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in carried.items()}
            save: Any = np.savez  # arrays of numbers and text: nothing here is ever pickled
            with path.open("wb") as file:
                save(file, **arrays, **{FACTS: np.array(text)})
                file.flush()
                os.fsync(file.fileno())
        else:
            safetensors_file.write_tensors(path, carried, {FACTS: text, "crc32": str(zlib.crc32(text.encode()))})
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path.parent} cannot be written ({error}): free space or choose another folder") from None


def _described(tensor: torch.Tensor) -> Facts:
    crc = zlib.crc32(byte_view(tensor))
    return {"dtype": dtype_name(tensor.dtype), "shape": list(tensor.shape), "crc32": crc}


def _carried(tensor: torch.Tensor, suffix: str) -> torch.Tensor:
    if tensor.dtype in _NATIVE[suffix]:
        return tensor
    size = tensor.element_size()
    return tensor.view(_BITS[size]) if size in _BITS else tensor.unsqueeze(-1).view(torch.uint64)


def read_facts(path: Path) -> Facts:
    """What a file says about itself, without its tensors.

    Raises DataError when there is no such file, StoreVersionError for a file of another kind, StoreCorruptError.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} is neither .safetensors nor .npz: give files that an export wrote")
    if not path.is_file():
        raise DataError(f"{path}: no such file: give files that an export wrote")
    try:
        text, names = _npz_facts(path) if path.suffix == ".npz" else _safetensors_facts(path)
        facts = None if text is None else json.loads(text)
    except _BROKEN as error:
        raise StoreCorruptError(
            f"{path} is no whole {path.suffix} file ({_line(error)}): give files that an export wrote"
        ) from error
    if not isinstance(facts, dict):
        held = ", ".join(sorted(names)[:5]) or "nothing"
        raise StoreVersionError(
            f"{path} is no export of a feature store: it holds {held} but does not say for which cut and model; "
            "give files that `streamdrop store export` wrote"
        )
    return facts


def _npz_facts(path: Path) -> tuple[str | None, list[str]]:
    with np.load(path, allow_pickle=False) as arrays:
        names = list(arrays.files)
        return (str(arrays[FACTS]) if FACTS in names else None), names


def _safetensors_facts(path: Path) -> tuple[str | None, list[str]]:
    with safe_open(path, "pt") as file:
        said, names = file.metadata() or {}, list(file.keys())
    text = said.get(FACTS)
    if text is not None and said.get("crc32") != str(zlib.crc32(text.encode())):
        raise ValueError("its metadata has changed since it was written")
    return text, names


def read_tensors(path: Path, facts: Facts) -> dict[str, torch.Tensor]:
    """All tensors of a file, each as it was written, bit for bit. Raises StoreCorruptError for any that is not."""
    table = facts["tensors"]
    try:
        found = _npz(path) if path.suffix == ".npz" else _safetensors(path)
        if found.keys() != table.keys():
            raise ValueError(f"it lacks {sorted(table.keys() - found.keys())} or has more than it says")
        return {name: _checked(name, found.pop(name), said) for name, said in table.items()}
    except _BROKEN as error:
        raise _corrupt(path, _line(error)) from error


def _npz(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        found = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != FACTS}
    # Empty arrays are read with strides of 0, which torch cannot view as bytes.
    return {name: tensor if tensor.numel() else tensor.new_empty(tensor.shape) for name, tensor in found.items()}


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        # Copies: the file's map is aligned to 8 bytes, complex128 needs 16.
        return {name: file.get_tensor(name).clone() for name in list(file.keys())}


def _checked(name: str, stored: torch.Tensor, said: Facts) -> torch.Tensor:
    dtype, shape = dtype_named(said["dtype"]), said["shape"]
    tensor = stored if stored.dtype == dtype else stored.view(dtype).reshape(shape)
    if list(tensor.shape) != shape or zlib.crc32(byte_view(tensor.contiguous())) != said["crc32"]:
        raise ValueError(f"{name} has changed since it was written")
    return tensor


def _corrupt(path: Path, reason: str) -> StoreCorruptError:
    return StoreCorruptError(f"{path} is damaged ({reason}): export the store again")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
