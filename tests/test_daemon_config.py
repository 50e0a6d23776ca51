"""The daemon's YAML: what it takes, what it refuses and how it says so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdrop.cli import main
from streamdrop.config_schema import json_schema
from streamdrop.errors import ConfigError
from streamdrop.service.redact import redacted
from streamdrop.service.settings import DaemonConfig, StreamConfig, load_daemon, load_stream, tracker_settings
from streamdrop.tracking import TrackerConfig

ROOT = Path(__file__).resolve().parent.parent
SMALLEST = """
state: run
http: {host: 127.0.0.1, port: 8377}
roots: [data_samples]
streams:
  - {name: crossing, source: ../shared/data/sequences/crossing/color, fps: 15, loop: true, box: [205, 151, 17, 50]}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "d.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_smallest_configuration(tmp_path):
    config = load_daemon(write(tmp_path, SMALLEST))
    (stream,) = config.streams
    assert (config.state, config.http.port, config.roots) == ("run", 8377, ("data_samples",))
    assert (stream.name, stream.fps, stream.loop, stream.target) == ("crossing", 15, True, (205, 151, 17, 50))
    tracker = tracker_settings(config, stream)
    assert tracker.name == "crossing"
    assert tracker.store == "run/crossing/features"
    assert tracker.update.deadline == config.limits.round_seconds


def test_the_sample_holds_every_key_at_its_default():
    values = yaml.safe_load((ROOT / "configs" / "daemon.yaml").read_text())
    default = dataclasses.asdict(DaemonConfig())
    assert values.keys() == default.keys()
    for section in ("http", "limits", "outputs", "logging"):
        assert {k: tuple(v) if isinstance(v, list) else v for k, v in values[section].items()} == default[section]
    (stream,) = values["streams"]
    assert stream.keys() == {field.name for field in dataclasses.fields(StreamConfig)}


def test_a_stream_s_tracker_keys_win_over_the_daemon_s():
    config = load_daemon(
        {
            "tracker": {"update": {"every": 10, "steps": 2, "deadline": 0.5}, "seed": 3},
            "streams": [{"name": "a", "source": 0, "tracker": {"update": {"every": 7}}}],
        }
    )
    tracker = tracker_settings(config, config.streams[0])
    assert (tracker.update.every, tracker.update.steps, tracker.update.deadline, tracker.seed) == (7, 2, 0.5, 3)


def test_rounds_beside_are_not_for_streams_that_share_the_cores():
    stream = {"name": "a", "source": 0, "tracker": {"realtime": {"fps": 25}}}
    config = load_daemon({"streams": [stream]})
    assert tracker_settings(config, config.streams[0]).realtime.fps == 25
    with pytest.raises(ConfigError, match=r"a: tracker\.realtime\.beside.*realtime\.fps"):
        load_daemon({"streams": [stream], "tracker": {"realtime": {"beside": True}}})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("streams:\n - {name: a, source: 0, fsp: 3}\n", ["d.yaml:2", "streams.0.fsp", "did you mean fps"]),
        ("streams:\n - {name: a}\n", ["d.yaml:2", "streams.0.source", "missing"]),
        ("tracker:\n  update:\n    stepz: 3\n", ["d.yaml:3", "tracker.update.stepz", "did you mean steps"]),
        ("streams:\n - name: a\n   source: 0\n   tracker: {seed: x}\n", ["d.yaml:4", "streams.0.tracker.seed"]),
        ("streams: 3\n", ["d.yaml:1", "streams", "expected a list"]),
        ("streams: [3]\n", ["d.yaml:1", "streams.0", "expected keys"]),
        ("streams: [{name: a b, source: 0}]\n", ["streams.0", "name 'a b'", "letters"]),
        ("streams: [{name: ../a, source: 0}]\n", ["streams.0", "letters"]),
        ("streams: [{name: a, source: 0}, {name: A, source: 1}]\n", ["a given twice"]),
        ("streams: [{name: a, source: 0, box: [1, 2, 0, 4]}]\n", ["streams.0", "no area"]),
        ("streams: [{name: a, source: 0, box: [1, 2, 3]}]\n", ["streams.0.box"]),
        ("streams: [{name: a, source: 0, fps: 0}]\n", ["streams.0", "fps is 0"]),
        ("streams: [{name: a, source: ''}]\n", ["streams.0", "source is empty"]),
        ("http: {host: 0.0.0.0}\n", ["http", "token", "127.0.0.1"]),
        ("http: {token: short}\n", ["http", "16 characters"]),
        ("http: {port: 70000}\n", ["http", "port is 70000"]),
        ("limits: {workers: 0}\n", ["limits", "workers"]),
        ("limits: {retry_first: 9, retry_most: 1}\n", ["limits", "retry_most"]),
        ("limits: {streams: 1}\nstreams: [{name: a, source: 0}, {name: b, source: 1}]\n", ["2 streams"]),
        ("outputs: {boxes: [csv]}\n", ["outputs.boxes"]),
        ("logging: {level: loud}\n", ["logging.level", "debug, info"]),
        ("http: {token: '${STREAMDROP_NOT_SET}'}\n", ["STREAMDROP_NOT_SET"]),
    ],
)
def test_mistakes_say_where_and_what_to_do(tmp_path, text, parts):
    with pytest.raises(ConfigError) as caught:
        load_daemon(write(tmp_path, text))
    for part in parts:
        assert part in str(caught.value)


def test_secrets_are_in_no_message_and_no_repr(tmp_path, monkeypatch):
    monkeypatch.setenv("CAMERA_PASSWORD", "hunter2hunter2")
    text = (
        "http: {token: 1234567890123456}\nstreams:\n"
        " - {name: a, source: ['rtsp://me:${CAMERA_PASSWORD}@cam/x?key=abc'], fps: 1}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_daemon(write(tmp_path, text))
    for secret in ("1234567890123456", "hunter2", "abc", "me:"):
        assert secret not in str(caught.value)
    config = load_daemon({"http": {"token": "correct horse battery"}})
    assert "horse" not in repr(config)


@pytest.mark.parametrize(
    "root", ["rtsp://[::1/", "rtsp://cam:99999/", "http://cam:door/x", "rtsp://", "rtsp:///x", "", " "]
)
def test_a_place_that_no_source_can_be_in_is_refused(root):
    with pytest.raises(ConfigError, match="roots: "):
        load_daemon({"roots": ["/videos", root]})


def test_places_that_sources_can_be_in():
    roots = ("/videos", "rtsp://cam.lan:554/", "http://[::1]:80/a b", "udp://@:1234", 0, "1")
    assert load_daemon({"roots": list(roots)}).roots == roots


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://u:p@cam:554/a?x=1", "rtsp://cam:554/a"),
        ("at rtsp://u:p@ss@cam/a failed", "at rtsp://cam/a failed"),
        ("""at 'rtsp://u:p'w"d@cam/a' failed""", "at 'rtsp://cam/a' failed"),
        ("'rtsp://cam/a' and 'x@y'", "'rtsp://cam/a' and 'x@y'"),
        ("'rtsp://cam' and 'x@y'", "'rtsp://cam' and 'x@y'"),
        ("http://cam/user=admin&password=x/a", "http://cam/user=…&password=…/a"),
        ("videos/a?b.mp4", "videos/a?b.mp4"),
    ],
)
def test_addresses_are_shown_without_secrets(text, shown):
    assert redacted(text) == shown


def test_the_schema_says_what_the_reader_takes(tmp_path):
    schema = json_schema(DaemonConfig, "daemon")
    jsonschema.Draft202012Validator.check_schema(schema)
    valid = jsonschema.Draft202012Validator(schema)
    assert valid.is_valid(yaml.safe_load(SMALLEST))
    assert valid.is_valid(yaml.safe_load((ROOT / "configs" / "daemon.yaml").read_text()))
    assert not valid.is_valid({"streams": [{"name": "a", "source": 0, "fsp": 1}]})
    assert not valid.is_valid({"streams": [{"name": "a"}]})
    assert not valid.is_valid({"tracker": {"update": {"stepz": 1}}})
    tracker = jsonschema.Draft202012Validator(json_schema(TrackerConfig, "tracker"))
    assert tracker.is_valid(yaml.safe_load((ROOT / "configs" / "advanced.yaml").read_text()))


def test_config_check_names_every_mistake_on_a_line_of_its_own(tmp_path, capsys):
    path = write(tmp_path, "http: {prot: 1}\nlimits: {worker: 2}\n")
    assert main(["config", "check", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "d.yaml:1" in lines[0]
    assert "d.yaml:2" in lines[1]
    assert main(["config", "check", str(ROOT / "configs" / "daemon.yaml")]) == 0
    assert "streams: clip" in capsys.readouterr().out
    assert main(["config", "check", "--for", "track", str(ROOT / "configs" / "basic.yaml")]) == 0


def test_config_schema_prints_json(capsys):
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["streams"]["type"] == "array"


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from([*(field.name for field in dataclasses.fields(StreamConfig)), "", "x"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=8))
def test_any_stream_is_taken_or_refused_with_a_clear_error(values):
    said = "nothing, and took it"
    try:
        assert isinstance(load_stream(values), StreamConfig)
    except ConfigError as error:
        said = str(error)
    assert said


TOP = st.sampled_from([field.name for field in dataclasses.fields(DaemonConfig)])


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(TOP, VALUES, max_size=6))
def test_any_configuration_is_taken_or_refused_with_a_clear_error(values):
    said = "nothing, and took it"
    try:
        assert isinstance(load_daemon(values), DaemonConfig)
    except ConfigError as error:
        said = str(error)
    assert said


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="abc: -[]{}\n\t'\"&*!|>%@`#,0.5\u2028\ud7ff", max_size=60))
def test_any_text_is_taken_or_refused_with_a_clear_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("yaml") / "d.yaml"
    path.write_text(text, encoding="utf-8")
    said = "nothing, and took it"
    try:
        assert isinstance(load_daemon(path), DaemonConfig)
    except ConfigError as error:
        said = str(error)
    assert said
