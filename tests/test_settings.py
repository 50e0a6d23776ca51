"""A FineTuner's settings: what is refused, and that the message names setting, value and kind."""

from __future__ import annotations

import numpy as np
import pytest

from streamdrop.errors import ConfigError
from streamdrop.settings import TunerSettings, settings_from


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"clip_norm": -1.0}, "clip_norm is -1.0: give a number above 0"),
        ({"clip_norm": 0}, "clip_norm is 0: give a number above 0"),
        ({"clip_norm": float("nan")}, "clip_norm is nan: give a finite number"),
        ({"clip_norm": "1"}, "clip_norm is '1': give a number or nothing"),
        ({"warm_up": "3"}, "warm_up is '3': give a whole number"),
        ({"batch_size": "8"}, "batch_size is '8': give a whole number"),
        ({"batch_size": 8.5}, "batch_size is 8.5: give a whole number"),
        ({"seed": 1.5}, "seed is 1.5: give a whole number"),
        ({"accumulate": 1.5}, "accumulate is 1.5: give a whole number"),
        ({"accumulate": True}, "accumulate is True: give a whole number"),
        ({"average": "yes"}, "average is 'yes': give true or false"),
        ({"chunk": None}, "chunk is None: give a whole number"),
        ({"chunk": 1}, "chunk is 1: give a whole number of at least 2"),
        ({"strategy": ["drop"]}, "choose sgd, freeze or drop"),
    ],
)
def test_a_setting_that_cannot_work_is_named_with_its_value_and_kind(given, words):
    with pytest.raises(ConfigError) as caught:
        settings_from(given)
    assert words in str(caught.value)


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(TypeError, match=r"no setting batchsize: choose from warm_up, .*batch_size"):
        settings_from({"batchsize": 8, "seed": 1})


def test_numpys_numbers_become_pythons():
    settings = settings_from({"batch_size": np.int64(8), "clip_norm": np.float32(0.5), "average": np.bool_(False)})
    assert settings == TunerSettings(batch_size=8, clip_norm=0.5, average=False)
    assert [type(value) for value in (settings.batch_size, settings.clip_norm, settings.average)] == [int, float, bool]
