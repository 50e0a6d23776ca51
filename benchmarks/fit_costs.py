"""What the parts of Learn & Drop cost: scoring, the epoch that stores, epochs after the last drop.

    python benchmarks/fit_costs.py                                   resnet18, vgg11_bn_small, resnet50
    python benchmarks/fit_costs.py resnet18 --image-size 64 --batch-size 256 --repeats 9

(a) an epoch with gradient scores over one without: of the weights that the default policy follows, the mean of all
    weights included (target: at most 1.03), and of all, as the paper has it;
(b) the epoch that stores at a new cut over the epoch before it, which it replaces (target: at most 1.15);
(c) after the last drop, an epoch of freeze, whose backward pass ends at the boundary, and one of freeze-full, whose
    backward pass is whole, over an epoch of drop (target for freeze: at least 3 where convolutions dominate).

Arms take turns epoch by epoch on random images; their order changes each turn. Ratios are of one turn; the median of
them is given with the smallest and the largest. Writes fit_costs.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from streamdrop import AutoPolicy, Batch, FineTuner, LmdbStore, MemoryStore, SchedulePolicy, SplitModel
from streamdrop.errors import ConfigError
from streamdrop.evaluation.device import check_device
from streamdrop.evaluation.hardware import describe_hardware
from streamdrop.evaluation.networks import build_network, layer_rule

NETWORKS = ["resnet18", "vgg11_bn_small", "resnet50"]
CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--train", type=int, default=512, help="images")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5, help="turns that count; the one before them does not")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--output", default="runs/fit-costs", type=Path)
    options = parser.parse_args()
    try:
        check_device(options.device)
    except ConfigError as error:
        parser.error(str(error))
    if options.threads:
        torch.set_num_threads(options.threads)
    values = {key: getattr(options, key) for key in ("train", "image_size", "batch_size", "repeats", "device")}
    report: dict[str, Any] = {"hardware": describe_hardware(), "settings": values, "networks": {}}
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.networks:
        report["networks"][name] = measure(name, options)
        print(table(name, report["networks"][name]), flush=True)
        (options.output / "fit_costs.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(report["hardware"])


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """(a), (b) and (c) for one network."""
    with tempfile.TemporaryDirectory() as folder:
        deepest = len(tuner(name, options, None).split.layers) - 1
        return {
            **scoring(name, options),
            "storing_half": storing(name, options, Path(folder) / "half", max(1, deepest // 2)),
            "storing_deepest": storing(name, options, Path(folder) / "deepest", deepest),
            **after_the_last_drop(name, options, Path(folder), deepest),
        }


def tuner(name: str, options: argparse.Namespace, store: Path | None, **more: Any) -> FineTuner:
    """A tuner over a network of the same weights and the same random images each time."""
    torch.manual_seed(0)
    model = build_network(name, CLASSES, image_size=options.image_size).to(options.device)
    labels = torch.arange(options.train) % CLASSES
    images = torch.randn(options.train, 3, options.image_size, options.image_size) + labels.view(-1, 1, 1, 1) / CLASSES
    made = FineTuner(
        SplitModel(model, images[:2].to(options.device), layers=layer_rule(name)),
        loss=functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.01, 0.9, weight_decay=5e-4),
        store=MemoryStore() if store is None else LmdbStore(store),
        batch_size=options.batch_size,
        **{"policy": SchedulePolicy(), "scoring": True, **more},
    )
    made.observe(Batch([i.to_bytes(8, "big") for i in range(options.train)], images, labels))
    return made


def scoring(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Epochs with scores over epochs without, of the whole network; nothing is decided."""
    arms = {
        "some": tuner(name, options, None, policy=AutoPolicy(settle=0), strategy="drop", warm_up=10_000),
        "all": tuner(name, options, None),
        "without": tuner(name, options, None, scoring=False),
    }
    turns = by_turns(arms, options.repeats)
    return {"scoring": ratios(turns, "some", "without"), "scoring_all": ratios(turns, "all", "without")}


def storing(name: str, options: argparse.Namespace, folder: Path, cut: int) -> dict[str, Any]:
    """The epoch that stores at ``cut`` over the one before it; a new tuner for each repeat."""
    turns = []
    for repeat in range(options.repeats):
        arm = tuner(name, options, folder / str(repeat), policy=SchedulePolicy({2: cut}), strategy="drop")
        seconds = [arm.fit_round().seconds for _ in range(3)]
        arm.store.close()
        turns.append({"before": seconds[1], "storing": seconds[2]})
    live, whole = arm.split.live_bytes(cut), arm.split.live_bytes(0)
    return {"cut": cut, "stored_bytes": live, "input_bytes": whole, **ratios(turns, "storing", "before")}


def after_the_last_drop(name: str, options: argparse.Namespace, folder: Path, cut: int) -> dict[str, Any]:
    """Epochs of both kinds of freeze over epochs of drop, all but the last layer dropped."""
    kinds: dict[str, dict[str, Any]] = {
        "drop": {"strategy": "drop"},
        "freeze": {"strategy": "freeze"},
        "freeze-full": {"strategy": "freeze", "whole_backward": True},
    }
    policy = SchedulePolicy({1: cut})
    arms = {kind: tuner(name, options, folder / kind, policy=policy, **more) for kind, more in kinds.items()}
    for arm in arms.values():
        arm.fit_round()  # decides
        arm.fit_round()  # stores
    turns = by_turns(arms, options.repeats)
    for arm in arms.values():
        arm.store.close()
    return {f"{kind} over drop": ratios(turns, kind, "drop") for kind in ("freeze", "freeze-full")}


def by_turns(arms: dict[str, FineTuner], repeats: int) -> list[dict[str, float]]:
    """Seconds of one epoch of each arm, ``repeats`` times; the first turn, which pays for first uses, is left out."""
    turns = []
    for turn in range(repeats + 1):
        names = list(arms) if turn % 2 else list(arms)[::-1]
        turns.append({name: arms[name].fit_round().seconds for name in names})
    return turns[1:]


def ratios(turns: list[dict[str, float]], over: str, under: str) -> dict[str, Any]:
    """Seconds per epoch of both, and how they compare within each turn."""
    each = [turn[over] / turn[under] for turn in turns]
    medians = {f"{name}_seconds": statistics.median(turn[name] for turn in turns) for name in (over, under)}
    return {"ratio": statistics.median(each), "least": min(each), "most": max(each), "n": len(each), **medians}


def table(name: str, measured: dict[str, dict[str, Any]]) -> str:
    lines = [f"\n{name:<20}{'ratio':>8}{'least':>8}{'most':>8}{'n':>4}   seconds per epoch (medians)"]
    for part, found in measured.items():
        seconds = ", ".join(f"{k.removesuffix('_seconds')} {v:.3f}" for k, v in found.items() if k.endswith("_seconds"))
        cells = "".join(f"{found[key]:>8.3f}" for key in ("ratio", "least", "most"))
        cut = (
            f" (cut {found['cut']}: {found['stored_bytes']:,} of {found['input_bytes']:,} bytes)"
            if "cut" in found
            else ""
        )
        lines.append(f"{part.replace('_', ' '):<20}{cells}{found['n']:>4}   {seconds}{cut}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
