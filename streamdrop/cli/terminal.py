"""Progress on a terminal; silence anywhere else."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID


class Progress:
    """A bar on stderr while a terminal is there to show it; ``total`` None: of unknown length."""

    def __init__(self, unit: str, total: int | None) -> None:
        self._bar = None
        self._task: TaskID | None = None
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn(unit),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, text: str) -> None:
        """One unit is done; ``text`` says what it showed."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=1, description=text)

    def at(self, done: int, total: int | None, text: str) -> None:
        """So many units of ``total`` (None: nobody knows) are done; ``text`` says what of."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=text)


def note(text: str) -> None:
    """A line for the person at the command line, on stderr."""
    print(f"streamdrop: {text}", file=sys.stderr)
