"""The configuration of a tracker that is quick to learn."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "search": {"size": 128},
    "first_frame": {"crops": 8, "steps": 24, "batch": 6},
    "update": {"every": 3, "steps": 2, "recent": 3, "first": 2, "memory": 8},
    "box": {"samples": 200},
    "drop": {"steps": 2},
}
"""Good enough for a rendered scene."""
