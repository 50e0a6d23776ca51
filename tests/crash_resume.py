"""Kills a training process at every stage around a drop, resumes it, and prints whether the weights came out the same.

    python tests/crash_resume.py FOLDER [--long]

Run by test_engine_resume.py as a process of its own: torch is imported once, every run is a fork that may be killed.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # what the first optimiser step would import, in every fork anew

torch.set_num_threads(1)

from streamdrop import checkpoint  # noqa: E402
from streamdrop.engine import FineTuner  # noqa: E402
from streamdrop.policies import SchedulePolicy  # noqa: E402
from streamdrop.split import SplitModel  # noqa: E402
from streamdrop.store import LmdbStore, TieredStore  # noqa: E402
from streamdrop.store.making import Making  # noqa: E402
from streamdrop.store.promotion import LmdbStage  # noqa: E402
from streamdrop.testing.tuners import SmallNet, labelled_batch, small_tuner  # noqa: E402

ROUNDS = 7
POLICY = SchedulePolicy({2: 2, 5: 4})


RUNS = [(LmdbStore, 1), (LmdbStore, 3), (TieredStore, 3)]
"""Stores, and after how many rounds each saves."""


def train(folder: Path, kind: Callable[..., LmdbStore | TieredStore], every: int) -> bytes:
    """Train to ROUNDS, going on from a checkpoint if there is one; observes, discards and checkpoints on the way."""
    torch.manual_seed(0)
    first = labelled_batch(13)
    if checkpoint.exists(folder / "c"):
        model = SmallNet()
        tuner = FineTuner.load(
            folder / "c",
            SplitModel(model, first.images[:2]),
            loss=torch.nn.functional.cross_entropy,
            optimizer=lambda p: torch.optim.SGD(p, 0.02, 0.9, weight_decay=1e-3),
            store=kind(folder / "store"),
            policy=POLICY,
        )
    else:
        tuner = small_tuner(batch=first, policy=POLICY, store=kind(folder / "store"))
        tuner.save(folder / "c")
    while tuner.round < ROUNDS:
        number = tuner.round
        tuner.observe(labelled_batch(3, seed=number, first=100 + 3 * number))
        tuner.store.discard([number.to_bytes(8, "big")])
        tuner.fit_round()
        if tuner.round % every == 0:
            tuner.save(folder / "c")
    tuner.store.close()
    return b"".join(t.numpy().tobytes() for t in tuner.split.model.state_dict().values())


def die_at(count: int) -> Callable[[], None]:
    """A hook that kills this process at its ``count``-th call."""
    calls = 0

    def hook() -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def hook_into(owner: object, name: str, hook: Callable[[], None], before: bool) -> None:
    original = getattr(owner, name)

    def wrapped(*args, **kwargs):
        if before:
            hook()
        result = original(*args, **kwargs)
        if not before:
            hook()
        return result

    setattr(owner, name, wrapped)


def in_child(work: Callable[[], bytes], answer: Path) -> int:
    """Run ``work`` in a fork; its bytes go to ``answer``. Returns the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            answer.write_bytes(work())
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a run failed")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main(root: Path) -> None:
    checked = 0
    for kind, every in RUNS:
        run = f"{kind.__name__}-{every}"
        in_child(lambda run=run, kind=kind, every=every: train(root / run, kind, every), root / "expected")
        expected = (root / "expected").read_bytes()
        for stage, owner, name, before in STAGES:
            if (name == "apply") != (kind is TieredStore) and name in ("apply", "put_many", "discard"):
                continue  # only a tier applies; only the durable store itself puts and discards here
            for count in range(1, 7) if "--long" in sys.argv else (COUNT.get(stage, 2),):
                work = functools.partial(train, root / f"{run}-{stage}-{count}", kind, every)

                def killed(work=work, owner=owner, name=name, before=before, count=count) -> bytes:
                    hook_into(owner, name, die_at(count), before)
                    return work()

                ended = in_child(killed, root / "ignored")
                in_child(work, root / "resumed")
                same = (root / "resumed").read_bytes() == expected
                print(f"{run} {stage} {count} killed={ended == signal.SIGKILL} same={same}")
                if not same:
                    raise SystemExit("weights differ")
                checked += ended == signal.SIGKILL
    print(f"checked {checked}")


STAGES = [
    ("before-checkpoint", checkpoint, "write_checkpoint", True),
    ("before-pointer", checkpoint.os, "replace", True),
    ("after-checkpoint", checkpoint, "write_checkpoint", False),
    ("before-release", LmdbStore, "release", True),
    ("before-stage", LmdbStore, "stage", True),
    ("after-stage", LmdbStore, "stage", False),
    ("before-commit", LmdbStage, "commit", True),
    ("before-flip", Making, "flip", True),
    ("after-commit", LmdbStage, "commit", False),
    ("after-put", LmdbStore, "put_many", False),
    ("before-apply", LmdbStore, "apply", True),
    ("after-apply", LmdbStore, "apply", False),
    ("after-discard", LmdbStore, "discard", False),
]
COUNT = {"after-put": 6, "after-discard": 4, "before-checkpoint": 3, "before-pointer": 3, "after-checkpoint": 3}
"""Which call of a stage kills; 2 where not named."""

if __name__ == "__main__":
    main(Path(sys.argv[1]))
