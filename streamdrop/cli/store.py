"""``streamdrop store info|verify``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from streamdrop.errors import StoreCorruptError
from streamdrop.store.inspection import store_info, verify


def print_info(options: argparse.Namespace) -> int:
    """Print what a store holds."""
    _print(store_info(options.path), options.json)
    return 0


def print_verify(options: argparse.Namespace) -> int:
    """Read every record of a store. Fails when one does not decode."""
    result = verify(options.path)
    _print(result, options.json)
    if result.get("problems"):
        raise StoreCorruptError(f"{options.path}: {len(result['problems'])} records do not decode: observe them again")
    return 0


def _print(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values, indent=1))
        return
    width = max(len(key) for key in values)
    for key, value in values.items():
        print(f"{key:<{width}}  {value}")
