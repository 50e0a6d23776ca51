"""The configuration files of the tracker."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamdrop.config import load
from streamdrop.errors import ConfigError
from streamdrop.tracking.config import TrackerConfig

CONFIGS = Path(__file__).parent.parent / "configs"


def all_keys(config: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from all_keys(value, (*prefix, field.name))
        else:
            yield (*prefix, field.name)


def written_keys(values: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every leaf's path in nested mappings, in order."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from written_keys(value, (*prefix, key))
        else:
            yield (*prefix, key)


@pytest.mark.parametrize("name", ["basic.yaml", "advanced.yaml"])
def test_files_hold_the_defaults(name: str) -> None:
    assert load(CONFIGS / name, TrackerConfig) == TrackerConfig()


def test_advanced_has_every_key() -> None:
    written = yaml.safe_load((CONFIGS / "advanced.yaml").read_text(encoding="utf-8"))
    assert list(written_keys(written)) == list(all_keys(TrackerConfig()))


@pytest.mark.parametrize(
    "given", [{"seed": 2**64}, {"threads": 10_000}, {"search": {"size": 10**9}}, {"search": {"size": 10**400}}]
)
def test_numbers_beyond_what_a_machine_takes_are_refused(given):
    with pytest.raises(ConfigError, match=r"seed|threads|size"):
        load(given, TrackerConfig)
