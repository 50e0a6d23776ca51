"""What a command may change for its whole process."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import io
import os
import sys
from typing import NoReturn

from streamdrop.interrupts import held


def open_closed() -> None:
    """Lead standard streams that came closed to nowhere: a file opened next would take their place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process


def trim_process(options: argparse.Namespace, heaps: int | None = 1) -> None:
    """Do with a second and 150 MB less, unless a program called ``main`` in its own process.

    One of the C library's ``heaps`` for all threads is enough where one tracker computes at a time; None: as many as it
    likes. To be called before streamdrop.tracking or the engine is imported, and before there are threads.
    """
    if options.own_process:
        with held():  # libraries that are loaded may swallow what a signal raises, and the command would run on
            from streamdrop.service.memory import few_heaps
            from streamdrop.tracing.compiler import leave_out_compiler

            if heaps is not None:
                few_heaps(heaps)
            leave_out_compiler()


def spell_out() -> None:
    """Print an escape where the output's encoding lacks a character: no table fails for it when all work is done."""
    raw_names = isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "surrogateescape"
    if isinstance(sys.stdout, io.TextIOWrapper) and not (raw_names and sys.stdout.encoding == "utf-8"):
        sys.stdout.reconfigure(errors="backslashreplace")


def leave(status: int) -> NoReturn:
    """End this process, its exit handlers run, without taking it apart.

    Where torch is loaded that takes 0.3 s and, for a moment, 125 MB more than the command ever needed; seconds where
    the cores are busy, and for ever where a thread hangs in a driver.
    """
    atexit._run_exitfuncs()
    try:
        print(end="", flush=True)
    except BrokenPipeError:
        pass  # the reader has gone; nothing is left to tell it
    except OSError as error:
        if not status:  # else what failed has been said
            status = 1
            with contextlib.suppress(OSError):
                print(f"streamdrop: error: {unsaid(error)}", file=sys.stderr, flush=True)
    os._exit(status)


def unsaid(error: OSError) -> str:
    """What to say where the output cannot be written."""
    return f"the output cannot be written ({error.strerror}): send it elsewhere, or free some space"
