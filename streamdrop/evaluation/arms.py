"""Arms side by side: the tracker under each strategy, and rivals, over the same sequences (``streamdrop evaluate``)."""

from __future__ import annotations

import difflib
import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from streamdrop.config import load
from streamdrop.errors import ConfigError, DataError, OutputError
from streamdrop.evaluation.arms_report import write_arms_report
from streamdrop.evaluation.claim import claimed
from streamdrop.evaluation.hardware import describe_hardware
from streamdrop.evaluation.jobs import Build, BuildGroup, Job, Protocols, run_group, run_job, schedule
from streamdrop.evaluation.outcomes import Outcome
from streamdrop.evaluation.peers import check_peers
from streamdrop.evaluation.protocol import OnlineTracker, check_first_boxes
from streamdrop.evaluation.result_files import check_formats, remove_earlier, write_boxes, write_formats
from streamdrop.evaluation.results import collect, format_table, write_results
from streamdrop.evaluation.sequences import VideoSequence, read_sequences
from streamdrop.evaluation.together import GroupTracker, by_video, most_at_once
from streamdrop.weights import resolve

ARMS = ("drop", "freeze", "fixed", "full", "none")
"""Strategies of the tracker: layers dropped by policy; frozen by it but run; a fixed cut; all trained; no update."""


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
    formats: Sequence[str] = (),
    realtime: float | None = None,
    perturb: int = 0,
    together: bool = False,
    build: Build | None = None,
    build_group: BuildGroup | None = None,
) -> dict[str, Any]:
    """Run every arm (each seed) and every rival (once) over the sequences; print a table; return the results.

    Writes ``results.json`` (whole, after every run), ``ARM/SEQUENCE_SEED.txt`` (a box per frame of the sequence) and
    ``report.html`` into ``output``, and the result files of ``formats`` (of ``got10k``, ``vot`` and ``mot``).
    ``models`` is the folder of rivals' network files, or a name of ``streamdrop weights``. ``build(arm, seed)`` makes a
    tracker of your own; then any arm name will do. ``together``: arms follow all targets of a video in one pass, by
    ``Targets`` or what ``build_group`` makes. ``realtime`` (frames/s) and ``perturb`` (a count of first boxes a little
    off) add runs of those protocols for every arm and rival, reported apart; in real time the tracker is told the rate,
    as by ``track --fps``, unless ``overrides`` say otherwise (``realtime.fps=null``). What an earlier evaluation left
    in ``output`` goes when the first run has ended. Raises ConfigError, DataError, ModelError or OutputError before
    work starts, OutputError too where another evaluation is writing there; in the end DataError for sequences with
    frames that do not decode: they are left out.
    """
    arms, peers, seeds = list(dict.fromkeys(arms)), list(dict.fromkeys(peers)), list(dict.fromkeys(seeds))
    _check(arms, peers, seeds, known=ARMS if build is None else arms)
    check_formats(formats)
    protocols = Protocols(realtime, perturb, together)
    chosen = read_sequences(folder, sequences, frames)
    check_first_boxes(chosen)
    models = None if models is None else resolve(models)
    check_peers(peers, models=models)
    builders = _Builders(build, build, build_group)
    if build is None and arms:
        builders = _own_builders(config, overrides, realtime, chosen if together else ())
    elif together and build_group is None:
        raise ConfigError("targets together need trackers of several: give build_group too")
    jobs = schedule(chosen, arms, peers, seeds, protocols)
    target = _prepare(Path(output), {job.boxes_file.parent for job in jobs})
    settings = {
        "folder": str(folder),
        "frames": frames,
        "seeds": seeds,
        "config": config if config is None or isinstance(config, dict) else str(config),
        "overrides": list(overrides),
        "realtime": realtime,
        "perturb": perturb,
        "together": together,
    }
    hardware = describe_hardware()
    outcomes: list[Outcome] = []
    results: dict[str, Any] = {}
    written: set[Path] = set()
    failed: dict[str, DataError] = {}
    with claimed(target):
        for outcome, job in _outcomes(jobs, builders, models, failed):
            if not outcomes:
                remove_earlier(target)
            outcomes.append(outcome)
            write_boxes(target / job.boxes_file, outcome.run, outcome.start)
            written |= {target / job.boxes_file, *write_formats(target, formats, outcomes)}
            results = collect(outcomes, [*arms, *peers], hardware, settings)
            results["files"] = sorted(path.relative_to(target).as_posix() for path in written)
            write_results(target / "results.json", results)
        if outcomes:
            write_arms_report(target / "report.html", results, outcomes, chosen)
            print(f"{format_table(results)}\nresults: {target / 'results.json'}\nreport: {target / 'report.html'}")
    if failed:
        raise DataError("; ".join(f"{name} is left out: {error}" for name, error in failed.items()))
    return results


@dataclass(frozen=True)
class _Builders:
    """What makes the trackers of the one pass, of real time, and of several targets at once."""

    plain: Build | None
    hurried: Build | None
    group: BuildGroup | None


def _own_builders(
    config: str | Path | dict[str, Any] | None,
    overrides: Sequence[str],
    realtime: float | None,
    together: Sequence[VideoSequence],
) -> _Builders:
    """Trackers of one configuration, which can follow as many targets at once as videos of ``together`` have."""
    plain = tracker_builder(config, overrides)
    hurried = tracker_builder(config, [f"realtime.fps={realtime}", *overrides]) if realtime else plain
    return _Builders(plain, hurried, group_builder(config, overrides, together) if together else None)


def group_builder(
    config: str | Path | dict[str, Any] | None, overrides: Sequence[str], sequences: Sequence[VideoSequence]
) -> BuildGroup:
    """As ``tracker_builder``, for all targets of a video at once; raises ConfigError where they are too many."""
    from streamdrop.tracking import Targets, TrackerConfig

    settings = load(config, TrackerConfig, overrides)
    for targets in by_video(sequences):
        settings.check_targets(most_at_once(targets))

    def build(arm: str, seed: int) -> GroupTracker:
        return Targets(load(config, TrackerConfig, [*overrides, *_of_arm(arm, seed)]))

    return build


def tracker_builder(config: str | Path | dict[str, Any] | None, overrides: Sequence[str] = ()) -> Build:
    """Trackers of one configuration that differ in strategy and seed only; raises ConfigError."""
    from streamdrop.tracking import Tracker, TrackerConfig

    load(config, TrackerConfig, overrides)  # mistakes show before work starts

    def build(arm: str, seed: int) -> OnlineTracker:
        return Tracker(load(config, TrackerConfig, [*overrides, *_of_arm(arm, seed)]))

    return build


def _of_arm(arm: str, seed: int) -> list[str]:
    """What differs between runs; each learns from nothing: a store on disk would carry samples over."""
    return [f"strategy={arm}", f"seed={seed}", "store=null"]


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


def _prepare(output: Path, names: Iterable[Path]) -> Path:
    """The output folder with the folders that boxes go to; raises OutputError."""
    try:
        for name in names:
            (output / name).mkdir(parents=True, exist_ok=True)
        if not os.access(output, os.W_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error.strerror}): give a folder you may write") from None
    return output


def _outcomes(
    jobs: Sequence[Job], builders: _Builders, models: str | Path | None, failed: dict[str, DataError]
) -> Iterator[tuple[Outcome, Job]]:
    """Do the jobs in turn, telling a terminal how far they are; videos that cannot be read go into ``failed``."""
    gc.freeze()  # what importing made need not be looked through between runs
    try:
        for count, job in enumerate(jobs, 1):
            video = job.sequence.video
            if video in failed:
                continue
            try:
                found = _done(job, builders, models, partial(_tell, f"{count}/{len(jobs)} {job}", job.frames))
            except DataError as error:
                failed[video] = error
            else:
                yield from zip(found, job.parts, strict=True)
    finally:
        gc.unfreeze()
        _progress("")


def _done(job: Job, builders: _Builders, models: str | Path | None, tell: Callable[[int], None]) -> list[Outcome]:
    """What came of each of a job's parts."""
    if job.targets and builders.group is not None:
        return run_group(job, builders.group, tell)
    return [run_job(job, builders.plain if job.realtime is None else builders.hurried, models, tell)]


def _tell(what: str, frames: int, index: int) -> None:
    if index % 10 == 0 or index == frames - 1:
        _progress(f"{what}: frame {index + 1} of {frames}")


def _progress(text: str) -> None:
    """One line on stderr that overwrites itself; nothing unless a terminal is there to show it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
