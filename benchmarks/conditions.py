"""Where deeper training pays on a stream, and where it does not: the tracker under worse frames and worse backbones.

    python benchmarks/conditions.py [FOLDER] [--conditions "plain,low light"] [--arms none,fixed,drop,deep]
                                    [--sequences a,b] [--frames 100] [--seeds 0] [--output runs/conditions]

FOLDER holds NAME/color/*.jpg and NAME/groundtruth.txt; left out, it is ${STREAMDROP_DATA}/sequences. Arms:

  none    nothing is learned after the first frame
  fixed   the head learns, the backbone never does
  drop    the backbone's last 3 blocks are trained in 4 steps on the first frame, then dropped (the default)
  placebo the same at a rate at which they do not move: what the other course of batches does by itself
  longer  the same in 16 steps
  trial   nothing deeper on the first frame; on the stream they are trained where a trial shows that it pays
  deep    the same with 5 blocks, 16 steps, ten times the learning rate
  full    the last 3 blocks are trained in every round, throughout

Runs that conditions.json in the output folder has are not done again: a run that was cut short goes on, and arms,
seeds or sequences can be added later. Gains over ``fixed`` are paired: the same sequence, seed and frames. Round times
are the tracker's own reports; changing the frames lies outside them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conditionbench.backbones import BACKBONES, backbone
from conditionbench.frames import FRAMES, Seen, plain
from conditionbench.verdicts import RULE, summarise, table
from safetensors.torch import save_file
from sequence_options import parsed, parser_of

from streamdrop.atomic import replace_text
from streamdrop.cli.arguments import names
from streamdrop.errors import StreamdropError
from streamdrop.evaluation.arms import tracker_builder
from streamdrop.evaluation.hardware import describe_hardware
from streamdrop.evaluation.jobs import Job, run_job, schedule
from streamdrop.evaluation.protocol import OnlineTracker
from streamdrop.evaluation.results import collect
from streamdrop.evaluation.sequences import read_sequences

BASE = "fixed"
ARMS: dict[str, list[str]] = {
    "none": [],
    "fixed": [],
    "drop": [],
    "placebo": ["drop.learning_rate=1e-12"],
    "trial": ["drop.policy=if-it-pays"],
    "longer": ["drop.steps=16"],
    "deep": ["drop.blocks=5", "drop.steps=16", "drop.learning_rate=1e-4"],
    "full": [],
}
CONDITIONS = (*FRAMES, *BACKBONES)


def main() -> int:
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "conditions.json"
    records: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []
    try:
        for condition in options.conditions:
            for record in run(condition, records, options):
                records.append(record)
                save(path, records, options)
    except StreamdropError as error:
        print(f"conditions.py: {error}", file=sys.stderr)
        return 1
    print(table(save(path, records, options), BASE))
    print(f"{RULE}\n{describe_hardware()}\nfigures: {path}")
    return 0


def run(condition: str, records: list[dict[str, Any]], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The records of one condition that are not there yet."""
    done = {(r["condition"], r["name"], r["arm"], r["seed"], r["limit"]) for r in records}
    sequences = read_sequences(options.folder, options.sequences, options.frames)
    jobs = [
        job
        for job in schedule(sequences, options.arms, (), options.seeds)
        if (condition, job.sequence.name, job.arm, job.seed, options.frames) not in done
    ]
    with tempfile.TemporaryDirectory(prefix="conditions-") as folder:
        own = weights(condition, Path(folder)) if jobs else []
        for job in jobs:
            yield {"condition": condition, "limit": options.frames, **measure(job, condition, [*own, *options.set])}


def weights(condition: str, folder: Path) -> list[str]:
    """The setting that gives a condition's backbone, whose file is written to ``folder``."""
    if condition not in BACKBONES:
        return []
    file = folder / "backbone.safetensors"
    save_file(backbone(condition), file)
    return [f"weights={file}"]


def measure(job: Job, condition: str, settings: list[str]) -> dict[str, Any]:
    """One run, as ``streamdrop evaluate`` records it."""
    build = tracker_builder(None, [*settings, *ARMS[job.arm]])

    def seen(arm: str, seed: int) -> OnlineTracker:
        tracker = build("drop" if ARMS[arm] else arm, seed)
        return Seen(tracker, FRAMES.get(condition, plain), job.sequence.name)

    outcome = run_job(job, seen, None, lambda index: None)
    record: dict[str, Any] = collect([outcome], [job.arm], "", {})["sequences"][0]
    print(f"{condition}, {job}: AUC {record['auc']:.3f}, {record['rounds']} rounds", file=sys.stderr, flush=True)
    return {key: value for key, value in record.items() if key not in ("cuts", "round_frames", "fps", "cpu_fps")}


def save(path: Path, records: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Write all that is known, whole; the rows of the table, of the runs that have this run's length."""
    rows = {}
    for condition in CONDITIONS:
        own = [r for r in records if r["condition"] == condition and r["limit"] == options.frames]
        own.sort(key=lambda record: list(ARMS).index(record["arm"]))
        if own:
            rows[condition] = summarise(own, BASE)
    found = {
        "command": " ".join(["python", *sys.argv]),
        "hardware": describe_hardware(),
        "frames": options.frames,
        "rule": RULE,
        "rows": rows,
        "runs": records,
    }
    replace_text(path, json.dumps(found, indent=1) + "\n")
    return rows


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--conditions", type=names, default=list(CONDITIONS), help="of " + ", ".join(CONDITIONS))
    parser.add_argument("--arms", type=names, default=["none", "fixed", "drop"], help="of " + ", ".join(ARMS))
    parser.add_argument("--frames", type=int, default=100, help="the first so many of each sequence")
    parser.add_argument("--output", type=Path, default=Path("runs/conditions"))
    return parsed(parser, conditions=CONDITIONS, arms=ARMS)


if __name__ == "__main__":
    sys.exit(main())
