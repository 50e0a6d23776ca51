"""The runs of an evaluation: which there are, in which order, and how one is done."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamdrop.boxes import Box
from streamdrop.errors import ConfigError
from streamdrop.evaluation import metrics
from streamdrop.evaluation.confidence import calibrate, count_lost
from streamdrop.evaluation.hardware import peak_memory_mb, reset_peak_memory
from streamdrop.evaluation.outcomes import Outcome
from streamdrop.evaluation.peers import run_peer
from streamdrop.evaluation.perturbed import perturbed_box
from streamdrop.evaluation.protocol import OnFrame, OnlineTracker, Run, one_pass
from streamdrop.evaluation.realtime import realtime_pass
from streamdrop.evaluation.sequences import VideoSequence

Build = Callable[[str, int], OnlineTracker]
"""A fresh tracker for an arm and a seed."""


@dataclass(frozen=True)
class Protocols:
    """What is run beside the one pass: in real time at ``realtime`` frames/s, and from ``perturb`` first boxes.

    Raises ConfigError.
    """

    realtime: float | None = None
    perturb: int = 0

    def __post_init__(self) -> None:
        if self.realtime is not None and not (math.isfinite(self.realtime) and self.realtime > 0):
            raise ConfigError(f"real time at {self.realtime} frames/s: give a rate above 0, such as 25")
        if self.perturb < 0:
            raise ConfigError(f"{self.perturb} perturbed first boxes: give a whole number of at least 0")


@dataclass(frozen=True)
class Job:
    """One run to do: an arm on a sequence under a seed, at ``realtime`` frames/s, from first box ``variant``."""

    sequence: VideoSequence
    arm: str
    seed: int
    peer: bool = False
    realtime: float | None = None
    variant: int = 0

    @property
    def protocol(self) -> str:
        """``ope``, ``realtime`` or ``perturbed``."""
        return "perturbed" if self.variant else "ope" if self.realtime is None else "realtime"

    @property
    def boxes_file(self) -> Path:
        """Where its boxes go, below the output folder."""
        folder = Path(self.arm) if self.protocol == "ope" else Path(self.arm) / self.protocol
        variant = f"_{self.variant}" if self.variant else ""
        return folder / f"{self.sequence.name}_{self.seed}{variant}.txt"

    def __str__(self) -> str:
        parts = [self.sequence.name, self.arm, "" if self.peer else f"seed {self.seed}"]
        parts += ["" if self.realtime is None else "real time", f"first box {self.variant}" if self.variant else ""]
        return ", ".join(part for part in parts if part)


def schedule(
    sequences: Iterable[VideoSequence],
    arms: Sequence[str],
    peers: Sequence[str],
    seeds: Sequence[int],
    protocols: Protocols | None = None,
) -> list[Job]:
    """All runs, the arms of one sequence, seed and protocol next to each other and in turning order.

    So whatever else the machine does in the meantime falls on all arms alike.
    """
    jobs: list[Job] = []
    turn = 0
    ways = _ways(protocols or Protocols())
    for sequence in sequences:
        for seed in seeds:
            for way in ways:
                order = [arms[(i + turn) % len(arms)] for i in range(len(arms))]
                jobs += [Job(sequence, arm, seed, False, *way) for arm in order]
                turn += 1
        jobs += [Job(sequence, peer, 0, True, *way) for way in ways for peer in peers]
    return jobs


def run_job(job: Job, build: Build | None, models: str | Path | None, on_frame: Callable[[int], None]) -> Outcome:
    """Do one run and score it; ``on_frame`` is called after every frame seen."""
    gc.collect()  # the run before must not slow this one down, nor count in its memory
    first = perturbed_box(job.sequence.first_box, job.sequence.name, job.variant)
    if job.peer or build is None:
        run = run_peer(job.arm, job.sequence, models=models, on_frame=on_frame, fps=job.realtime, first_box=first)
        return judge(job, run, None)
    reset_peak_memory()
    tracker = build(job.arm, job.seed)
    try:
        run = _pass(job, tracker, lambda index, image, track: on_frame(index), first)
        memory = peak_memory_mb()
    finally:
        close = getattr(tracker, "close", None)
        if close is not None:
            close()
    return judge(job, run, memory)


def judge(job: Job, run: Run, peak_mb: float | None) -> Outcome:
    """A run's scores against its sequence's truth."""
    boxes, truth, absent = run.boxes, job.sequence.truth, job.sequence.absent
    return Outcome(
        sequence=job.sequence.name,
        arm=job.arm,
        seed=job.seed,
        start=job.sequence.start,
        run=run,
        scores=metrics.scores(boxes, truth),
        curves=(metrics.success_curve(boxes, truth), metrics.precision_curve(boxes, truth)),
        overlaps=metrics.overlaps(boxes, truth),
        lost=count_lost(boxes, run.lost, truth, absent),
        calibration=None if job.peer else calibrate(boxes, run.scores, truth, absent),
        peak_mb=peak_mb,
        protocol=job.protocol,
        variant=job.variant,
    )


def _ways(protocols: Protocols) -> list[tuple[float | None, int]]:
    """Rate and first box of every run of an arm, the plain pass first."""
    realtime = [] if protocols.realtime is None else [(protocols.realtime, 0)]
    return [(None, 0), *realtime, *((None, variant) for variant in range(1, protocols.perturb + 1))]


def _pass(job: Job, tracker: OnlineTracker, on_frame: OnFrame, first: Box) -> Run:
    if job.realtime is not None:
        return realtime_pass(tracker, job.sequence, job.realtime, on_frame=on_frame, first_box=first)
    return one_pass(tracker, job.sequence, on_frame, first)
