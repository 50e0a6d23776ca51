"""A sweep's cells with their results, and the files they are read from."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamdrop.errors import DataError
from streamdrop.evaluation.fit_summary import Result, Summary, summarise

Key = tuple[str, str, str]
"""Data set, model, variant: what seeds are averaged over."""


@dataclass(frozen=True)
class Cell:
    """One cell of a grid; ``summary`` is None unless ``status`` is done."""

    dataset: str
    model: str
    variant: str
    seed: int
    status: str = "done"
    error: str | None = None
    summary: Summary | None = None

    @property
    def key(self) -> Key:
        """What the cell shares with its other seeds."""
        return self.dataset, self.model, self.variant


def pair_cells(sweep: dict[str, Any], results: Sequence[Result]) -> list[Cell]:
    """The cells of a ``sweep.json``, each with its summary.

    ``results`` are those of the cells whose status is done, in the cells' order; DataError for more or fewer.
    """
    done = [cell for cell in sweep["cells"] if cell["status"] == "done"]
    if len(done) != len(results):
        raise DataError(
            f"{len(results)} results for {len(done)} finished cells: give each finished cell's result, in order"
        )
    rest = iter(results)
    return [
        Cell(
            cell["dataset"],
            cell["model"],
            cell["variant"],
            cell["seed"],
            cell["status"],
            cell.get("error"),
            summarise(next(rest)) if cell["status"] == "done" else None,
        )
        for cell in sweep["cells"]
    ]


def lone_cell(result: Result) -> Cell:
    """A result that no sweep holds, as a cell; its policy names the variant. One that was cut short has no summary."""
    place = (result["dataset"], result["model"], policy_name(result.get("policy")), result["seed"])
    if not result.get("finished", True):  # results of earlier releases do not say
        return Cell(*place, "unfinished", "cut short or still running: go on with --resume")
    return Cell(*place, summary=summarise(result))


def policy_name(policy: Any) -> str:
    """A policy setting in a word or two: ``paper``, ``schedule 4: 10, 5: 19``."""
    if not isinstance(policy, dict):
        return str(policy or "unknown policy")
    name, value = next(iter(policy.items()), ("unknown policy", None))
    rest = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return f"{name} {rest}"


def group_cells(cells: Sequence[Cell]) -> dict[Key, list[Cell]]:
    """Cells by data set, model and variant, in order of appearance."""
    groups: dict[Key, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.key, []).append(cell)
    return groups


def read_sweep(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Result]]:
    """``sweep.json`` and the results of its finished cells, in order; DataError for what cannot be read."""
    sweep = read_json(Path(folder) / "sweep.json")
    done = [cell for cell in sweep["cells"] if cell["status"] == "done"]
    return sweep, [read_json(Path(folder) / cell["result"]) for cell in done]


def read_json(path: Path) -> Any:
    """The content of a JSON file; DataError says which file is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}): give the folder that `streamdrop fit` wrote"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}): write it again with `streamdrop fit`") from None
