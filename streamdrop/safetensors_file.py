"""A safetensors file as this user's other files are: durable, and readable by whom they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from streamdrop.atomic import sync


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> None:
    """Write tensors by name, and ``facts`` as the file's metadata. Raises OSError, SafetensorError."""
    path.touch()  # what safetensors leaves is its owner's alone, whatever the umask: a new file shows what is usual
    usual = path.stat().st_mode
    save_file(dict(tensors), path, None if facts is None else dict(facts))
    if path.stat().st_mode != usual:  # some file systems know no permissions, and refuse to set any
        path.chmod(usual & 0o7777)
    sync(path)
