"""``streamdrop serve``."""

from __future__ import annotations

import argparse

from streamdrop.cli.process import trim_process


def serve(options: argparse.Namespace) -> int:
    """Run the daemon until it is told to end."""
    trim_process(options, heaps=2)
    from streamdrop.service.serve import serve as run

    return run(options.config, options.set)
