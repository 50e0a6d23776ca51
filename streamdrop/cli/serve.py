"""``streamdrop serve``."""

from __future__ import annotations

import argparse


def serve(options: argparse.Namespace) -> int:
    """Run the daemon until it is told to end."""
    from streamdrop.service.serve import serve as run

    return run(options.config, options.set)
