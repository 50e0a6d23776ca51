"""Write docs/reproduction.md: the paper's tables and claims beside our results.

    python scripts/write_reproduction.py                                  from docs/results
    python scripts/write_reproduction.py runs/mini --compact-to docs/results

RESULTS are folders that `streamdrop fit` wrote (of a sweep or of one experiment), the folder of benchmarks/store.py,
or compact files. With --compact-to they are reduced to a few KB per experiment and kept there, and the page is written
from all that lies there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from streamdrop.errors import DataError, StreamdropError
from streamdrop.evaluation.reproduction import write_reproduction
from streamdrop.evaluation.reproduction_data import Evidence, compact_evidence, read_evidence

DOCS = Path(__file__).resolve().parent.parent / "docs"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULTS", help="default: docs/results")
    parser.add_argument("--output", type=Path, default=DOCS / "reproduction.md")
    parser.add_argument("--compact-to", type=Path, metavar="FOLDER", help="keep compact copies of RESULTS here")
    options = parser.parse_args(argv)
    try:
        evidence = gather(options.results, options.compact_to)
        options.output.write_text(write_reproduction(evidence), encoding="utf-8")
    except (StreamdropError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.output}: {sum(len(grid.cells) for grid in evidence.grids)} experiments")
    return 0


def gather(results: list[Path], kept: Path | None) -> Evidence:
    """What the page is written from; compact copies of ``results`` are kept in a folder if one is given."""
    if kept is not None and results:
        kept.mkdir(parents=True, exist_ok=True)
        evidence = read_evidence(results)
        files = {kept / f"{name}.json": content for name, content in compact_evidence(evidence).items()}
        for path in filter(Path.exists, files):
            check_nothing_lost(path, evidence)
        for path, content in files.items():
            path.write_text(lines_of(content), encoding="utf-8")
    if kept is not None or not results:
        results = sorted((kept or DOCS / "results").glob("*.json"))
        if not results:
            raise DataError(f"{kept or DOCS / 'results'}: holds no results: give folders that `streamdrop fit` wrote")
    return read_evidence(results)


def check_nothing_lost(path: Path, evidence: Evidence) -> None:
    """Raise DataError where a kept file holds finished experiments that the new evidence lacks."""
    there = {(grid.name, *cell.key, cell.seed) for grid in evidence.grids for cell in grid.cells if cell.summary}
    lost = [
        f"{cell.dataset} / {cell.model} / {cell.variant} / seed {cell.seed}"
        for grid in read_evidence([path]).grids
        for cell in grid.cells
        if cell.summary and (grid.name, *cell.key, cell.seed) not in there
    ]
    if lost:
        raise DataError(
            f"{path}: would lose {len(lost)} finished experiments ({lost[0]}, …): give the parts of a grid together, "
            f"{path} among them, or remove it"
        )


def lines_of(content: dict[str, object]) -> str:
    """JSON with a line per experiment or row, so that a change shows as a change of lines."""
    parts = []
    for key, value in content.items():
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in value) if isinstance(value, list) else None
        parts.append(f'"{key}": ' + (json.dumps(value, ensure_ascii=False) if rows is None else f"[\n{rows}\n]"))
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    raise SystemExit(main())
