"""Fetching named weights: only when the user asks, resumed where it broke off, verified, whole or not at all."""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from streamdrop._version import __version__
from streamdrop.errors import ConfigError, OutputError, WeightsError
from streamdrop.weights.folder import check_digest, entry_of, file_path, offline, remedy, sha256_of
from streamdrop.weights.registry import Entry, WeightsFile

TIMEOUT = 30.0
"""Seconds without a byte after which a server counts as gone."""

Tell = Callable[[str, int, int | None], None]
"""Told the file's name, the bytes there so far, and all of them where the server says."""

_BLOCK = 1 << 16


def get(name: str, tell: Tell | None = None) -> list[Path]:
    """Have the files of ``name`` here, downloading what is missing; returns where they lie.

    A file that is there already is verified, and fetched again where it is damaged. Raises ConfigError for an unknown
    name, WeightsError (what to fetch and where to put it) when a file cannot be fetched or is not the published one,
    OutputError.
    """
    entry = entry_of(name)
    if entry.package is not None:
        return [_packaged(entry, file) for file in entry.files]
    paths = []
    for file in entry.files:
        path = file_path(entry, file)
        if not (path.is_file() and sha256_of(path).startswith(file.sha256)):
            _fetch(entry, file, path, tell)
        paths.append(path)
    return paths


def _packaged(entry: Entry, file: WeightsFile) -> Path:
    path = file_path(entry, file)
    if not path.is_file():
        raise WeightsError(f"weights {entry.name} are not here: {remedy(entry)}")
    check_digest(path, file)
    return path


def _fetch(entry: Entry, file: WeightsFile, path: Path, tell: Tell | None) -> None:
    """Download one file beside its place, verify it, move it there."""
    if file.url is None:
        raise ConfigError(f"weights {entry.name}: {file.name} is damaged and published nowhere: "
                          f"streamdrop weights add {entry.name} --from DIR")  # fmt: skip
    part = path.with_name(path.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.exists() and part.stat().st_size > 0
        _transfer(entry, file.url, part, tell)
        if resumed and not sha256_of(part).startswith(file.sha256):
            part.unlink()  # what was resumed may have been of another version: once more, from the start
            _transfer(entry, file.url, part, tell)
        _verify(part, file)
        part.replace(path)
    except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise WeightsError(f"{file.url} could not be fetched ({reason}): {offline(entry)}") from None
    except OSError as error:
        raise OutputError(
            f"{part} cannot be written ({error.strerror}): set STREAMDROP_WEIGHTS to a folder with room that you may "
            "write"
        ) from None


def _transfer(entry: Entry, url: str, part: Path, tell: Tell | None) -> None:
    """Append to ``part`` what it lacks, as far as the server can say where it broke off."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": f"streamdrop/{__version__}"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after what is there: it is complete, or of another file; the digest tells
            return
        raise
    with answer:
        if have and (answer.status != 206 or not _starts_at(answer.headers.get("Content-Range"), have)):
            have = 0
            if answer.status == 206:
                raise WeightsError(f"{url}: the server sends another part than was asked for: remove {part}")
        left = answer.headers.get("Content-Length")
        total = have + int(left) if left is not None and left.isdigit() else None
        with part.open("ab" if have else "wb") as target:
            done = _copy(cast(BinaryIO, answer), target, part.name.removesuffix(".part"), have, total, tell)
    if total is not None and done < total:
        raise WeightsError(
            f"{url}: the connection ended after {done:,} of {total:,} bytes: run streamdrop weights get {entry.name} "
            "again to go on from there"
        )


def _copy(source: BinaryIO, target: BinaryIO, name: str, done: int, total: int | None, tell: Tell | None) -> int:
    block = b"-"
    while block:
        try:
            block = source.read(_BLOCK)
        except http.client.IncompleteRead as error:  # keep what came: the next try goes on from there
            target.write(error.partial)
            return done + len(error.partial)
        target.write(block)
        done += len(block)
        if tell is not None:
            tell(name, done, total)
    target.flush()
    os.fsync(target.fileno())
    return done


def _starts_at(content_range: str | None, start: int) -> bool:
    return content_range is not None and content_range.replace(" ", "").lower().startswith(f"bytes{start}-")


def _verify(part: Path, file: WeightsFile) -> None:
    """A download that is not the published file is removed: it could not be resumed either."""
    try:
        check_digest(part, file)
    except WeightsError:
        part.unlink(missing_ok=True)
        raise WeightsError(
            f"{file.url}: what was sent is not the published {file.name} (its SHA-256 differs): it was removed; try "
            "again later, or through another network"
        ) from None
