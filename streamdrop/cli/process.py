"""What a command may change for its whole process."""

from __future__ import annotations

import argparse


def trim_process(options: argparse.Namespace) -> None:
    """Do with a second and 150 MB less, unless a program called ``main`` in its own process."""
    if options.own_process:
        from streamdrop.service.memory import large_blocks_apart
        from streamdrop.tracing.compiler import leave_out_compiler

        leave_out_compiler()
        large_blocks_apart()
