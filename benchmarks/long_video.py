"""Whether a tracker is on a long video what it was at its beginning: accuracy, time, memory, what it remembers.

    python benchmarks/long_video.py [SEQUENCE] [--frames 10000] [--set key=value] [--output FILE]

SEQUENCE is a folder with truth (or a video beside a TXT of boxes, a line each); left out, the sample clip. It is
played forth and back, again and again, until ``--frames`` are reached: no jump, no help, one first box. A *loop* is
once forth and once back, so all loops show the same pictures and can be compared; the last one is always whole.
The first loop's AUC counts the given box. Milliseconds are those of ``update``, rounds included, decoding left out.
Memory is what the process holds of its own (no mapped files), at the end of a loop.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from storebench.measure import resident

import streamdrop as sd
from streamdrop.columns import align
from streamdrop.config import load
from streamdrop.errors import StreamdropError
from streamdrop.evaluation import metrics
from streamdrop.evaluation.hardware import describe_hardware
from streamdrop.evaluation.protocol import FrameReader
from streamdrop.evaluation.sequences import VideoSequence, read_sequence
from streamdrop.tracking import Tracker, TrackerConfig

CLIP = Path(__file__).parents[1] / "data_samples" / "clip.mp4"


@dataclass(frozen=True)
class Loop:
    """Once forth and once back."""

    frames: int
    auc: float
    precision: float
    lost: int
    median_ms: float
    p99_ms: float
    own_mb: float
    remembered: int
    rounds: int
    loss: float


def main() -> int:
    options = parse()
    try:
        with opened(options.source) as sequence:
            loops = list(play(sequence, options))
    except StreamdropError as error:
        print(f"long_video.py: {error}", file=sys.stderr)
        return 1
    found = {
        "command": " ".join(["python", *sys.argv]),
        "hardware": describe_hardware(),
        "sequence": sequence.name,
        "frames": sum(loop.frames for loop in loops),
        "loops": [asdict(loop) for loop in loops],
        "drift": drift(loops),
    }
    print(table(loops), f"{sequence.name}, {found['frames']} frames; {in_words(drift(loops))}", sep="\n")
    print(describe_hardware())
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def forth_and_back(count: int) -> list[int]:
    """Indices of one loop over ``count`` frames: each step is to a neighbour, also from one loop to the next."""
    return [*range(count), *range(count - 2, 0, -1)]


def play(sequence: VideoSequence, options: argparse.Namespace) -> Iterator[Loop]:
    """The loops of a run; what is measured is not kept any longer than its loop."""
    tracker = Tracker(load(None, TrackerConfig, options.set))
    order = forth_and_back(len(sequence))
    seen = 0
    while seen < options.frames:
        loop = once(tracker, sequence, order, begin=seen == 0)
        seen += loop.frames
        print(f"{seen} frames: AUC {loop.auc:.3f}, {loop.own_mb:.0f} MB", file=sys.stderr, flush=True)
        yield loop
    tracker.close()


def once(tracker: Tracker, sequence: VideoSequence, order: list[int], begin: bool) -> Loop:
    """One loop, from the tracker's first frame on where it begins."""
    read = FrameReader()
    boxes, ms, losses, lost = np.zeros((len(order), 4)), np.full(len(order), np.nan), [], 0
    for place, index in enumerate(order):
        image = read(sequence.frames[index])
        first, began = begin and place == 0, time.perf_counter()
        track = tracker.init(image, sequence.first_box) if first else tracker.update(image)
        if not first:
            ms[place] = (time.perf_counter() - began) * 1000
            losses += [report.loss for report in track.reports]
        boxes[place] = track.box
        lost += track.lost
    scores = metrics.scores(boxes, sequence.truth[order])
    return Loop(
        frames=len(order),
        auc=scores["auc"],
        precision=scores["precision"],
        lost=lost,
        median_ms=float(np.nanmedian(ms)),
        p99_ms=float(np.nanpercentile(ms, 99)),
        own_mb=resident()["anon"] / 2**20,
        remembered=len(tracker.learner.tuner.store),
        rounds=len(losses),
        loss=float(np.mean(losses)) if losses else float("nan"),
    )


def drift(loops: list[Loop]) -> dict[str, float]:
    """The last loop against the first, and how memory grew over the second half, MB per 1,000 frames."""
    first, last = loops[0], loops[-1]
    half = loops[len(loops) // 2 :]
    seen = np.cumsum([loop.frames for loop in half]) / 1000
    slope = float(np.polyfit(seen, [loop.own_mb for loop in half], 1)[0]) if len(half) > 1 else float("nan")
    return {
        "auc": last.auc - first.auc,
        "auc_lowest": min(loop.auc for loop in loops),
        "median_ms": last.median_ms - first.median_ms,
        "p99_ms": last.p99_ms - first.p99_ms,
        "mb_per_1000_frames": slope,
    }


def in_words(found: dict[str, float]) -> str:
    return (
        f"last loop - first: AUC {found['auc']:+.3f} (lowest {found['auc_lowest']:.3f}), "
        f"median {found['median_ms']:+.1f} ms, p99 {found['p99_ms']:+.1f} ms; "
        f"memory {found['mb_per_1000_frames']:+.2f} MB per 1,000 frames (second half)"
    )


def table(loops: list[Loop]) -> str:
    head = ("loop", "AUC", "precision", "lost", "median ms", "p99 ms", "own MB", "remembered", "rounds", "loss")
    rows = [
        (
            str(number),
            f"{loop.auc:.3f}",
            f"{loop.precision:.3f}",
            str(loop.lost),
            *(f"{value:.1f}" for value in (loop.median_ms, loop.p99_ms, loop.own_mb)),
            str(loop.remembered),
            str(loop.rounds),
            f"{loop.loss:.4f}",
        )
        for number, loop in enumerate(loops, 1)
    ]
    return "\n".join(align([head, *rows]))


@contextmanager
def opened(source: Path) -> Iterator[VideoSequence]:
    """A sequence on disk; of a video the frames lie in a temporary folder as long."""
    if source.is_dir():
        yield read_sequence(source)
        return
    with tempfile.TemporaryDirectory(prefix="long-video-") as folder:
        frames = Path(folder) / source.stem / "color"
        frames.mkdir(parents=True)
        with sd.open_stream(source) as stream:
            for sample in stream:
                cv2.imwrite(str(frames / f"{sample.index:08d}.png"), sample.image[..., ::-1])
        (frames.parent / "groundtruth.txt").write_text(source.with_suffix(".txt").read_text())
        yield read_sequence(frames.parent)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, default=CLIP, metavar="SEQUENCE")
    parser.add_argument("--frames", type=int, default=10_000, help="at least so many, in whole loops")
    parser.add_argument("--set", action="append", default=[], metavar="key=value")
    parser.add_argument("--output", type=Path, help="write JSON here")
    options = parser.parse_args()
    if not options.source.is_dir() and not options.source.with_suffix(".txt").is_file():
        parser.error(f"{options.source}: neither a folder nor a video with a .txt of its boxes beside it")
    return options


if __name__ == "__main__":
    sys.exit(main())
