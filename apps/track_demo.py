"""Track a target through a video and leave a picture of what happened: the public API in one page.

python apps/track_demo.py                                      the sample clip
python apps/track_demo.py --source video.mp4 --box 120,80,60,60
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import streamdrop as sd

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "data_samples" / "clip.mp4"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=str(CLIP), help="video, folder of images, camera number or URL")
    parser.add_argument("--box", help="x,y,w,h of the target in the first frame (default: the sample clip's)")
    parser.add_argument("--output", default="demo", type=Path, help="folder for video, boxes, events and report")
    options = parser.parse_args()
    try:
        run(options.source, options.box, options.output)
    except sd.StreamdropError as error:
        print(f"track_demo: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("track_demo: interrupted: what was written so far is whole", file=sys.stderr)
        return 130
    return 0


def run(source: str, box_text: str | None, output: Path) -> None:
    truth = CLIP.with_suffix(".txt") if Path(source).resolve() == CLIP else None
    if box_text is None and truth is None:
        raise sd.StreamdropError("no target: give --box x,y,w,h, its place in the first frame")
    box = sd.parse_box(box_text or truth.read_text().splitlines()[0])
    output.mkdir(parents=True, exist_ok=True)
    tracker = sd.Tracker.from_config(ROOT / "configs" / "basic.yaml")
    with sd.open_stream(source) as stream:
        files = {"boxes": "boxes.txt", "events": "events.jsonl", "video": "demo.mp4", "report": "report.html"}
        paths = {kind: output / name for kind, name in files.items()}
        with sd.Recorder(stream, **paths, truth=truth, layers=tracker.layers) as recorder:
            for track in sd.track(recorder, tracker, box):
                recorder.add(track)
                if track.frame % 25 == 0:
                    state = "lost" if track.lost else f"score {track.score:.2f}"
                    print(f"frame {track.frame:5}  {state}  {track.ms:.0f} ms", flush=True)
    print(recorder.summary())
    print(f"look at {output}/demo.mp4 and {output}/report.html")


if __name__ == "__main__":
    sys.exit(main())
