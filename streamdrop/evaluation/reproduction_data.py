"""What the page on reproduction is made of: grids of experiments, a few KB per cell, and store benchmarks."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from streamdrop.errors import DataError
from streamdrop.evaluation.fit_cells import Cell, lone_cell, pair_cells, read_json, read_sweep
from streamdrop.evaluation.fit_summary import Summary

DIGITS = 6
"""Significant digits that a compact number keeps."""

STORE_SECTIONS = ("writes, durable", "reads, page cache warm")
"""Sections of benchmarks/store.py that the page uses."""

Read = Callable[[Summary], float | None]


@dataclass(frozen=True)
class Grid:
    """One sweep, or one folder's results: its cells, where they ran, and the values that its YAML fixed."""

    name: str
    hardware: str = ""
    version: str = ""
    protocol: dict[str, Any] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)


@dataclass(frozen=True)
class Evidence:
    """All that was measured; ``store`` holds rows (section, case, arm, median, n) of benchmarks/store.py."""

    grids: list[Grid] = field(default_factory=list)
    store: list[dict[str, Any]] = field(default_factory=list)
    store_hardware: str = ""


def read_evidence(paths: Iterable[str | os.PathLike[str]]) -> Evidence:
    """Read sweep and result folders, result.json, store.json and compact files; DataError says which fails."""
    evidence = Evidence()
    for path in (Path(path).absolute() for path in paths):  # a result is called by its folder
        evidence = _read_into(evidence, path)
    return Evidence(_joined(evidence.grids), evidence.store, evidence.store_hardware)


def _joined(grids: Iterable[Grid]) -> list[Grid]:
    """Grids measured in parts, one grid each; DataError where parts of one name were run with other values."""
    whole: dict[str, Grid] = {}
    for grid in grids:
        whole[grid.name] = _join(whole[grid.name], grid) if grid.name in whole else grid
    return list(whole.values())


def _join(one: Grid, other: Grid) -> Grid:
    """What each part lists (models, seeds, …) is united; a finished cell takes the place of one that is not."""
    protocol = dict(one.protocol)
    for key, value in other.protocol.items():
        mine = protocol.get(key, value)
        if isinstance(value, list) and isinstance(mine, list):
            protocol[key] = [*mine, *(item for item in value if item not in mine)]
        elif isinstance(value, dict) and value != mine:
            raise DataError(f"{one.name}: parts of it were run with different `{key}`: give one another name")
    cells = {(*cell.key, cell.seed): cell for cell in one.cells}
    for cell in other.cells:
        place = (*cell.key, cell.seed)
        if place not in cells or cells[place].summary is None:
            cells[place] = cell
        elif cell.summary is not None:
            said = f"{cell.dataset} / {cell.model} / {cell.variant} / seed {cell.seed}"
            raise DataError(f"{one.name}: {said} was measured twice: give one of the two results")
    return Grid(one.name, one.hardware, one.version, protocol, list(cells.values()))


def _read_into(evidence: Evidence, path: Path) -> Evidence:
    try:
        return _add(evidence, path)
    except DataError:  # it says itself what is wrong
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path}: lacks what a result holds ({type(error).__name__}: {error}): give what `streamdrop fit` or this "
            "script wrote"
        ) from error


def _add(evidence: Evidence, path: Path) -> Evidence:
    if path.is_dir():
        names = [name for name in ("sweep.json", "result.json", "store.json") if (path / name).exists()]
        if not names:
            raise DataError(f"{path}: holds no sweep.json, result.json or store.json: give what `streamdrop fit` wrote")
        path = path / names[0]
    if path.name == "sweep.json":
        sweep, results = read_sweep(path.parent)
        grid = Grid(sweep.get("name", path.parent.name), *_origin(sweep), pair_cells(sweep, results))
        return Evidence([*evidence.grids, grid], evidence.store, evidence.store_hardware)
    content = read_json(path)
    if not isinstance(content, dict) or not {"strategies", "cells", "rows"} & content.keys():
        raise DataError(
            f"{path}: is neither a result nor a compact file: give what `streamdrop fit` or this script wrote"
        )
    return _add_content(evidence, path, content)


def _add_content(evidence: Evidence, path: Path, content: dict[str, Any]) -> Evidence:
    if "strategies" in content:
        grid = Grid(path.parent.name, content.get("hardware") or "", cells=[lone_cell(content)])
    elif "cells" in content:
        cells = [Cell(**cell) for cell in content["cells"]]
        grid = Grid(content["name"], *_origin(content), cells)
    else:
        rows = [*evidence.store, *_store_rows(content["rows"])]
        return Evidence(evidence.grids, rows, content.get("hardware") or "")
    return Evidence([*evidence.grids, grid], evidence.store, evidence.store_hardware)


def _origin(content: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Hardware, version and protocol; of the data only their names: where they lay is the machine's business."""
    protocol = {k: list(v) if k == "data" else v for k, v in (content.get("protocol") or {}).items()}
    return content.get("hardware") or "", content.get("version") or "", protocol


def _store_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = ("section", "case", "arm", "median", "n")
    return [{key: row[key] for key in kept} for row in rows if row["section"] in STORE_SECTIONS]


def compact(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Cells as plain data of a few KB each: all that the page needs; numbers keep six significant digits."""
    return [_rounded(asdict(cell)) for cell in cells]


def compact_evidence(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """Content of the compact files by name: one per grid, one for the store's benchmark.

    Raises DataError where two would have one name.
    """
    files: dict[str, dict[str, Any]] = {}
    for grid in evidence.grids:
        about = {"name": grid.name, "hardware": grid.hardware, "version": grid.version, "protocol": grid.protocol}
        name = re.sub(r"[^\w.-]+", "-", grid.name)
        if name in (*files, "store-benchmark"):
            raise DataError(f"{grid.name}: another file of results is called {name}, too: give it another name")
        files[name] = about | {"cells": compact(grid.cells)}
    if evidence.store:
        files["store-benchmark"] = {"hardware": evidence.store_hardware, "rows": _rounded(evidence.store)}
    return files


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def select(grids: Iterable[Grid], variant: str, keep: Callable[[str], bool] = lambda model: True) -> list[Cell]:
    """The finished cells of a variant, of the networks that ``keep`` wants."""
    return [c for grid in grids for c in grid.cells if c.variant == variant and c.summary and keep(c.model)]


def per_network(cells: Sequence[Cell], read: Read) -> dict[tuple[str, str], float]:
    """Mean over seeds of a number, by data set and model; those without any are left out."""
    groups: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        value = None if cell.summary is None else read(cell.summary)
        if value is not None:
            groups.setdefault((cell.dataset, cell.model), []).append(value)
    return {key: sum(values) / len(values) for key, values in groups.items()}


def network_of(model: str) -> tuple[str, int] | None:
    """Family and depth of a model's name: ``resnet18`` → (resnet, 18); None for others."""
    found = re.match(r"(vgg|resnet)(\d+)", model)
    return (found[1], int(found[2])) if found else None


def has_batch_norm(model: str) -> bool | None:
    """Whether a VGG or a ResNet has BatchNorm, by its name; None for other networks."""
    network = network_of(model)
    return None if network is None else network[0] == "resnet" or "_bn" in model


def is_family(family: str) -> Callable[[str], bool]:
    """Picks the paper's networks of a family: ResNets, and VGGs with BatchNorm."""
    return lambda model: (network_of(model) or ("", 0))[0] == family and bool(has_batch_norm(model))
