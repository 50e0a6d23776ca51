"""``streamdrop fit``."""

from __future__ import annotations

import argparse
from typing import Any

from streamdrop.cli.terminal import Progress
from streamdrop.config import load


def fit(options: argparse.Namespace) -> int:
    """Run the experiment, print its table, write result.json and the figures."""
    from streamdrop.evaluation.curves import draw_curves
    from streamdrop.evaluation.experiment import FitConfig, run_experiment, table

    config = load(options.config, FitConfig, options.set)
    with Progress("epochs", config.epochs * len(options.strategies)) as progress:

        def show(strategy: str, epoch: int, row: dict[str, Any]) -> None:
            text = f"{strategy} epoch {epoch}: {row['seconds']:.1f} s, cut {row['cut']}, accuracy {row['accuracy']:.3f}"
            progress.advance(text)

        result = run_experiment(config, options.strategies, options.output, show)
    draw_curves(result, options.output)
    print(table(result))
    return 0
