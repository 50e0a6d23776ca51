"""``streamdrop evaluate``."""

from __future__ import annotations

import argparse

from streamdrop.cli.process import trim_process


def evaluate(options: argparse.Namespace) -> int:
    """Run arms and peers over the sequences, print the table, write results.json."""
    trim_process(options)
    from streamdrop.evaluation.arms import ARMS
    from streamdrop.evaluation.arms import evaluate as run

    run(
        options.folder,
        arms=options.arms or (() if options.peers else ARMS),
        peers=options.peers,
        sequences=options.sequences,
        frames=options.frames,
        seeds=options.seeds,
        output=options.output,
        config=options.config,
        overrides=options.set,
        models=options.models,
        formats=options.formats,
        realtime=options.realtime,
        perturb=options.perturb,
        together=options.together,
    )
    return 0
