"""Kills an experiment at random instants, resumes it, and prints whether weights and rows came out the same.

    python tests/crash_fit.py FOLDER [KILLS]

Run by test_experiment.py as a process of its own: torch is imported once, every run is a fork that gets SIGKILL.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # what the first optimiser step would import, in every fork anew

torch.set_num_threads(1)

from streamdrop import checkpoint  # noqa: E402
from streamdrop.config import load  # noqa: E402
from streamdrop.evaluation import fit_arm  # noqa: E402
from streamdrop.evaluation.experiment import FitConfig, run_experiment  # noqa: E402
from streamdrop.testing.tuners import SmallNet  # noqa: E402

fit_arm.build_network = lambda *given, **more: SmallNet()
POLICIES = [{"schedule": {2: 2, 4: 4}}, "prefix-sum"]
STRATEGIES = ["sgd", "freeze", "drop"]
TIMED = ("seconds", "store_seconds", "tail_seconds", "read_seconds", "train_seconds")


def make_data(folder: Path) -> None:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, count in (("train", 130), ("test", 30)):
        labels = generator.integers(0, 3, count)
        images = generator.integers(0, 60, (count, 12, 12, 3)) + 80 * labels[:, None, None, None]
        np.savez(folder / f"{name}.npz", images=images.astype(np.uint8), labels=labels)


def train(root: Path, name: str, policy: object) -> None:
    """The experiment in ``root/name``, gone on with; a checkpoint after every epoch or, by the name, now and then."""
    given = {"data": str(root / "data"), "image_size": 12, "train": 130, "test": 30, "epochs": 7, "warm_up": 2}
    given |= {
        "batch_size": 4,
        "policy": policy,
        "same_time": False,
        "checkpoint_seconds": 0 if "often" in name else 0.2,
    }
    given["schedule"] = {"kind": "step", "milestones": [3, 5], "factor": 0.5}
    run_experiment(load(given, FitConfig), STRATEGIES, root / name, resume=True, save_weights=True)


def in_child(root: Path, name: str, policy: object, kill_after: float | None = None) -> bool:
    """Run in a fork, killed after so many seconds; whether it came to its end by itself."""
    child = os.fork()
    if child == 0:
        try:
            train(root, name, policy)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    timer = threading.Timer(kill_after or 1e6, os.kill, (child, signal.SIGKILL))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a run failed")
    return not os.WIFSIGNALED(status)


def outcome(folder: Path) -> tuple[object, dict[str, bytes]]:
    """What must not depend on kills: rows without their timings, final weights."""
    result = json.loads((folder / "result.json").read_text())
    rows = {
        name: [{key: value for key, value in row.items() if key not in TIMED} for row in entry["epochs"]]
        for name, entry in result["strategies"].items()
    }
    return rows, {name: (folder / f"{name}.safetensors").read_bytes() for name in STRATEGIES}


def main(root: Path, kills: int) -> None:
    make_data(root / "data")
    draw = random.Random(0)
    killed = resumed = 0
    for number, policy in enumerate(POLICIES):
        start = time.monotonic()
        in_child(root, f"expected-{number}", policy)
        took = time.monotonic() - start
        expected = outcome(root / f"expected-{number}")
        for kill in range(kills):
            name = f"{number}-{'often' if kill % 2 else 'seldom'}-{kill}"
            patience = 1.0  # grows: the machine may have become slower than it was for the expected run
            while not in_child(root, name, policy, draw.uniform(0.1, 1.0) * took * patience):
                killed, patience = killed + 1, 1.1 * patience
                resumed += any(checkpoint.exists(root / name / "state" / s / "checkpoint") for s in STRATEGIES)
            same = outcome(root / name) == expected
            print(f"{name} same={same}")
            if not same or any((root / name / left).exists() for left in ("state", "stores")):
                raise SystemExit("weights or rows differ, or state was left behind")
    print(f"killed {killed} times, {resumed} of them with a checkpoint")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 6)
