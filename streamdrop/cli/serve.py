"""``streamdrop serve``."""

from __future__ import annotations

import argparse
import os
import signal
from typing import NoReturn

from streamdrop.cli.process import trim_process


def serve(options: argparse.Namespace) -> int:
    """Run the daemon until it is told to end."""
    if options.own_process:
        _end_while_loading()
    trim_process(options, heaps=2)
    from streamdrop.service.serve import serve as run

    return run(options.config, options.set)


def _end_while_loading() -> None:
    """Obey signals until the daemon does. An exception is not enough: libraries that are loaded may swallow it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    if hasattr(signal, "SIGHUP"):  # no configuration was read yet
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _end(number: int, frame: object) -> NoReturn:
    os.write(2, b"streamdrop: interrupted before anything was started\n")
    os._exit(128 + number)
