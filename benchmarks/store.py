"""What the stores do: reading, writing, promotion, opening, memory, codecs, side by side with rivals in one run.

    python benchmarks/store.py [--sizes 4,64,512] [--total-mb 512] [--repeats 5] [--only reads,writes,...]
                               [--rivals "pickle per sample,raw memory map"] [--folder DIR] [--output DIR]

Sections (``--only``):
  writes     durable writes: all is on the disk when the clock stops; against the disk's own sequential write
  disk       bytes on disk for each byte of payload
  reads      random batches of 32 without replacement, page cache warm
  cold       the same, after fsync and POSIX_FADV_DONTNEED on every file (what the disk's own cache holds stays)
  promotion  ``advance`` through real layers, against the same layers on tensors in memory
  million    opening a store of 1,000,000 samples (built once under --folder); asked for by name or --million
  behind     what write-behind adds to a tracker's rounds
  memory     resident memory while ten times the ring is written and read, in processes of their own
  codecs     compression and lossy codecs on a network's maps

All arms take turns (A B C ... A B C ...). A ratio is the median of the turns' ratios, its range in brackets. Rivals
from the extra ``bench``: pip install 'streamdrop[bench]'. Torch computes on one thread unless a section says otherwise.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from storebench.behind import behind
from storebench.coding import coding
from storebench.measure import Row, table
from storebench.memory import memory
from storebench.opening import million
from storebench.ours import STORES
from storebench.plot import draw
from storebench.promotion import promotion
from storebench.rivals import EXTRA, RIVALS
from storebench.transfer import transfer

from streamdrop.cli.arguments import names, wholes, words
from streamdrop.evaluation.hardware import describe_hardware
from streamdrop.tracking.threads import cores

TRANSFER = ("writes", "disk", "reads", "cold")
SECTIONS: dict[str, Callable[[argparse.Namespace, Path], Iterator[list[Row]]]] = {
    "promotion": promotion,
    "million": million,
    "behind": behind,
    "memory": memory,
    "codecs": coding,
}
USUAL = [*TRANSFER, *(name for name in SECTIONS if name != "million")]


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    hardware = describe_hardware()
    print(hardware, flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="store-") as folder:
        for group in groups(options, Path(folder)):
            rows += group
            print(f"\n{table(group)}", flush=True)
            if options.output:
                save(rows, options, hardware)
    missed = [f"{row.section}, {row.case}: {row.arm}" for row in rows if any(v["met"] is False for v in row.verdicts)]
    print("\nevery target is met" if not missed else "\nmissed:\n  " + "\n  ".join(missed))


def groups(options: argparse.Namespace, work: Path) -> Iterator[list[Row]]:
    """The rows of every chosen section, as they come."""
    if any(name in options.only for name in TRANSFER):
        yield from transfer(options, work)
    for name, section in SECTIONS.items():
        if name in options.only:
            yield from section(options, work)


def save(rows: list[Row], options: argparse.Namespace, hardware: str) -> None:
    """store.json and the figure, anew after each section: a run that is cut short leaves what it has."""
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in vars(options).items() if not isinstance(v, Path)}
    found = {"hardware": hardware, "settings": settings, "rows": [row.to_json() for row in rows]}
    (options.output / "store.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    draw(rows, hardware, options.output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=wholes, default=[4, 64, 512], help="KB of a sample, separated by commas")
    parser.add_argument("--total-mb", type=int, default=512, help="data for each size")
    parser.add_argument("--max-samples", type=int, default=32768, help="most samples of a size: files take their time")
    parser.add_argument("--memory-mb", type=int, default=256, help="TieredStore's ring, at most half the data")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn of warm reading; the most of a cold one")
    parser.add_argument("--only", type=names, default=USUAL, help=f"of {', '.join((*TRANSFER, *SECTIONS))}")
    parser.add_argument("--rivals", type=words, default=list(RIVALS), help="of " + ", ".join(RIVALS))
    parser.add_argument("--stores", type=names, default=list(STORES), help="of " + ", ".join(STORES))
    parser.add_argument("--million", action="store_true", help="also open a store of 1,000,000 samples")
    parser.add_argument("--million-bytes", type=int, default=1024, help="bytes of each of the million samples")
    parser.add_argument("--threads", type=int, default=cores(), help="torch's threads in promotion")
    parser.add_argument("--pictures", type=Path, help="video or folder of frames for codecs (default: the sample clip)")
    parser.add_argument("--folder", type=Path, help="where to write: the disk to measure (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help="folder for store.json, store.png and store.svg")
    return checked(parser, parser.parse_args())


def checked(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    """The options, their names known and their folder there."""
    options.only = [*options.only, "million"] if options.million else options.only
    chosen = ((options.only, (*TRANSFER, *SECTIONS)), (options.rivals, RIVALS), (options.stores, STORES))
    for given, known in chosen:
        if unknown := set(given) - set(known):
            parser.error(f"{', '.join(sorted(unknown))}: not known; choose from {', '.join(known)}")
    missing = [name for name in options.rivals if name in EXTRA and importlib.util.find_spec(EXTRA[name]) is None]
    if missing and set(options.only) & set(TRANSFER):
        parser.error(f"{', '.join(missing)}: pip install 'streamdrop[bench]', or leave them out of --rivals")
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
