"""``streamdrop serve``."""

from __future__ import annotations

import argparse
import os
import sys


def serve(options: argparse.Namespace) -> int:
    """Run the daemon until it is told to end."""
    from streamdrop.service.serve import serve as run

    status = run(options.config, options.set)
    sys.stdout.flush()
    # All is saved and closed. To take the interpreter down in order can take seconds where the cores are busy, and for
    # ever where a thread hangs in a driver.
    os._exit(status)
