"""Run a grid of experiments, each cell in a process of its own: one that fails does not take the others with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamdrop._version import __version__
from streamdrop.errors import ConfigError
from streamdrop.evaluation.claim import claimed
from streamdrop.evaluation.device import check_device
from streamdrop.evaluation.experiment import differences, read_result
from streamdrop.evaluation.fit_config import checked_strategies
from streamdrop.evaluation.fit_state import make_folder, opened_anew, replace_text
from streamdrop.evaluation.fit_tables import format_sweep
from streamdrop.evaluation.hardware import describe_hardware
from streamdrop.evaluation.sweep_config import Cell, Sweep

OnCell = Callable[[Cell, str], None]
POLL_SECONDS = 0.1
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep ended: the content of sweep.json, the results of the cells that are done, and how many failed."""

    sweep: dict[str, Any]
    results: list[dict[str, Any]]
    failed: int

    @property
    def table(self) -> str:
        """Seeds averaged."""
        return format_sweep(self.sweep, self.results)


@dataclass
class _Job:
    """A cell that is running."""

    cell: Cell
    process: subprocess.Popen[bytes]
    core: int | None
    started: float = field(default_factory=time.monotonic)


def run_sweep(
    sweep: Sweep,
    output: str | os.PathLike[str],
    on_cell: OnCell = lambda cell, text: None,
    flags: Sequence[str] = (),
) -> SweepOutcome:
    """Run every cell that is not done, ``jobs`` at once; ``output/sweep.json`` is rewritten after each.

    Cells that are done are kept; one that was cut short goes on; one that failed is tried again. ``on_cell`` is told
    each cell's end. ``flags`` go to the cells: --save-weights, --download. Raises ConfigError for cells of another
    configuration in ``output`` and for a GPU that is not there, OutputError, also where another run is writing there.
    """
    for device in {cell.config.device for cell in sweep.cells}:
        check_device(device)
    grid = _Grid(sweep, Path(output), on_cell, list(flags))
    with claimed(grid.folder):
        grid.look_around()
        try:
            grid.carry_out()
        finally:
            grid.stop()
        return grid.outcome()


@dataclass
class _Grid:
    """A sweep under way: what became of each cell, and what is running."""

    sweep: Sweep
    folder: Path
    on_cell: OnCell
    flags: list[str]
    status: dict[Cell, str] = field(default_factory=dict)
    errors: dict[Cell, str] = field(default_factory=dict)
    running: list[_Job] = field(default_factory=list)

    def look_around(self) -> None:
        """Which cells are done; refuses those of another configuration."""
        for cell in self.sweep.cells:
            result = read_result(self.folder / cell.folder)
            self.status[cell] = "missing"
            if result is None:
                continue
            asked = checked_strategies(self.sweep.config.strategies, cell.config.same_time)
            different = differences(result, cell.config, asked)
            where = self.folder / cell.folder
            good = result["finished"] and all(arm["status"] == "done" for arm in result["strategies"].values())
            if different and (good or (where / "state").exists()):
                raise ConfigError(f"{where}: was made with other {', '.join(different)}: give another --output")
            if different:  # it failed, and what was wrong may have been corrected
                (where / "result.json").unlink()
            elif good:
                self.status[cell] = "done"
                self.on_cell(cell, f"{cell}: kept")
        self._write()

    def carry_out(self) -> None:
        """Start cells as others end, until none is left."""
        waiting = iter([cell for cell in self.sweep.cells if self.status[cell] == "missing"])
        jobs = min(self.sweep.config.jobs, len(self.sweep.cells))
        free = _cores(jobs, self.sweep.config.threads)
        while self._start(waiting, free) or self.running:
            time.sleep(POLL_SECONDS)
            for job in [job for job in self.running if job.process.poll() is not None]:
                self.running.remove(job)
                free.append(job.core)
                self._ended(job)

    def _start(self, waiting: Iterator[Cell], free: list[int | None]) -> bool:
        """Start a cell on every free core; False when nothing is left to start."""
        while free:
            cell = next(waiting, None)
            if cell is None:
                return False
            self.running.append(self._launch(cell, free.pop(0)))
        return True

    def _launch(self, cell: Cell, core: int | None) -> _Job:
        folder = self.folder / cell.folder
        make_folder(folder)
        given = {"config": cell.config.plain(), "strategies": self.sweep.config.strategies}
        replace_text(folder / "cell.json", json.dumps(given, indent=1))
        command = [sys.executable, "-m", "streamdrop.evaluation.sweep_cell", str(folder), *self.flags]
        command += [] if core is None else ["--core", str(core)]
        threads = str(self.sweep.config.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
        with opened_anew(folder / "errors.txt") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # its end tells the cell to stop
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which ends its cells in order
            )
        return _Job(cell, process, core)

    def _ended(self, job: _Job) -> None:
        cell, code = job.cell, job.process.returncode
        result = read_result(self.folder / cell.folder)
        if code == 0 and result is not None and result["finished"]:
            self.status[cell] = "done"
            text = f"{cell}: done in {time.monotonic() - job.started:.0f} s{_accuracies(result)}"
        else:
            self.status[cell] = "failed"
            self.errors[cell] = _last_line(self.folder / cell.folder / "errors.txt", code)
            text = f"{cell}: failed: {self.errors[cell]}"
        if job.process.stdin is not None:
            job.process.stdin.close()
        self._write()
        self.on_cell(cell, text)

    def stop(self) -> None:
        """End what is running: each cell saves its state first, if it does so in time."""
        for job in self.running:
            if job.process.stdin is not None:
                job.process.stdin.close()
        try:
            for job in self.running:
                job.process.wait(STOP_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C: at once
            for job in self.running:
                job.process.kill()
                job.process.wait()
        self.running.clear()

    def outcome(self) -> SweepOutcome:
        """What sweep.json says, and what the cells that are done say."""
        found = [read_result(self.folder / c.folder) for c in self.sweep.cells if self.status[c] == "done"]
        failed = sum(status == "failed" for status in self.status.values())
        return SweepOutcome(self._content(), [result for result in found if result is not None], failed)

    def _write(self) -> None:
        replace_text(self.folder / "sweep.json", json.dumps(self._content(), indent=1))

    def _content(self) -> dict[str, Any]:
        return {
            "name": self.sweep.config.name,
            "hardware": describe_hardware(),
            "version": __version__,
            "protocol": self.sweep.protocol,
            "cells": [
                {
                    "dataset": cell.dataset,
                    "model": cell.model,
                    "variant": cell.variant,
                    "seed": cell.seed,
                    "status": self.status[cell],
                    "error": self.errors.get(cell),
                    "result": f"{cell.folder}/result.json",
                }
                for cell in self.sweep.cells
            ],
        }


def _cores(jobs: int, threads: int) -> list[int | None]:
    """A core for each job, by turns where there are fewer; None where cells need not or cannot be pinned to one."""
    if jobs == 1 or threads > 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * jobs
    usable = sorted(os.sched_getaffinity(0))
    return [usable[i % len(usable)] for i in range(jobs)]


def _accuracies(result: dict[str, Any]) -> str:
    known = {name: entry["accuracy"] for name, entry in result["strategies"].items()}
    return "".join(f", {name} {accuracy:.3f}" for name, accuracy in known.items() if accuracy is not None)


def _last_line(path: Path, code: int) -> str:
    """The last line that a cell left on stderr, or how it ended."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    if code < 0:
        return f"ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    return lines[-1].strip() if lines else f"ended with status {code}"
