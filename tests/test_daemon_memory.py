"""What the daemon's process does without: torch's compiler, and memory that was needed for a moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

TRACKING = """
import hashlib, sys
import streamdrop as sd
from streamdrop.testing import moving_square
from streamdrop.tracing.compiler import leave_out_compiler
if sys.argv[1] == "without":
    leave_out_compiler()
from small_tracker import SMALL
tracker = sd.Tracker.from_config(SMALL)
images, boxes = moving_square(14)
tracks = list(sd.track(images, tracker, boxes[0]))
print(hashlib.sha256(repr([(t.box, t.score, t.report and t.report.loss) for t in tracks]).encode()).hexdigest())
print("torch._dynamo" in sys.modules or (sys.argv[1] == "without" and "triton" in sys.modules))
"""

FREED = """
import ctypes, threading
from streamdrop.service.memory import few_heaps, give_back
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
few_heaps(2)
def use():
    kept = [bytearray(b"x" * 100_000) for _ in range(1000)]
    last = bytearray(1000)
    del kept
    held.append(last)
held = []
before = resident()
threads = [threading.Thread(target=use) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
give_back()
print(resident() - before)
"""


def run(code: str, *arguments: str) -> list[str]:
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_without_torch_s_compiler_boxes_scores_and_losses_are_the_same():
    (same, with_it), (result, without) = run(TRACKING, "with"), run(TRACKING, "without")
    assert result == same
    assert without == "False"
    assert with_it in ("True", "False")  # once torch no longer imports it, leave_out_compiler can go


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_was_freed_is_given_back():
    (grown,) = run(FREED)
    assert int(grown) < 30e6
