"""The paper's experiment over seeds and policies: saved time and accuracy against sgd in the same run.

    python benchmarks/fit.py configs/fit/cifar10-resnet18.yaml --policies 'schedule={4: 10, 5: 19}' --seeds 0,1,2
    python benchmarks/fit.py configs/fit/cifar10-resnet18.yaml --policies paper,prefix-sum --seeds 0 --strategies drop

Every (seed, policy) is one run of ``streamdrop fit``, its strategies taking turns epoch by epoch. A finished run is
kept, one that was cut short goes on. Writes fit.json; prints a line per run and the mean with its spread.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import yaml

from streamdrop.config import load
from streamdrop.evaluation.experiment import FitConfig, run_experiment
from streamdrop.evaluation.fit_tables import format_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--policies", default="schedule={4: 10, 5: 19}", help="names, or schedule={epoch: cut, …}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--strategies", default="sgd,freeze,drop")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--output", default="runs/fit", type=Path)
    options = parser.parse_args()
    results = []
    for policy in _policies(options.policies):
        for seed in options.seeds.split(","):
            results.append(_run(options, policy, int(seed)))
            print(f"\n{json.dumps(policy)}, seed {seed}\n{format_result(results[-1])}", flush=True)
    print("\n" + _summary(results))
    (options.output / "fit.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


def _policies(text: str) -> list[Any]:
    if text.startswith("schedule="):
        return [{"schedule": yaml.safe_load(text.removeprefix("schedule="))}]
    return text.split(",")


def _run(options: argparse.Namespace, policy: Any, seed: int) -> dict[str, Any]:
    name = policy if isinstance(policy, str) else "schedule"
    folder = options.output / f"{name}-{options.strategies.replace(',', '-')}-{seed}"
    config = load(options.config, FitConfig, [*options.set, f"seed={seed}", f"policy={json.dumps(policy)}"])
    return run_experiment(config, options.strategies.split(","), folder, _tell, resume=True)


def _tell(strategy: str, epoch: int, row: dict[str, Any]) -> None:
    print(f"  {strategy} {epoch}: {row['seconds']:.1f} s, cut {row['cut']}, accuracy {row['accuracy']:.3f}", flush=True)


def _summary(results: list[dict[str, Any]]) -> str:
    lines = [f"{'policy':<32}{'strategy':<14}{'n':>3}{'saved time %':>16}{'saved MACs %':>16}{'accuracy':>18}"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        for strategy, entry in result["strategies"].items():
            groups.setdefault((json.dumps(result["policy"]), strategy), []).append(entry)
    for (policy, strategy), entries in groups.items():
        columns = [_spread([e[key] for e in entries]) for key in ("saved_time_percent", "saved_macs_percent")]
        accuracy = _spread([e["accuracy"] for e in entries], 3)
        lines.append(f"{policy:<32}{strategy:<14}{len(entries):>3}{columns[0]:>16}{columns[1]:>16}{accuracy:>18}")
    return "\n".join(lines)


def _spread(values: list[float | None], digits: int = 1) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{spread}"


if __name__ == "__main__":
    main()
