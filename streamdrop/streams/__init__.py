"""Streams: video, images, cameras, addresses and arrays in; video out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamdrop.streams.annotate import annotate as annotate
    from streamdrop.streams.sources import decoder_messages as decoder_messages
    from streamdrop.streams.sources import open_stream as open_stream
    from streamdrop.streams.stream import Stream as Stream
    from streamdrop.streams.stream import sample_key as sample_key
    from streamdrop.streams.window import Window as Window
    from streamdrop.streams.writer import VideoWriter as VideoWriter

_HOME = {
    "Stream": "stream",
    "VideoWriter": "writer",
    "Window": "window",
    "annotate": "annotate",
    "decoder_messages": "sources",
    "open_stream": "sources",
    "sample_key": "stream",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'streamdrop.streams' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"streamdrop.streams.{_HOME[name]}"), name)
    globals()[name] = value
    return value
