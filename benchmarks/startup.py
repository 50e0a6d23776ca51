"""How long a user waits before anything happens: ``import streamdrop`` and ``streamdrop --help``.

    python benchmarks/startup.py [--runs 7]

Fresh processes, taking turns; medians. Writes startup.json beside the table's figures when --output is given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import torch, torchvision, cv2": [sys.executable, "-c", "import torch, torchvision, cv2"],
    "import streamdrop": [sys.executable, "-c", "import streamdrop"],
    "import streamdrop, all of it": [
        sys.executable,
        "-c",
        "import streamdrop\nfor name in streamdrop.__all__: getattr(streamdrop, name)",
    ],
    "streamdrop --help": [sys.executable, "-m", "streamdrop", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write JSON here")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.runs):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    rival = statistics.median(seconds["import torch, torchvision, cv2"])
    print(f"{'process':<34}{'median s':>10}{'min':>8}{'max':>8}{'ratio':>8}   n = {options.runs}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:<34}{median:>10.2f}{min(values):>8.2f}{max(values):>8.2f}{median / rival:>8.2f}")
    if options.output:
        options.output.write_text(json.dumps(seconds, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
