"""The command line: thin. Heavy imports wait until a command needs them, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from streamdrop.cli.parser import build_parser, join_values
from streamdrop.cli.process import leave, open_closed, spell_out, unsaid
from streamdrop.errors import ConfigError, OutputError, StreamdropError

INTERRUPTED, TERMINATED = 130, 143
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What a system says of an output that takes no more: a disk, a quota or a file is full, a terminal has gone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 done, 1 failed, 2 bad arguments or configuration, 130 interrupted, 143 terminated.

    A failure is one line on stderr: what, where, the remedy.
    """
    parser = build_parser()
    try:
        options = parser.parse_args(join_values(sys.argv[1:] if arguments is None else arguments))
        if options.command is None:
            parser.print_help()
            return 2
    except SystemExit as leaving:  # argparse has printed its line, or the help
        return int(leaving.code or 0)
    except BrokenPipeError:  # of the help; later Pythons say nothing of it
        return _unread()
    options.own_process = arguments is None
    signal.signal(signal.SIGTERM, _terminate)
    # Idle OpenMP threads spin by default: where anything else needs the cores, training then takes much longer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return _run(options)
    except ConfigError as error:
        return _fail(error, 2)
    except StreamdropError as error:
        return _fail(error, 1)
    except KeyboardInterrupt as interrupt:
        print("streamdrop: interrupted: what was written so far is whole", file=sys.stderr)
        return TERMINATED if isinstance(interrupt, _Terminated) else INTERRUPTED
    except BrokenPipeError:
        return _unread()
    except OSError as error:  # files that we write raise OutputError, so it was the output
        if error.errno not in FULL:
            raise
        return _fail(OutputError(unsaid(error)), 1)


def _check_folder() -> None:
    """Raise StreamdropError where the working folder was removed: torch's libraries would end the process."""
    try:
        os.getcwd()
    except OSError:
        raise StreamdropError("the folder that this runs in is gone: change to one that exists") from None


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def program() -> NoReturn:
    """The command line as a process: ``main`` with its arguments, then the end."""
    spell_out()
    leave(main())


def _run(options: argparse.Namespace) -> int:
    if options.own_process:
        open_closed()
    _check_folder()
    module = importlib.import_module(f"streamdrop.cli.{options.module}")
    try:
        return int(getattr(module, options.function)(options))
    except UnicodeEncodeError as error:
        if sys.getfilesystemencoding() == "utf-8":
            raise
        raise ConfigError(f"{error.object!a} has no name in this locale's encoding: run with PYTHONUTF8=1") from None


def _fail(error: StreamdropError, status: int) -> int:
    line = " ".join(str(error).split())
    print(f"streamdrop: error: {line}", file=sys.stderr)
    return status


def _unread() -> int:
    """The reader of our output has gone; nothing is left to tell it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _terminate(number: int, frame: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: files are closed on the way out."""
    raise _Terminated
