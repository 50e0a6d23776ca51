"""Tracking: targets in a video, learned on the way."""

from __future__ import annotations

from streamdrop.tracking.config import TrackerConfig as TrackerConfig
from streamdrop.tracking.targets import Targets as Targets
from streamdrop.tracking.tracker import Tracker as Tracker
from streamdrop.tracking.tracker import track as track

__all__ = ["Targets", "Tracker", "TrackerConfig", "track"]
