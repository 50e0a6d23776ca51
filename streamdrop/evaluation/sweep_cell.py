"""One cell of a sweep, in a process of its own: ``python -m streamdrop.evaluation.sweep_cell FOLDER [options]``.

FOLDER holds cell.json: ``{"config": {FitConfig}, "strategies": [...]}``. It goes on where a killed run stopped. What
goes wrong is one line on stderr and status 1. The sweep holds the other end of stdin: when that closes, the sweep is
gone or wants the cell to stop, and it ends as Ctrl-C would end it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

INTERRUPTED = 130
PATIENCE = 60.0
"""Seconds that a cell of a killed sweep may take to save itself before this one goes on with it."""


def main() -> int:
    """Run the cell. Returns 0 done, 1 failed, 130 interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--core", type=int, help="run on this core only")
    parser.add_argument("--save-weights", action="store_true")
    parser.add_argument("--download", action="store_true")
    options = parser.parse_args()
    if options.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})  # before torch counts the cores
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_stop_with_the_sweep, daemon=True).start()
    try:
        return _run(options)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    from streamdrop.tracing.compiler import leave_out_compiler

    leave_out_compiler()
    from streamdrop.config import load
    from streamdrop.errors import StreamdropError
    from streamdrop.evaluation.experiment import FitConfig, run_experiment
    from streamdrop.evaluation.fit_result import describe_divergence

    folder: Path = options.folder
    try:
        cell = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
        flags = {"save_weights": options.save_weights, "download": options.download}
        config = load(cell["config"], FitConfig)
        result = run_experiment(config, cell["strategies"], folder, resume=True, patience=PATIENCE, **flags)
        failure = describe_divergence(result, folder)
    except StreamdropError as error:
        failure = str(error)
    if failure:
        print(" ".join(failure.split()), file=sys.stderr)
    return 1 if failure else 0


def _stop_with_the_sweep() -> None:
    with contextlib.suppress(OSError, ValueError):
        while os.read(0, 1024):  # not sys.stdin: its lock would be held at exit
            pass
    os.kill(os.getpid(), signal.SIGTERM)  # Ctrl-C is ignored by what a sweep in the background starts


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # the thread on stdin must not hold the process up
