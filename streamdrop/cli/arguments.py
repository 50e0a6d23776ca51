"""Kinds of arguments: what their text must be, said in one line where it is not. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from streamdrop.errors import StreamdropError

if TYPE_CHECKING:
    from streamdrop.boxes import Box


def _checked(parse: Callable[[str], object], text: str) -> object:
    try:
        return parse(text)
    except (StreamdropError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def box(text: str) -> Box:
    """``x,y,w,h``."""
    from streamdrop.boxes import Box, parse_box

    found = _checked(parse_box, text)
    assert isinstance(found, Box)
    return found


def whole(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def path(text: str) -> str:
    """A file or folder; an empty name, which a shell makes of an unset variable, would be the working directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty: give the name of a file or folder")
    return text


def above_zero(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def wholes(text: str) -> list[int]:
    """Whole numbers, separated by commas."""
    return [whole(part) for part in names(text)]


def names(text: str) -> list[str]:
    """Names, separated by commas; at least one."""
    found = words(text)
    if not found:
        raise argparse.ArgumentTypeError("is empty: give names separated by commas")
    return found


def words(text: str) -> list[str]:
    """Names, separated by commas; there may be none."""
    return [part.strip() for part in text.split(",") if part.strip()]
