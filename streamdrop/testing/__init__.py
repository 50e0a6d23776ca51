"""Makers and ``check_*`` kits: what every store, stream, policy and split must do, for users' own as for ours."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamdrop.testing.drift import drift_stream as drift_stream
    from streamdrop.testing.policies import check_policy as check_policy
    from streamdrop.testing.scenes import render_clip as render_clip
    from streamdrop.testing.splits import check_split as check_split
    from streamdrop.testing.stores import check_store as check_store
    from streamdrop.testing.streams import check_stream as check_stream
    from streamdrop.testing.streams import make_folder as make_folder
    from streamdrop.testing.streams import make_video as make_video
    from streamdrop.testing.targets import moving_square as moving_square
    from streamdrop.testing.targets import moving_squares as moving_squares
    from streamdrop.testing.tuners import SmallNet as SmallNet
    from streamdrop.testing.tuners import check_drop_equals_freeze as check_drop_equals_freeze
    from streamdrop.testing.tuners import labelled_batch as labelled_batch

_HOME = {
    "SmallNet": "tuners",
    "check_drop_equals_freeze": "tuners",
    "check_policy": "policies",
    "check_split": "splits",
    "check_store": "stores",
    "check_stream": "streams",
    "drift_stream": "drift",
    "labelled_batch": "tuners",
    "make_folder": "streams",
    "make_video": "streams",
    "moving_square": "targets",
    "moving_squares": "targets",
    "render_clip": "scenes",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'streamdrop.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"streamdrop.testing.{_HOME[name]}"), name)
    globals()[name] = value
    return value
