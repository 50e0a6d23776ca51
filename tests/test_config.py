from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from streamdrop.config import differing_keys, load
from streamdrop.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    steps: int = 4
    rate: float = 1e-3
    kind: Literal["adam", "sgd"] = "adam"


@dataclass(frozen=True)
class Outer:
    data: str = "here"
    rounds: Inner = field(default_factory=Inner)
    extra: Inner | None = None
    schedule: dict[int, int] = field(default_factory=dict)
    sizes: tuple[int, ...] = (1, 2)
    span: tuple[float, float] = (0.0, 1.0)
    more: dict[str, Any] = field(default_factory=dict)
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.data == "bad":
            raise ValueError("data is bad: give another")


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_nothing_gives_the_defaults():
    assert load(None, Outer) == Outer()
    assert load({}, Outer) == Outer()


def test_values_of_every_kind(tmp_path):
    text = "data: d\nrounds: {steps: 5, rate: 1e-2, kind: sgd}\nextra: {steps: 1}\nschedule: {4: 10}\nsizes: [3]\n"
    assert load(write(tmp_path, text), Outer) == Outer("d", Inner(5, 0.01, "sgd"), Inner(1), {4: 10}, (3,))


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert load(write(tmp_path, "# nothing\n"), Outer) == Outer()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("rounds:\n  stepz: 5\n", ["c.yaml:2", "rounds.stepz", "did you mean steps"]),
        ("rounds:\n  steps: many\n", ["c.yaml:2", "rounds.steps", "a whole number", "'many'"]),
        ("rounds:\n  kind: rmsprop\n", ["c.yaml:2", "adam, sgd"]),
        ("rounds: 3\n", ["c.yaml:1", "rounds", "steps, rate, kind"]),
        ("data: x\ndata: y\n", ["c.yaml:2", "data", "twice"]),
        ("data: ${STREAMDROP_NOT_SET}/x\n", ["c.yaml:1", "STREAMDROP_NOT_SET", "export"]),
        ("data: [\n", ["c.yaml:2"]),
        ("- 1\n", ["c.yaml:1", "expected keys"]),
        ("data: bad\n", ["c.yaml", "data is bad"]),
        ("rounds:\n  steps: true\n", ["c.yaml:2", "a whole number"]),
        ("rounds:\n  rate: .nan\n", ["c.yaml:2", "rounds.rate", "a finite number", "nan"]),
        ("rounds:\n  rate: -.inf\n", ["c.yaml:2", "rounds.rate", "a finite number", "-inf"]),
        ("rounds:\n  rate: nan\n", ["c.yaml:2", "rounds.rate", "a finite number"]),
        ("span:\n- 1\n- .inf\n", ["c.yaml:3", "span.1", "a finite number"]),
        ("more: {below: {x: .nan}}\n", ["c.yaml:1", "more.below.x", "a finite number"]),
        ("limit: true\n", ["c.yaml:1", "limit", "a number or nothing", "True"]),
        ("data: 2026-13-45\n", ["c.yaml:1", "'2026-13-45'", "quote it"]),
        ("2026-13-45: x\n", ["c.yaml:1", "quote it"]),
        ("rounds:\n  steps: !!int abc\n", ["c.yaml:2", "'abc'", "quote it"]),
        ("rounds:\n  steps: 0x_\n", ["c.yaml:2", "quote it"]),
        (f"limit: {'9' * 5000}\n", ["c.yaml:1", "quote it"]),
        ("? [a, b]\n: 3\n", ["c.yaml:1", "as a key"]),
        ("{a: b}: 3\n", ["c.yaml:1", "as a key"]),
        ("more: &x {every: *x}\n", ["c.yaml", "alias within itself"]),
        (f"more: {'[' * 3000}\n", ["c.yaml", "nested too deeply"]),
        ("base: &a {x: 1}\nmore:\n  <<: *a\n", ["c.yaml:3", "<<"]),
        ("a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 9)), ["100000 values"]),
    ],
)
def test_mistakes_say_where_and_what_to_do(tmp_path, text, parts):
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), Outer)
    for part in parts:
        assert part in str(caught.value)


def test_all_mistakes_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"nonsense.*valid keys.*steps"):
        load(write(tmp_path, "nonsense: 1\nrounds: {steps: x}\n"), Outer)


def test_variables_expand(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMDROP_HERE", "/somewhere")
    assert load(write(tmp_path, "data: ${STREAMDROP_HERE}/x\n"), Outer).data == "/somewhere/x"


def test_overrides_win_and_nest():
    assert load({"rounds": {"steps": 2}}, Outer, ["rounds.rate=0.5", "data=z"]) == Outer("z", Inner(2, 0.5))
    assert load(None, Outer, ["schedule={4: 10, 5: 19}"]).schedule == {4: 10, 5: 19}


BAD_OVERRIDES = [
    *("rounds.stepz=1", "steps", "=3", "data.x=1", "rounds=[", "data=2026-13-45", "rounds.steps=!!int x"),
    *("more=&x {a: *x}", "more={<<: 1}", "more=" + "[" * 3000, "more={[a]: 1}"),
]


@pytest.mark.parametrize("text", BAD_OVERRIDES)
def test_bad_overrides_are_refused(text):
    with pytest.raises(ConfigError):
        load(None, Outer, [text])


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("rounds.steps=many", "--set rounds.steps: expected a whole number"),
        ("rounds={stepz: 3}", "--set rounds.stepz: unknown key: did you mean steps"),
        ("extra.stepz=1", "--set extra.stepz: unknown key"),
        ("data=bad", "c.yaml with --set data: data is bad"),
        ("data=fine", "c.yaml:2: rounds.steps: expected a whole number"),
    ],
)
def test_a_mistake_is_looked_for_where_it_was_made(override, place, tmp_path):
    text = "rounds:\n  steps: often\n" if override == "data=fine" else "rounds:\n  steps: 3\n"
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), Outer, [override])
    assert place in str(caught.value)


@pytest.mark.parametrize("text", ["- 1\n", "3\n", "words\n"])
def test_what_is_no_mapping_is_refused_beside_overrides_too(text, tmp_path):
    with pytest.raises(ConfigError, match="expected keys below it"):
        load(write(tmp_path, text), Outer, ["rounds.steps=3"])


def test_a_given_mapping_is_left_alone():
    given = {"rounds": {"steps": 2}}
    load(given, Outer, ["rounds.steps=3"])
    assert given == {"rounds": {"steps": 2}}


def test_keys_that_differ_are_named_as_deep_as_they_are():
    before = {"a": 1, "b": {"c": 1, "d": {"e": None}}, "old": 0}
    assert differing_keys(before, before) == []
    now = {"a": 1, "b": {"c": 2, "d": {"e": 0, "f": None}}, "new": None}
    assert differing_keys(before, now) == ["b.c", "b.d.e", "b.d.f", "new", "old"]
    assert differing_keys({"a": {"b": 1}}, {"a": 1}) == ["a"]


def test_missing_file():
    for source in (5, [], 1.5):
        with pytest.raises(ConfigError, match=f"a {type(source).__name__} is no configuration"):
            load(source, Outer)
    with pytest.raises(ConfigError, match="no such configuration file"):
        load("nowhere.yaml", Outer)
