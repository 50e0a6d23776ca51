"""What the programs that run trackers over sequences are asked: which sequences, seeds and settings."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable

import torch

from streamdrop.cli.arguments import names, wholes


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser with FOLDER, ``--sequences``, ``--seeds`` and ``--set``; ``doc``: the program's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("STREAMDROP_DATA")
    parser.add_argument("folder", nargs="?", default=data and f"{data}/sequences")
    parser.add_argument("--sequences", type=names)
    parser.add_argument("--seeds", type=wholes, default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="key=value")
    return parser


def parsed(parser: argparse.ArgumentParser, **known: Iterable[str]) -> argparse.Namespace:
    """The options of the command line, their names among those ``known``, on one thread of torch's."""
    options = parser.parse_args()
    if options.folder is None:
        parser.error("no FOLDER and STREAMDROP_DATA is not set: give a folder of sequences")
    for option, choices in known.items():
        if unknown := set(getattr(options, option)) - set(choices):
            parser.error(f"{', '.join(sorted(unknown))}: not known; choose from {', '.join(choices)}")
    torch.set_num_threads(1)
    return options
