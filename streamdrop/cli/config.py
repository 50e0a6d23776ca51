"""``streamdrop config check|schema``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from streamdrop.errors import ConfigError


def check(options: argparse.Namespace) -> int:
    """Say what is wrong with a configuration, one mistake a line; 0 when nothing is."""
    try:
        config = _load(options.file, options.kind)
    except ConfigError as error:
        print("\n".join(" ".join(problem.split()) for problem in error.problems), file=sys.stderr)
        return 2
    print(f"{options.file}: fine{_summary(config) if options.kind == 'serve' else ''}")
    return 0


def schema(options: argparse.Namespace) -> int:
    """Print the JSON Schema of a configuration."""
    from streamdrop.config_schema import json_schema

    print(json.dumps(json_schema(_kind(options.kind), f"streamdrop {options.kind}"), indent=1))
    return 0


def _load(file: str, kind: str) -> Any:
    if kind == "serve":
        from streamdrop.service.settings import load_daemon

        return load_daemon(file)
    from streamdrop.config import load

    return load(file, _kind(kind))


def _kind(kind: str) -> type[Any]:
    if kind == "serve":
        from streamdrop.service.settings import DaemonConfig

        return DaemonConfig
    from streamdrop.tracking import TrackerConfig

    return TrackerConfig


def _summary(config: Any) -> str:
    names = ", ".join(stream.name for stream in config.streams) or "none"
    return f"; streams: {names}; http://{config.http.host}:{config.http.port}"
