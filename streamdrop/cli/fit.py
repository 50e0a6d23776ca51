"""``streamdrop fit``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdrop.cli.process import trim_process
from streamdrop.cli.terminal import Progress
from streamdrop.config import load
from streamdrop.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from streamdrop.evaluation.sweep_config import Cell

DEFAULT = ["sgd", "freeze", "drop"]


def fit(options: argparse.Namespace) -> int:
    """Run an experiment or a grid of them, print the tables, write results and figures."""
    if (options.config is None) == (options.sweep is None):
        raise ConfigError("give either CONFIG.yaml or --sweep GRID.yaml: see streamdrop fit --help")
    return _fit(options) if options.sweep is None else _sweep(options)


def _fit(options: argparse.Namespace) -> int:
    trim_process(options, heaps=None)
    from streamdrop.evaluation.curves import draw_curves
    from streamdrop.evaluation.experiment import FitConfig, run_experiment
    from streamdrop.evaluation.fit_report import write_fit_report
    from streamdrop.evaluation.fit_tables import format_result

    config, strategies = load(options.config, FitConfig, options.set), options.strategies or DEFAULT
    with Progress("epochs", config.epochs * len(strategies)) as progress:

        def show(strategy: str, epoch: int, row: dict[str, Any]) -> None:
            text = f"{strategy} epoch {epoch}: {row['seconds']:.1f} s, cut {row['cut']}, accuracy {row['accuracy']:.3f}"
            progress.advance(text)

        result = run_experiment(
            config,
            strategies,
            options.output,
            show,
            resume=options.resume,
            save_weights=options.save_weights,
            download=options.download,
        )
    if any(entry["epochs"] for entry in result["strategies"].values()):
        draw_curves(result, options.output)
        write_fit_report(Path(options.output) / "report.html", [result])
        print(format_result(result))
    _tell_diverged(result, options.output)
    return 0


def _tell_diverged(result: dict[str, Any], folder: str) -> None:
    """Raise TrainingError where an arm's loss was not finite: when, where, what to do, where its weights are."""
    from streamdrop.evaluation.fit_result import describe_divergence

    text = describe_divergence(result, folder)
    if text:
        raise TrainingError(text)


def _sweep(options: argparse.Namespace) -> int:
    from streamdrop.evaluation.curves import draw_importance_pairs
    from streamdrop.evaluation.fit_report import write_fit_report
    from streamdrop.evaluation.sweep import run_sweep
    from streamdrop.evaluation.sweep_config import load_sweep

    sweep = load_sweep(options.sweep, options.set, options.strategies)
    with Progress("cells", sweep.count) as progress:

        def show(cell: Cell, text: str) -> None:
            progress.advance(text)
            if not sys.stderr.isatty():
                print(text, flush=True)

        flags = [f for f in ("--save-weights", "--download") if getattr(options, f[2:].replace("-", "_"))]
        outcome = run_sweep(sweep, options.output, show, flags)
    print(outcome.table)
    if outcome.results:
        write_fit_report(Path(options.output) / "report.html", outcome.results, outcome.sweep)
        draw_importance_pairs(outcome.results, options.output)
    if outcome.failed:
        raise TrainingError(
            f"{options.output}: {outcome.failed} of {sweep.count} cells failed (sweep.json says why): "
            "correct the cause and run the same command again"
        )
    return 0
