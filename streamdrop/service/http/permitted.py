"""Which sources an API client may name: files and folders inside the roots, addresses and cameras that they list."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from streamdrop.errors import ConfigError
from streamdrop.service.addresses import is_address, server_and_path
from streamdrop.service.redact import redacted

VIDEOS = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv", ".3gp", ".gif")
)
"""Endings of files that a client may name; playlists and lists, which name further files, are not among them."""

IMAGES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2"))

_LISTS = (b"#EXTM3U", b"ffconcat", b"[playlist", b"v=0", b"<?xml", b"<MPD")


def permitted_source(source: str | int, roots: Sequence[str | int]) -> str | int:
    """The source as it is to be opened. Raises ConfigError, naming what may be named, for any that is not permitted."""
    text = str(source).strip()
    if isinstance(source, int) or text.isdecimal():
        if text in {str(root).strip() for root in roots}:
            return int(text)
        raise _refused(text, roots)
    if is_address(text):
        return _address(text, roots)
    return str(_inside(text, roots))


def _address(text: str, roots: Sequence[str | int]) -> str:
    given = server_and_path(text)
    for root in roots:
        allowed = server_and_path(root) if isinstance(root, str) and is_address(root) else None
        if given is None or allowed is None:
            continue
        (server, path), (allowed_server, beginning) = given, allowed
        if server == allowed_server and ".." not in path.split("/") and path.startswith(beginning):
            return text
    raise _refused(redacted(text), roots)


def _inside(text: str, roots: Sequence[str | int]) -> Path:
    folders = [Path(os.path.realpath(str(root))) for root in roots if not is_address(str(root))]
    folders = [folder for folder in folders if folder.is_dir()]
    if "\0" in text or not text:
        raise _refused(repr(text), roots)
    try:
        path = Path(os.path.realpath(text))
        usable = any(path.is_relative_to(folder) for folder in folders) and _is_video(path, folders)
    except (OSError, ValueError):
        usable = False
    if not usable:  # the same answer whether the file exists or not: nothing is told about what lies outside
        raise _refused(text, roots)
    return path


def _is_video(path: Path, folders: Sequence[Path]) -> bool:
    """A video, an image, or a folder whose images lie inside the roots too, wherever links lead."""
    if path.is_dir():
        entries = [entry for entry in path.iterdir() if entry.is_symlink()]
        return all(any(Path(os.path.realpath(e)).is_relative_to(folder) for folder in folders) for e in entries)
    if path.suffix.lower() not in VIDEOS | IMAGES or not path.is_file():
        return False
    with path.open("rb") as file:
        return not file.read(16).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(_LISTS)


def _refused(text: str, roots: Sequence[str | int]) -> ConfigError:
    may = ", ".join(redacted(str(root)) for root in roots) or "nothing: set roots in the configuration"
    return ConfigError(
        f"source {text[:200]}: is no video or folder of images that clients may name: they may name {may}"
    )
