"""What an experiment leaves on disk: rows, weights and texts that a kill cannot tear."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from torch import Tensor

from streamdrop import atomic
from streamdrop.errors import CheckpointError, OutputError
from streamdrop.safetensors_file import write_tensors

Row = dict[str, Any]
"""An epoch as result.json has it."""


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """A state dict as a safetensors file, whole or not at all. Raises OutputError."""
    temporary = path.with_name(f"{path.name}.new")
    try:
        write_tensors(temporary, weights)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise _unwritable(path, error) from None


def replace_text(path: Path, text: str) -> None:
    """A text file, durable, whole or as it was. Raises OutputError."""
    try:
        atomic.replace_text(path, text)
    except OSError as error:
        raise _unwritable(path.parent, error.strerror) from None


def opened_anew(path: Path) -> BinaryIO:
    """A file, empty, to write to. Raises OutputError."""
    try:
        return path.open("wb")
    except OSError as error:
        raise _unwritable(path, error.strerror) from None


def _unwritable(path: Path, reason: object) -> OutputError:
    return OutputError(f"{path}: cannot be written ({reason}): free space or choose another --output")


_ROW = {"epoch", "cut", "next_cut", "loss", "accuracy", "seconds", "forward_macs"}
"""Of a row what a result cannot do without."""


def make_folder(folder: Path) -> None:
    """The folder and those above it, where they are not there. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be made ({error.strerror}): free space or choose another --output"
        ) from None
    except ValueError as error:  # a character that no name may have
        raise OutputError(f"{str(folder)!r}: cannot be made ({error}): choose other names") from None


def read_rows(folder: Path) -> list[Row]:
    """The lines of a state folder's rows.jsonl; a last line that a kill tore is left out. Raises CheckpointError."""
    remedy = f"remove {folder} to train it anew"
    try:
        lines = (folder / "rows.jsonl").read_text(encoding="utf-8").split("\n")
        rows: list[Row] = [json.loads(line) for line in lines[:-1]]  # only a line with its end is whole
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: rows.jsonl is damaged ({error}): {remedy}") from None
    if not rows:
        raise CheckpointError(f"{folder}: rows.jsonl is empty: {remedy}")
    for number, row in enumerate(rows):
        wanted = _ROW if number else {"fill_seconds", "epochs"}
        if not isinstance(row, dict) or not wanted <= row.keys() or row.get("epoch", 0) != number:
            raise CheckpointError(f"{folder}: rows.jsonl is damaged (line {number + 1} is not of its epoch): {remedy}")
    return rows


def append_row(folder: Path, row: Row) -> None:
    """One more line at the end of rows.jsonl, durable. Raises OutputError."""
    try:
        with (folder / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(row)}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}): free space") from None
