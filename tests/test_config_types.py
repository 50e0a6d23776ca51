"""What is built in Python is checked as what is read from YAML: every field by its type."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from streamdrop.config import load
from streamdrop.errors import ConfigError
from streamdrop.evaluation.fit_config import FitConfig, ScheduleConfig
from streamdrop.evaluation.sweep_config import SweepConfig
from streamdrop.service.settings import DaemonConfig, HttpConfig, MqttConfig, StreamConfig, TargetConfig
from streamdrop.settings import TunerSettings
from streamdrop.thawing import ThawPlan
from streamdrop.tracking.config import TrackerConfig

ROOTS = (TrackerConfig, FitConfig, SweepConfig, DaemonConfig, TunerSettings)
NEEDED = {
    FitConfig: {"data": "d"},
    SweepConfig: {"name": "n", "data": {"d": "d"}, "models": ["resnet18"], "seeds": [0], "strategies": ["sgd"]},
    ThawPlan: {"every": 1},
    StreamConfig: {"name": "n", "source": "s"},
    MqttConfig: {"host": "h"},
    TargetConfig: {"box": (1, 2, 3, 4)},
}


def nested(kind):
    """A dataclass and those in its fields."""
    yield kind
    for hint in get_type_hints(kind).values():
        for part in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(part):
                yield from nested(part)


FIELDS = [
    (kind, field.name)
    for kind in dict.fromkeys(kind for root in ROOTS for kind in nested(root))
    for field in dataclasses.fields(kind)
    if get_type_hints(kind)[field.name] is not Any
]


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=[f"{kind.__name__}.{name}" for kind, name in FIELDS])
def test_every_field_is_checked_by_type_in_python_too(kind, name):
    for wrong in (object(), {"a": "secret word"}, 2.5 + 1j):
        if isinstance(wrong, dict) and "dict" in str(get_type_hints(kind)[name]):
            continue
        with pytest.raises(ConfigError, match=rf"{name}\b") as caught:
            kind(**{**NEEDED.get(kind, {}), name: wrong})
        assert "secret word" not in str(caught.value) or name not in ("token", "password")


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (FitConfig, {"epochs": "5"}, "epochs is '5': give a whole number"),
        (FitConfig, {"batch_size": 2.5}, "batch_size is 2.5: give a whole number"),
        (FitConfig, {"seed": True}, "seed is True: give a whole number"),
        (FitConfig, {"optimizer": {"lr": 0.1}}, "optimizer is {'lr': 0.1}: give a OptimizerConfig"),
        (FitConfig, {"thaw": 3}, "thaw is 3: give a ThawPlan or nothing"),
        (ThawPlan, {"rounds": 1.5}, "thaw.rounds is 1.5: give a whole number"),
        (StreamConfig, {"targets": (1,)}, "targets is (1,): give"),
        (HttpConfig, {"token": 12345}, "token is of another kind (not shown here): give text or nothing"),
    ],
)
def test_what_is_wrong_is_said(kind, given, words):
    with pytest.raises(ConfigError) as caught:
        kind(**{**NEEDED.get(kind, {}), **given})
    assert words in str(caught.value)


def test_lists_and_numpys_numbers_do_where_tuples_and_numbers_are_wanted():
    schedule = ScheduleConfig("step", [np.int64(2), 4], np.float32(0.5))
    assert schedule == ScheduleConfig("step", (2, 4), 0.5)
    assert [type(value) for value in schedule.milestones] == [int, int]
    assert DaemonConfig(streams=[StreamConfig("n", "s")]).streams[0].name == "n"


@pytest.mark.parametrize(
    ("values", "where"),
    [({"schedule": {"kind": "step", "milestones": [True, 4]}}, r"milestones.0: expected a whole number, got True")],
)
def test_truth_is_no_number_in_a_list_either(values, where):
    with pytest.raises(ConfigError, match=where):
        load({"data": "d", **values}, FitConfig)
