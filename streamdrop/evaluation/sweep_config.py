"""A grid of experiments: data sets × networks × variants × seeds, each cell an experiment of its own."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from streamdrop.config import load, merged
from streamdrop.errors import ConfigError
from streamdrop.evaluation.fit_config import FitConfig, checked_strategies
from streamdrop.evaluation.networks import network_names
from streamdrop.values import MOST_THREADS, check_fields, check_whole

Keys = dict[str, Any]
SET_BY_SWEEP = ("data", "model", "seed", "threads")


@dataclass(frozen=True)
class SweepConfig:
    """A grid. ``base`` holds keys of FitConfig; ``per_dataset``, ``per_model`` and ``variants`` change some by name.

    ``data`` names data sets and where they lie. ``jobs`` cells run at once, each in a process of its own with
    ``threads`` torch threads, on a core of its own where there are several. Later ones win: base, data set, network,
    variant. Without ``variants`` there is one, named after the policy.
    """

    name: str
    data: dict[str, str]
    models: list[str]
    seeds: list[int]
    strategies: list[str]
    jobs: int = 1
    threads: int = 1
    base: Keys = field(default_factory=dict)
    per_dataset: dict[str, Keys] = field(default_factory=dict)
    per_model: dict[str, Keys] = field(default_factory=dict)
    variants: dict[str, Keys] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("data", "models", "seeds", "strategies"):
            given = list(getattr(self, name))
            if not given or len(set(given)) < len(given):
                raise ConfigError(f"{name} is {given}: give at least one, each once")
        check_whole("jobs", self.jobs, 1)
        check_whole("threads", self.threads, 1, MOST_THREADS)
        wrong = [key for key in self.per_dataset if key not in self.data]
        if wrong:
            raise ConfigError(f"per_dataset: {', '.join(wrong)} is not in the grid: it holds {', '.join(self.data)}")
        wrong = [key for key in self.per_model if key not in network_names()]  # a grid may be narrowed by --set models
        if wrong:
            near = difflib.get_close_matches(wrong[0], self.models, n=1, cutoff=0.0)
            raise ConfigError(f"per_model: {wrong[0]} is no network: did you mean {near[0]}?")
        checked_strategies(self.strategies, same_time=False)


@dataclass(frozen=True)
class Cell:
    """One experiment of a grid."""

    dataset: str
    model: str
    variant: str
    seed: int
    config: FitConfig = field(compare=False)  # a policy may be a mapping, which has no hash

    @property
    def folder(self) -> str:
        """Where it lies in the sweep's folder, with forward slashes."""
        return f"cells/{self.dataset}/{self.model}/{self.variant}/seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.dataset} {self.model} {self.variant} seed {self.seed}"


@dataclass(frozen=True)
class Sweep:
    """A grid and its cells, seed by seed: what is cut short has every network once before any twice."""

    config: SweepConfig
    cells: tuple[Cell, ...]

    @property
    def count(self) -> int:
        """How many cells."""
        return len(self.cells)

    @property
    def protocol(self) -> dict[str, Any]:
        """The values of the YAML, defaults filled in."""
        return asdict(self.config)


def load_sweep(
    source: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Sequence[str] = (),
    strategies: Sequence[str] | None = None,
) -> Sweep:
    """The grid in a YAML file, every cell's configuration checked. Raises ConfigError."""
    config = load(source, SweepConfig, overrides)
    if strategies:
        config = replace(config, strategies=list(strategies))
    variants = config.variants or {_policy_name(config.base.get("policy", FitConfig.policy)): {}}
    cells = [
        _cell(source, config, dataset, model, variant, seed, changes)
        for seed in config.seeds
        for dataset in config.data
        for model in config.models
        for variant, changes in variants.items()
    ]
    return Sweep(config, tuple(cells))


def _cell(
    source: object, config: SweepConfig, dataset: str, model: str, variant: str, seed: int, changes: Keys
) -> Cell:
    for name in (dataset, model, variant):
        if not name or Path(name).name != name or name in (".", ".."):
            raise ConfigError(f"{name!r} names a folder of the results: give a name without separators")
    layers = (config.base, config.per_dataset.get(dataset, {}), config.per_model.get(model, {}), changes)
    values: Keys = {}
    for given in layers:
        fixed = [key for key in given if key in SET_BY_SWEEP]
        if fixed:
            raise ConfigError(f"{fixed[0]} is set by the grid itself: take it out of base and of what changes it")
        values = _merged(values, given)
    values |= {"data": config.data[dataset], "model": model, "seed": seed, "threads": config.threads}
    try:
        return Cell(dataset, model, variant, seed, load(values, FitConfig))
    except ConfigError as error:
        where = source if isinstance(source, (str, os.PathLike)) else config.name
        raise ConfigError(f"{where}: cell {dataset} {model} {variant}: {error}") from None


def _merged(values: Keys, changes: Keys) -> Keys:
    """``changes`` over ``values``, but a policy is replaced whole."""
    return merged(values, changes) | {key: changes[key] for key in ("policy",) if key in changes}


def _policy_name(policy: Any) -> str:
    return policy if isinstance(policy, str) else next(iter(policy), "policy")
