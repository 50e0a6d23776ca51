"""What several targets in one video cost beside one, and whether each is followed as well.

    python benchmarks/targets.py [FOLDER] [--frames 150] [--counts 1,2,4] [--repeats 3] [--set key=value]

FOLDER holds NAME/color/*.jpg and NAME/groundtruth.txt; left out, it is ${STREAMDROP_DATA}/sequences. The first target
is the sequence's own, whose AUC is given; the others are its neighbours, drawn by hand (BOXES). The counts take turns;
the table has medians over the repeats: milliseconds of the tracker per frame after the first, of the processor (cpu_ms,
with the lowest and the highest; cost: over that of the first count) and by the clock, decoding left out. One line of
JSON per run goes to stdout with --json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from streamdrop.config import load
from streamdrop.errors import StreamdropError
from streamdrop.evaluation import metrics
from streamdrop.evaluation.sequences import read_truth
from streamdrop.streams import open_stream
from streamdrop.tracking import Targets, TrackerConfig

BOXES = {
    "bolt1": [(278, 172, 38, 52), (386, 168, 36, 52), (231, 172, 38, 54), (438, 166, 36, 50)],  # the lanes beside his
    "jogging-1": [(181, 78, 35, 115)],  # she runs with him
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("STREAMDROP_DATA")
    parser.add_argument("folder", nargs="?", type=Path, default=data and Path(data) / "sequences")
    parser.add_argument("--sequences", type=lambda text: text.split(","), default=["bolt1"])
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--counts", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="key=value")
    parser.add_argument("--json", action="store_true", help="every run as a line of JSON")
    options = parser.parse_args()
    if options.folder is None:
        parser.error("no FOLDER and STREAMDROP_DATA is not set: give a folder of sequences")
    try:
        for name in options.sequences:
            compare(options, name)
    except StreamdropError as error:
        print(f"targets.py: {error}", file=sys.stderr)
        return 1
    return 0


def compare(options: argparse.Namespace, name: str) -> None:
    """One sequence: a row for each count."""
    folder = options.folder / name
    truth = read_truth(folder / "groundtruth.txt")
    boxes = [tuple(truth[0]), *BOXES[name]]
    with open_stream(str(folder / "color")) as stream:
        images = [sample.image for sample, _ in zip(stream, range(options.frames), strict=False)]
    counts = [count for count in options.counts if count <= len(boxes)]
    runs: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    config = load(None, TrackerConfig, options.set)
    for repeat in range(options.repeats):
        for count in counts if repeat % 2 == 0 else reversed(counts):
            run = once(config, images, boxes[:count], truth)
            runs[count].append(run)
            if options.json:
                print(json.dumps({"sequence": name, "targets": count, **run}), flush=True)
    print(f"{name}, {len(images)} frames, {options.repeats} repeats")
    keys = ("cpu_ms", "lowest", "highest", "cost", "ms", "p99", "rounds", "init", "auc", "lost")
    print(f"{'targets':>8}" + "".join(f"{key:>9}" for key in keys))
    for count, found in runs.items():
        row = {key: statistics.median(run[key] for run in found) for key in found[0]}
        row["lowest"], row["highest"] = (end(run["cpu_ms"] for run in found) for end in (min, max))
        row["cost"] = row["cpu_ms"] / statistics.median(run["cpu_ms"] for run in runs[counts[0]])
        print(f"{count:>8}" + "".join(f"{row[key]:>9.3f}" if key == "auc" else f"{row[key]:>9.2f}" for key in keys))


def once(config: TrackerConfig, images: list[Any], boxes: list[Any], truth: Any) -> dict[str, Any]:
    """One run over the images."""
    targets = Targets(config)
    began = time.perf_counter()
    found = [targets.init(images[0], boxes)]
    init = time.perf_counter() - began
    spent, cpu = [], time.process_time()
    for image in images[1:]:
        began = time.perf_counter()
        found.append(targets.update(image))
        spent.append((time.perf_counter() - began) * 1e3)
    cpu = (time.process_time() - cpu) * 1e3 / len(spent)
    targets.close()
    scores = metrics.scores([tracks[1].box for tracks in found], truth[: len(found)])
    return {
        "cpu_ms": cpu,
        "ms": statistics.fmean(spent),
        "p99": sorted(spent)[int(0.99 * len(spent))],
        "init": init,
        "rounds": sum(len(track.reports) for tracks in found[1:] for track in tracks.values()),
        "auc": scores["auc"],
        "lost": sum(track.lost for tracks in found for track in tracks.values()),
    }


if __name__ == "__main__":
    sys.exit(main())
