"""A file's digest: tells damage, not forgery."""

from __future__ import annotations

from pathlib import Path

import xxhash


def file_digest(file: Path) -> str:
    """xxh3-64 of what the file holds, in hex; its size does not show in memory. Raises OSError."""
    digest = xxhash.xxh3_64()
    with file.open("rb", buffering=0) as data:
        while part := data.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
