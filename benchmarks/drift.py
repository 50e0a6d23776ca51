"""A network on the drifting stream, tested on each batch and then trained on it: what dropping saves there.

    python benchmarks/drift.py [--model convgru] [--rounds 2] [--seeds 0,1,2] [--output runs/drift]

sgd, freeze, drop, and drop with a thaw where the loss has risen (--rise), take turns batch by batch, from the same
weights. A table and drift.json: seconds of training and thawing, forward MACs of training, share of images right before
they were trained on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

import streamdrop as sd
from streamdrop.evaluation.hardware import describe_hardware
from streamdrop.evaluation.networks import build_network, layer_rule
from streamdrop.store import encode_source

CLASSES, STRATEGIES = 8, ("sgd", "freeze", "drop", "thaw")
SAMPLE = Path(__file__).resolve().parent.parent / "data_samples" / "drift.npz"


def main() -> None:
    options = arguments()
    runs = [run(options, int(seed)) for seed in options.seeds.split(",")]
    print(f"{options.model}, {describe_hardware()}; n = {len(runs)} seeds, mean ± standard deviation")
    print(f"{'':8}{'seconds':>16}{'saved %':>16}{'saved MACs %':>16}{'right %':>16}{'dropped':>10}")
    for name in STRATEGIES:
        rows = [one[name] for one in runs]
        saved = [100 * (1 - one[name]["seconds"] / one["sgd"]["seconds"]) for one in runs]
        macs = [100 * (1 - one[name]["macs"] / one["sgd"]["macs"]) for one in runs]
        cells = [
            spread([r["seconds"] for r in rows]),
            spread(saved),
            spread(macs),
            spread([100 * r["right"] for r in rows]),
        ]
        print(f"{name:8}" + "".join(f"{cell:>16}" for cell in cells) + f"{rows[0]['cut']:>5} of {rows[0]['layers']}")
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"model": options.model, "hardware": describe_hardware(), "runs": runs}
    (options.output / "drift.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def run(options: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """Every strategy over the whole stream, batch by batch in turns."""
    tuners = {name: make_tuner(options, name, seed) for name in STRATEGIES}
    rows = {name: {"seconds": 0.0, "macs": 0, "right": 0.0} for name in STRATEGIES}
    seen = 0
    for batch in sd.open_stream(str(options.stream), batch_size=options.batch):
        seen += len(batch)
        for name, tuner in tuners.items():
            rows[name]["right"] += int((tuner.predict(batch.images).argmax(1) == batch.targets).sum())
            sources = zip(batch.keys, batch.images, strict=True)
            tuner.observe(batch, sources={k: encode_source(i, "raw") for k, i in sources} if name == "thaw" else None)
            for _ in range(options.rounds):
                report = tuner.fit_round()
                rows[name]["seconds"] += report.seconds
                rows[name]["macs"] += report.forward_macs
    for name, tuner in tuners.items():
        rows[name] |= {"right": rows[name]["right"] / seen, "cut": tuner.cut, "layers": len(tuner.split.layers)}
    return rows


def make_tuner(options: argparse.Namespace, strategy: str, seed: int) -> sd.FineTuner:
    """A tuner from the seed's weights; AdamW, as recurrent cells want."""
    torch.manual_seed(seed)
    model = build_network(options.model, CLASSES, image_size=32)
    return sd.FineTuner(
        sd.SplitModel(model, torch.zeros(2, 3, 32, 32), layers=layer_rule(options.model)),
        loss=torch.nn.functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=options.rate),
        store=sd.MemoryStore(max_samples=options.kept),
        strategy="drop" if strategy == "thaw" else strategy,
        thaw=sd.ThawPlan(rise=options.rise) if strategy == "thaw" else None,
        warm_up=3,
        batch_size=32,
        seed=seed,
        scoring=False if strategy == "sgd" else None,
    )


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convgru")
    parser.add_argument("--stream", type=Path, default=SAMPLE)
    parser.add_argument("--batch", type=int, default=250, help="images tested, then trained on")
    parser.add_argument("--kept", type=int, default=500, help="samples kept in the store")
    parser.add_argument("--rounds", type=int, default=2, help="rounds per batch")
    parser.add_argument("--rise", type=float, default=2.0, help="thaw once the loss is so many times its least")
    parser.add_argument("--rate", type=float, default=0.002)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output", type=Path, default=Path("runs/drift"))
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
