"""Arms side by side: the tracker under each strategy, and rivals, over the same sequences (``streamdrop evaluate``)."""

from __future__ import annotations

import difflib
import gc
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamdrop.config import load
from streamdrop.errors import ConfigError, OutputError
from streamdrop.evaluation import metrics
from streamdrop.evaluation.arms_report import write_arms_report
from streamdrop.evaluation.hardware import describe_hardware, peak_memory_mb, reset_peak_memory
from streamdrop.evaluation.peers import check_peers, run_peer
from streamdrop.evaluation.protocol import OnlineTracker, Run, one_pass
from streamdrop.evaluation.results import Outcome, collect, format_table, write_results
from streamdrop.evaluation.sequences import VideoSequence, read_sequences

ARMS = ("drop", "freeze", "fixed", "full", "none")
"""Strategies of the tracker: layers dropped by policy; frozen by it but run; a fixed cut; all trained; no update."""

Build = Callable[[str, int], OnlineTracker]
"""A fresh tracker for an arm and a seed."""


@dataclass(frozen=True)
class Job:
    """One run to do: an arm on a sequence under a seed."""

    sequence: VideoSequence
    arm: str
    seed: int
    peer: bool = False

    @property
    def boxes_file(self) -> Path:
        """Where its boxes go, below the output folder."""
        return Path(self.arm) / f"{self.sequence.name}_{self.seed}.txt"


def evaluate(
    folder: str | Path,
    arms: Sequence[str] = ARMS,
    peers: Sequence[str] = (),
    sequences: Sequence[str] | None = None,
    frames: int | None = None,
    seeds: Sequence[int] = (0,),
    output: str | Path = "runs/evaluation",
    config: str | Path | dict[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    models: str | Path | None = None,
    build: Build | None = None,
) -> dict[str, Any]:
    """Run every arm (each seed) and every rival (once) over the sequences; print a table; return the results.

    Writes ``results.json`` (whole, after every run), ``ARM/SEQUENCE_SEED.txt`` (a box per frame of the sequence) and
    ``report.html`` into ``output``. ``models`` is the folder of rivals' network files. ``build(arm, seed)`` makes a
    tracker of your own; then any arm name will do. Raises ConfigError, DataError, ModelError or OutputError before
    work starts.
    """
    arms, peers, seeds = list(dict.fromkeys(arms)), list(dict.fromkeys(peers)), list(dict.fromkeys(seeds))
    _check(arms, peers, seeds, known=ARMS if build is None else arms)
    chosen = read_sequences(folder, sequences, frames)
    check_peers(peers, models=models)
    if build is None and arms:
        build = tracker_builder(config, overrides)
    target = _prepare(Path(output), [*arms, *peers])
    settings = {
        "folder": str(folder),
        "frames": frames,
        "seeds": seeds,
        "config": config if config is None or isinstance(config, dict) else str(config),
        "overrides": list(overrides),
    }
    hardware = describe_hardware()
    outcomes: list[Outcome] = []
    results: dict[str, Any] = {}
    jobs = schedule(chosen, arms, peers, seeds)
    for count, job in enumerate(jobs):
        outcome = _run(job, build, models, f"{count + 1}/{len(jobs)}")
        _write_boxes(target / job.boxes_file, job.sequence, outcome.run)
        outcomes.append(outcome)
        results = collect(outcomes, [*arms, *peers], hardware, settings)
        write_results(target / "results.json", results)
    _progress("")
    write_arms_report(target / "report.html", results)
    print(format_table(results))
    print(f"results: {target / 'results.json'}\nreport: {target / 'report.html'}")
    return results


def tracker_builder(config: str | Path | dict[str, Any] | None, overrides: Sequence[str] = ()) -> Build:
    """Trackers of one configuration that differ in strategy and seed only; raises ConfigError."""
    from streamdrop.tracking import Tracker, TrackerConfig

    load(config, TrackerConfig, overrides)  # mistakes show before work starts

    def build(arm: str, seed: int) -> OnlineTracker:
        # each run learns from nothing: a store on disk would carry samples over from the run before
        own = [f"strategy={arm}", f"seed={seed}", "store=null"]
        return Tracker(load(config, TrackerConfig, [*overrides, *own]))

    return build


def schedule(
    sequences: Iterable[VideoSequence], arms: Sequence[str], peers: Sequence[str], seeds: Sequence[int]
) -> list[Job]:
    """All runs, the arms of one sequence and seed next to each other and in turning order.

    So whatever else the machine does in the meantime falls on all arms alike.
    """
    jobs: list[Job] = []
    turn = 0
    for sequence in sequences:
        for seed in seeds:
            order = [arms[(i + turn) % len(arms)] for i in range(len(arms))]
            jobs += [Job(sequence, arm, seed) for arm in order]
            turn += 1
        jobs += [Job(sequence, peer, 0, peer=True) for peer in peers]
    return jobs


def _check(arms: Sequence[str], peers: Sequence[str], seeds: Sequence[int], known: Sequence[str]) -> None:
    for arm in arms:
        if arm not in known:
            near = difflib.get_close_matches(arm, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
            raise ConfigError(f"no arm {arm!r}: {hint}")
    if not arms and not peers:
        raise ConfigError("nothing to evaluate: name at least one arm or one rival")
    if not seeds:
        raise ConfigError("no seed: give at least one, such as 0")
    if set(arms) & set(peers):
        raise ConfigError(f"{sorted(set(arms) & set(peers))[0]!r} is named both as arm and as rival: rename the arm")


def _prepare(output: Path, names: Iterable[str]) -> Path:
    """The output folder with one folder per arm; raises OutputError."""
    try:
        for name in names:
            (output / name).mkdir(parents=True, exist_ok=True)
        if not os.access(output, os.W_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error.strerror}): give a folder you may write") from None
    return output


def _run(job: Job, build: Build | None, models: str | Path | None, count: str) -> Outcome:
    say = f"{count} {job.sequence.name}, {job.arm}" + ("" if job.peer else f", seed {job.seed}")
    length = len(job.sequence)

    def tell(index: int) -> None:
        if index % 10 == 0 or index == length - 1:
            _progress(f"{say}: frame {index + 1} of {length}")

    gc.collect()  # the run before must not slow this one down, nor count in its memory
    if job.peer or build is None:
        run, memory = run_peer(job.arm, job.sequence, models=models, on_frame=tell), None
    else:
        reset_peak_memory()
        tracker = build(job.arm, job.seed)
        run = one_pass(tracker, job.sequence, lambda index, image, track: tell(index))
        memory = peak_memory_mb()
        close = getattr(tracker, "close", None)
        if close is not None:
            close()
    truth = job.sequence.truth
    error = metrics.calibration_error(run.scores, run.boxes, truth)
    scores = {**metrics.scores(run.boxes, truth), "calibration_error": error}
    curves = (
        metrics.success_curve(run.boxes, job.sequence.truth),
        metrics.precision_curve(run.boxes, job.sequence.truth),
    )
    return Outcome(job.sequence.name, job.arm, job.seed, job.sequence.start, run, scores, curves, memory)


def _write_boxes(path: Path, sequence: VideoSequence, run: Run) -> None:
    """Line i is frame i of the whole sequence: NaN before its first true box."""
    rows = np.vstack([np.full((sequence.start, 4), np.nan), run.boxes])
    path.write_text("".join(",".join(f"{v:.4f}" for v in row) + "\n" for row in rows))


def _progress(text: str) -> None:
    """One line on stderr that overwrites itself; nothing unless a terminal is there to show it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
