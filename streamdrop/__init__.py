"""streamdrop: online fine-tuning for visual tracking that stops running the layers that have stopped learning.

The names below are the public surface. They load on first use, so that ``streamdrop --help`` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from streamdrop._version import __version__

if TYPE_CHECKING:
    from streamdrop.boxes import Box as Box
    from streamdrop.boxes import parse_box as parse_box
    from streamdrop.engine import FineTuner as FineTuner
    from streamdrop.errors import StreamdropError as StreamdropError
    from streamdrop.policies import AutoPolicy as AutoPolicy
    from streamdrop.policies import PaperPolicy as PaperPolicy
    from streamdrop.policies import PrefixSumPolicy as PrefixSumPolicy
    from streamdrop.policies import SchedulePolicy as SchedulePolicy
    from streamdrop.scores import GradientScores as GradientScores
    from streamdrop.scores import best_prefix as best_prefix
    from streamdrop.scores import first_crossing as first_crossing
    from streamdrop.scores import standardise as standardise
    from streamdrop.service.embedded import Session as Session
    from streamdrop.service.recorder import Recorder as Recorder
    from streamdrop.split import SplitModel as SplitModel
    from streamdrop.split import transformer_blocks as transformer_blocks
    from streamdrop.store import LmdbStore as LmdbStore
    from streamdrop.store import MemoryStore as MemoryStore
    from streamdrop.store import Retention as Retention
    from streamdrop.store import TieredStore as TieredStore
    from streamdrop.store import decode_source as decode_source
    from streamdrop.store import encode_source as encode_source
    from streamdrop.store import read_ahead as read_ahead
    from streamdrop.streams import open_stream as open_stream
    from streamdrop.thawing import ThawPlan as ThawPlan
    from streamdrop.tracking import Targets as Targets
    from streamdrop.tracking import Tracker as Tracker
    from streamdrop.tracking import track as track
    from streamdrop.types import Activations as Activations
    from streamdrop.types import Batch as Batch
    from streamdrop.types import RoundReport as RoundReport
    from streamdrop.types import Sample as Sample
    from streamdrop.types import SampleInfo as SampleInfo
    from streamdrop.types import Track as Track

_HOME = {
    "Box": "boxes",
    "FineTuner": "engine",
    "StreamdropError": "errors",
    "AutoPolicy": "policies",
    "PaperPolicy": "policies",
    "PrefixSumPolicy": "policies",
    "Recorder": "service.recorder",
    "SchedulePolicy": "policies",
    "Session": "service.embedded",
    "GradientScores": "scores",
    "best_prefix": "scores",
    "first_crossing": "scores",
    "standardise": "scores",
    "SplitModel": "split",
    "transformer_blocks": "split",
    "LmdbStore": "store",
    "MemoryStore": "store",
    "Retention": "store",
    "TieredStore": "store",
    "decode_source": "store",
    "encode_source": "store",
    "read_ahead": "store",
    "open_stream": "streams",
    "parse_box": "boxes",
    "ThawPlan": "thawing",
    "Targets": "tracking",
    "Tracker": "tracking",
    "track": "tracking",
    "Activations": "types",
    "Batch": "types",
    "RoundReport": "types",
    "Sample": "types",
    "SampleInfo": "types",
    "Track": "types",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'streamdrop' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"streamdrop.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
