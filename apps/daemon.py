"""Two streams tracked side by side in a program of your own: what `streamdrop serve` does, without YAML and HTTP.

python apps/daemon.py                                      the sample clip, twice
python apps/daemon.py --source rtsp://camera/stream --box 120,80,60,60
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import streamdrop as sd

CLIP = Path(__file__).resolve().parent.parent / "data_samples" / "clip.mp4"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=str(CLIP), help="video, folder of images, camera number or URL")
    parser.add_argument("--box", default="112,85,128,72", help="x,y,w,h in the first frame")
    parser.add_argument("--state", default="runs/daemon", help="what survives: start again and both go on")
    options = parser.parse_args()
    try:
        asyncio.run(watch(options.source, sd.parse_box(options.box), options.state))
    except sd.StreamdropError as error:
        print(f"daemon: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("daemon: interrupted: all is saved", file=sys.stderr)
        return 130
    return 0


async def watch(source: str, box: sd.Box, state: str) -> None:
    """Both streams until they end; the second learns more seldom."""
    seldom = {"update": {"every": 20}}
    with (
        sd.Session(source, box, name="often", state=state) as often,
        sd.Session(source, box, name="seldom", state=state, tracker=seldom, beside=often) as second,
    ):
        await asyncio.gather(report("often", often), report("seldom", second))


async def report(name: str, session: sd.Session) -> None:
    async for event in session:
        if "after_frame" in event:
            print(f"{name:7} round {event['round']:4}  loss {event['loss']:.4f}  cut {event['cut']}", flush=True)
        elif "event" in event:
            print(f"{name:7} {event['event']} {event.get('error', '')}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
