"""The runs of an evaluation: which there are, in which order, and how one is done."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from streamdrop.boxes import Box
from streamdrop.errors import BoxError, ConfigError, DataError
from streamdrop.evaluation import metrics
from streamdrop.evaluation.confidence import calibrate, count_lost
from streamdrop.evaluation.hardware import peak_memory_mb, reset_peak_memory
from streamdrop.evaluation.outcomes import Outcome
from streamdrop.evaluation.peers import run_peer
from streamdrop.evaluation.perturbed import perturbed_box
from streamdrop.evaluation.protocol import OnFrame, OnlineTracker, Run, one_pass
from streamdrop.evaluation.realtime import realtime_pass
from streamdrop.evaluation.sequences import VideoSequence
from streamdrop.evaluation.together import GroupTracker, by_video, group_pass

Build = Callable[[str, int], OnlineTracker]
"""A fresh tracker for an arm and a seed."""
BuildGroup = Callable[[str, int], GroupTracker]
"""The same for several targets at once."""
_Built = TypeVar("_Built")


@dataclass(frozen=True)
class Protocols:
    """What is run beside the one pass: in real time at ``realtime`` frames/s, and from ``perturb`` first boxes.

    ``together``: the targets of one video are followed in one pass by the arms, not by rivals. Raises ConfigError.
    """

    realtime: float | None = None
    perturb: int = 0
    together: bool = False

    def __post_init__(self) -> None:
        if self.realtime is not None and not (math.isfinite(self.realtime) and self.realtime > 0):
            raise ConfigError(f"real time at {self.realtime} frames/s: give a rate above 0, such as 25")
        if self.perturb < 0:
            raise ConfigError(f"{self.perturb} perturbed first boxes: give a whole number of at least 0")
        if self.together and self.realtime is not None:
            raise ConfigError("targets together, and real time: several are followed in line only, leave one out")


@dataclass(frozen=True)
class Job:
    """One run to do: an arm on a sequence under a seed, at ``realtime`` frames/s, from first box ``variant``.

    ``targets``: the sequences of all targets of a video that are followed in one pass, the first of them ``sequence``.
    """

    sequence: VideoSequence
    arm: str
    seed: int
    peer: bool = False
    realtime: float | None = None
    variant: int = 0
    targets: tuple[VideoSequence, ...] = ()

    @property
    def parts(self) -> list[Job]:
        """One job for each sequence that this one gives results of."""
        return [replace(self, sequence=one, targets=()) for one in self.targets or (self.sequence,)]

    @property
    def frames(self) -> int:
        """How many frames it goes through."""
        spans = [range(one.start, one.start + len(one)) for one in self.targets or (self.sequence,)]
        return len(set().union(*spans))

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
        what = f"{self.sequence.video}, {len(self.targets)} targets" if self.targets else self.sequence.name
        parts = [what, self.arm, "" if self.peer else f"seed {self.seed}"]
        parts += ["" if self.realtime is None else "real time", f"first box {self.variant}" if self.variant else ""]
        return ", ".join(part for part in parts if part)


def schedule(
    sequences: Sequence[VideoSequence],
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
    protocols = protocols or Protocols()
    ways = _ways(protocols)
    for targets in by_video(sequences) if protocols.together else [(sequence,) for sequence in sequences]:
        group = targets if len(targets) > 1 else ()
        for seed in seeds:
            for way in ways:
                order = [arms[(i + turn) % len(arms)] for i in range(len(arms))]
                jobs += [Job(targets[0], arm, seed, False, *way, targets=group) for arm in order]
                turn += 1
        jobs += [Job(sequence, peer, 0, True, *way) for sequence in targets for way in ways for peer in peers]
    return jobs


def run_job(job: Job, build: Build | None, models: str | Path | None, on_frame: Callable[[int], None]) -> Outcome:
    """Do one run and score it; ``on_frame`` is called after every frame seen."""
    gc.collect()  # the run before must not slow this one down, nor count in its memory
    with _named(job):
        return _run_job(job, build, models, on_frame)


def _run_job(job: Job, build: Build | None, models: str | Path | None, on_frame: Callable[[int], None]) -> Outcome:
    first = perturbed_box(job.sequence.first_box, job.sequence.name, job.variant)
    if job.peer or build is None:
        run = run_peer(job.arm, job.sequence, models=models, on_frame=on_frame, fps=job.realtime, first_box=first)
        return judge(job, run, None)
    with _built(build, job) as tracker:
        run = _pass(job, tracker, lambda index, image, track: on_frame(index), first)
        memory = peak_memory_mb()
    return judge(job, run, memory)


def run_group(job: Job, build: BuildGroup, on_frame: Callable[[int], None]) -> list[Outcome]:
    """Follow all targets of a job in one pass; the outcomes are those of its ``parts``."""
    gc.collect()
    targets = dict(enumerate(job.targets, 1))
    first = {key: perturbed_box(one.first_box, one.name, job.variant) for key, one in targets.items()}
    with _named(job), _built(build, job) as tracker:
        runs = group_pass(tracker, targets, first, on_frame)
        memory = peak_memory_mb()
    return [judge(part, runs[key], memory) for key, part in enumerate(job.parts, 1)]


def judge(job: Job, run: Run, peak_mb: float | None) -> Outcome:
    """A run's scores against its sequence's truth; NaN where that has no box but the first, which was given."""
    boxes, truth, absent = run.boxes, job.sequence.truth, job.sequence.absent
    judged = truth if np.isfinite(truth[1:]).all(axis=1).any() else np.full_like(truth, np.nan)
    return Outcome(
        sequence=job.sequence.name,
        video=job.sequence.video or job.sequence.name,
        target=job.sequence.target,
        arm=job.arm,
        seed=job.seed,
        start=job.sequence.start,
        run=run,
        scores=metrics.scores(boxes, judged),
        curves=(metrics.success_curve(boxes, judged), metrics.precision_curve(boxes, judged)),
        overlaps=metrics.overlaps(boxes, truth),
        lost=count_lost(boxes, run.lost, truth, absent),
        calibration=None if job.peer else calibrate(boxes, run.scores, truth, absent),
        peak_mb=peak_mb,
        protocol=job.protocol,
        variant=job.variant,
    )


@contextlib.contextmanager
def _named(job: Job) -> Iterator[None]:
    """A first box that no tracker takes is said with the name of its sequence."""
    try:
        yield
    except BoxError as error:
        raise DataError(f"{job.sequence.name}: {error}") from None


@contextlib.contextmanager
def _built(build: Callable[[str, int], _Built], job: Job) -> Iterator[_Built]:
    """A fresh tracker, closed in the end."""
    reset_peak_memory()
    tracker = build(job.arm, job.seed)
    try:
        yield tracker
    finally:
        close = getattr(tracker, "close", None)
        if close is not None:
            close()


def _ways(protocols: Protocols) -> list[tuple[float | None, int]]:
    """Rate and first box of every run of an arm, the plain pass first."""
    realtime = [] if protocols.realtime is None else [(protocols.realtime, 0)]
    return [(None, 0), *realtime, *((None, variant) for variant in range(1, protocols.perturb + 1))]


def _pass(job: Job, tracker: OnlineTracker, on_frame: OnFrame, first: Box) -> Run:
    if job.realtime is not None:
        return realtime_pass(tracker, job.sequence, job.realtime, on_frame=on_frame, first_box=first)
    return one_pass(tracker, job.sequence, on_frame, first)
