"""What the daemon publishes, heard through a real broker."""

from __future__ import annotations

import gc
import json
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


def test_topics_are_checked():
    with pytest.raises(ConfigError, match="without spaces"):
        load_daemon({"mqtt": {"host": "x", "prefix": "a/#"}})
    assert "hidden" not in repr(load_daemon({"mqtt": {"host": "x", "password": "hidden"}}))
