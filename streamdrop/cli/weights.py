"""``streamdrop weights list|get|add``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from streamdrop.cli.terminal import Progress
from streamdrop.columns import align


def print_list(options: argparse.Namespace) -> int:
    """Print every name, its licence and whether it is here."""
    from streamdrop.weights import listing, weights_folder

    rows = listing()
    if options.json:
        print(json.dumps({"folder": str(weights_folder()), "weights": rows}, indent=1))
        return 0
    table = [["name", "here", "what", "licence"], *(_row(row) for row in rows)]
    print("\n".join(align(table, left=4)))
    print(f"folder: {weights_folder()}")
    return 0


def get(options: argparse.Namespace) -> int:
    """Download weights that are not here yet; print where they lie."""
    from streamdrop.weights import get as fetch

    with Progress("bytes", None) as progress:

        def tell(name: str, done: int, total: int | None) -> None:
            progress.at(done, total, name)

        paths = fetch(options.name, tell)
    print("\n".join(str(path) for path in paths))
    return 0


def add(options: argparse.Namespace) -> int:
    """Take weights from a folder of the user's; print where they lie."""
    from streamdrop.weights import add as take
    from streamdrop.weights.folder import file_path

    entry = take(options.name, options.folder, options.licence)
    print("\n".join(str(file_path(entry, file)) for file in entry.files))
    return 0


def _row(row: dict[str, Any]) -> list[str]:
    return [row["name"], "yes" if row["installed"] else "no", row["what"], row["licence"]]
