"""What the daemon publishes, heard through a real broker."""

from __future__ import annotations

import gc
import json
import logging
import re
import shutil
import socket
import subprocess
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from daemons import SECONDS, make_scene, until
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from small_tracker import SMALL

from streamdrop.errors import ConfigError
from streamdrop.service.daemon import Daemon
from streamdrop.service.mqtt import Publisher
from streamdrop.service.mqtt_settings import MqttConfig
from streamdrop.service.settings import load_daemon, load_stream

BROKER = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A broker of this machine's own, on a free port."""
    if BROKER is None:
        pytest.skip("MQTT is not tested: install the package mosquitto")
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    config = tmp_path / "broker.conf"
    config.write_text(f"listener {number} 127.0.0.1\nallow_anonymous true\nuser root\n")
    with subprocess.Popen([BROKER, "-c", str(config)], stderr=subprocess.DEVNULL) as broker:
        until(lambda: _answers(number), "the broker")
        yield number
        broker.terminate()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_states_events_and_descriptions_are_published(port, tmp_path):
    heard: dict[str, list[str]] = {}
    client = Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda c, d, message: heard.setdefault(message.topic, []).append(message.payload.decode())
    client.on_connect = lambda c, *_: c.subscribe("#")
    client.connect("127.0.0.1", port)
    client.loop_start()
    boxes = make_scene(tmp_path / "scene")
    stream = {"name": "a", "source": str(tmp_path / "scene"), "fps": 30, "loop": True, "box": boxes[0]}
    mqtt = {"host": "127.0.0.1", "port": port, "discovery": "homeassistant"}
    daemon = Daemon(load_daemon({"state": str(tmp_path / "run"), "tracker": SMALL, "streams": [stream], "mqtt": mqtt}))
    daemon.start()
    until(lambda: any("round" in text for text in heard.get("streamdrop/a/event", [])), "a round's event")
    until(lambda: any('"tracking"' in text for text in heard.get("streamdrop/a/state", [])), "the state tracking")
    assert daemon.stop(SECONDS)
    until(lambda: heard["streamdrop/status"][-1] == "offline", "the goodbye")
    assert "online" in heard["streamdrop/status"]
    state = json.loads(heard["streamdrop/a/state"][-1])
    assert {"state", "frame", "target", "cut", "round", "loss"} <= state.keys()
    assert not any("score" in json.loads(text) for text in heard["streamdrop/a/event"])
    described = json.loads(heard["homeassistant/sensor/streamdrop-a/config"][0])
    assert described["state_topic"] == "streamdrop/a/state"
    client.disconnect()
    client.loop_stop()


class Broker:
    """Stands for the client library and the broker behind it: what it retains."""

    def __init__(self, *_: object) -> None:
        self.retained: dict[str, str] = {}
        self.there = False

    def is_connected(self) -> bool:
        return self.there

    def publish(self, topic: str, payload: str, retain: bool = False) -> Any:
        assert self.there
        if retain:
            self.retained[topic] = payload
        if not payload:
            del self.retained[topic]
        return SimpleNamespace(wait_for_publish=lambda timeout: None)

    def connect(self) -> None:
        self.there = True
        self.on_connect(self, None, None, SimpleNamespace(is_failure=False), None)

    def refuse(self) -> None:
        self.on_connect(self, None, None, SimpleNamespace(is_failure=True), None)
        self.lose()

    def lose(self) -> None:
        self.there = False
        self.on_disconnect(self, None, None, SimpleNamespace(is_failure=True), None)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None

    def about(self, name: str) -> list[str]:
        return [topic for topic in self.retained if name in topic]


@pytest.mark.slow
@pytest.mark.parametrize("discovery", ["homeassistant", None])
def test_a_broker_retains_nothing_of_a_stream_that_has_gone(tmp_path, monkeypatch, discovery):
    monkeypatch.setattr("paho.mqtt.client.Client", Broker)
    streams = [{"name": name, "source": str(tmp_path / "none")} for name in ("gone", "later", "stays")]
    mqtt = {"host": "127.0.0.1", "discovery": discovery}
    daemon = Daemon(load_daemon({"state": str(tmp_path / "run"), "tracker": SMALL, "streams": streams, "mqtt": mqtt}))
    broker = daemon._mqtt._client
    daemon.start()
    broker.connect()
    each = 3 if discovery else 1
    assert [len(broker.about(name)) for name in ("gone", "later", "stays")] == [each] * 3
    session = weakref.ref(daemon.get("gone"))
    daemon.remove("gone")
    assert broker.about("gone") == []
    broker.there = False
    daemon.remove("later")
    assert len(broker.about("later")) == each
    broker.connect()
    assert [len(broker.about(name)) for name in ("gone", "later", "stays")] == [0, 0, each]
    assert until(lambda: gc.collect() >= 0 and session() is None, "the end of the session")
    daemon.add(load_stream({"name": "gone", "source": str(tmp_path / "none")}))
    broker.connect()
    assert len(broker.about("gone")) == each
    assert daemon.stop(SECONDS)


def test_a_broker_that_is_away_holds_nobody_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    daemon = Daemon(load_daemon({"state": str(tmp_path), "mqtt": {"host": "127.0.0.1", "port": number}}))
    daemon.start()
    assert daemon.stop(10)


@pytest.mark.slow
def test_a_stream_taken_out_while_no_daemon_ran_is_forgotten_by_the_broker(tmp_path, monkeypatch):
    broker = Broker()
    monkeypatch.setattr("paho.mqtt.client.Client", lambda *_: broker)
    streams = [{"name": name, "source": str(tmp_path / "none")} for name in ("gone", "stays")]
    values = {"state": str(tmp_path / "run"), "tracker": SMALL, "mqtt": {"host": "127.0.0.1"}}
    for wanted in (streams, streams[1:]):
        broker.there = False
        daemon = Daemon(load_daemon({**values, "streams": wanted}))
        daemon.start()
        broker.connect()
        assert len(broker.about("stays")) == 1
        assert len(broker.about("gone")) == len(wanted) - 1
        assert daemon.stop(20)
        assert json.loads(broker.retained["streamdrop/stays/state"])["state"] == "stopped"


def test_daemons_with_prefixes_of_their_own_describe_streams_of_one_name_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("paho.mqtt.client.Client", Broker)
    described: dict[str, Any] = {}
    for prefix in ("streamdrop", "barn/box-2", "höuse"):
        mqtt = {"host": "127.0.0.1", "discovery": "homeassistant", "prefix": prefix}
        daemon = Daemon(load_daemon({"state": str(tmp_path / prefix), "mqtt": mqtt}))
        publisher, broker = daemon._mqtt, daemon._mqtt._client
        publisher.attach(SimpleNamespace(name="cam", broadcast=SimpleNamespace(listeners=[]), status=_status))
        broker.connect()
        about = {topic: json.loads(broker.retained[topic]) for topic in broker.about("config")}
        assert all(re.fullmatch(r"homeassistant/[a-z_]+/[A-Za-z0-9_-]+/config", topic) for topic in about)
        assert not described.keys() & about.keys()
        described.update(about)
        daemon.stop()
    assert "homeassistant/sensor/streamdrop-cam/config" in described
    assert len({one["unique_id"] for one in described.values()}) == len(described) == 6


def _status() -> dict[str, Any]:
    return dict.fromkeys(
        ("state", "frame", "fps", "dropped_frames", "target", "targets", "cut", "layers", "round", "loss", "error")
    )


@pytest.mark.slow
def test_a_broker_that_cannot_be_reached_is_said(tmp_path, caplog):
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    publisher = Publisher(MqttConfig("127.0.0.1", number))
    publisher.start()
    until(lambda: f"127.0.0.1:{number} cannot be reached (Connection refused): check host" in caplog.text, "the word")
    publisher.stop()


def test_what_is_wrong_with_a_broker_is_said_once_until_it_changes(monkeypatch, caplog):
    monkeypatch.setattr("paho.mqtt.client.Client", Broker)
    publisher = Publisher(MqttConfig("broker.lan"))
    broker = publisher._client
    said = [
        (broker.lose, 1, "does not answer as a broker"),
        (broker.refuse, 1, "refuses"),
        (lambda: broker.on_connect_fail(broker, None), 1, "cannot be reached"),
        (broker.connect, 0, ""),
        (broker.lose, 1, "the connection to broker.lan:1883 is lost"),
        (broker.refuse, 1, "refuses"),
    ]
    for happens, count, word in said:
        caplog.clear()
        happens()
        assert [word in text for text in _warnings(caplog)] == [True] * count
        if count and "lost" not in word:
            happens()
            assert len(_warnings(caplog)) == 1


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("host", ["", "a..b", "mqtt://broker.lan", "broker.lan:1883", "two words", "x" * 70])
def test_a_broker_that_has_no_such_name_is_refused_beforehand(host):
    with pytest.raises(ConfigError, match="give a name or an address alone"):
        load_daemon({"mqtt": {"host": host}})
    for right in ("broker.lan", "10.0.0.7", "::1", "fe80::1%eth0", "bröker.lan"):
        load_daemon({"mqtt": {"host": right}})


def test_a_password_without_a_username_is_refused():
    with pytest.raises(ConfigError, match="give username too"):
        load_daemon({"mqtt": {"host": "x", "password": "hidden"}})


def test_topics_are_checked():
    with pytest.raises(ConfigError, match="without spaces"):
        load_daemon({"mqtt": {"host": "x", "prefix": "a/#"}})
    with pytest.raises(ConfigError, match="prefix is"):
        load_daemon({"mqtt": {"host": "x", "prefix": "a" * 70_000}})
    assert "hidden" not in repr(load_daemon({"mqtt": {"host": "x", "username": "u", "password": "hidden"}}))
