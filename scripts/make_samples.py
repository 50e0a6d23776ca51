"""Renders the sample data: a clip with truth, a drifting labelled stream, a small labelled set; same seed, same data.

python scripts/make_samples.py [--seed 0] [--output data_samples]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from streamdrop.streams import VideoWriter
from streamdrop.testing.scenes import FPS, drift_stream, render_clip

FRAMES, SIZE, IMAGES = 300, (480, 360), 2000
TRAIN, TEST = 256, 128


def write_clip(folder: Path, seed: int) -> None:
    """clip.mp4, and clip.txt with one x,y,w,h per frame, NaN where the target is hidden."""
    lines = []
    with VideoWriter(folder / "clip.mp4", FPS, SIZE, options={"preset": "slow", "crf": "25"}) as writer:
        for image, box in render_clip(seed, FRAMES, SIZE):
            writer.write(image)
            lines.append(",".join("nan" if box is None else f"{value:.2f}" for value in box or (0, 0, 0, 0)))
    (folder / "clip.txt").write_text("\n".join(lines) + "\n", encoding="ascii")


def write_drift(folder: Path, seed: int) -> None:
    """drift.npz: ``images`` uint8 [N, 32, 32, 3] and ``labels`` uint8 [N]."""
    images, labels = drift_stream(seed, IMAGES)
    np.savez_compressed(folder / "drift.npz", images=images, labels=labels.astype(np.uint8))


def write_labelled(folder: Path, seed: int) -> None:
    """labelled.npz: a set to train on and one to test on, drawn from one stream by turns."""
    images, labels = drift_stream(seed, TRAIN + TEST)
    test = np.arange(TRAIN + TEST) % 3 == 2
    parts = {"train": ~test, "test": test}
    arrays = {f"{name}_images": images[part] for name, part in parts.items()}
    arrays |= {f"{name}_labels": labels[part].astype(np.uint8) for name, part in parts.items()}
    np.savez_compressed(folder / "labelled.npz", **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "data_samples")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_clip(arguments.output, arguments.seed)
    write_drift(arguments.output, arguments.seed)
    write_labelled(arguments.output, arguments.seed)
    for path in sorted(arguments.output.iterdir()):
        print(f"{path.stat().st_size / 1e6:7.3f} MB  {path}")


if __name__ == "__main__":
    main()
