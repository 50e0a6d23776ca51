"""What a command may change for its whole process."""

from __future__ import annotations

import argparse


def trim_process(options: argparse.Namespace) -> None:
    """Do with a second and 100 MB less, unless a program called ``main`` in its own process.

    One heap for all threads is enough where one tracker computes at a time.
    """
    if options.own_process:
        from streamdrop.service.memory import few_heaps
        from streamdrop.tracing.compiler import leave_out_compiler

        few_heaps(1)
        leave_out_compiler()
