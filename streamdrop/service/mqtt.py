"""Events and states to an MQTT broker, as home automation expects them: retained states, availability, discovery."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from typing import Any

from streamdrop._version import __version__
from streamdrop.errors import ConfigError
from streamdrop.service.mqtt_settings import MqttConfig
from streamdrop.service.stream_session import StreamSession

log = logging.getLogger("streamdrop")

_STATE_SECONDS = 1.0  # a state that only its frame changes is published so often
_DESCRIBED: dict[str, dict[str, str]] = {
    "sensor": {"name": "state", "value_template": "{{ value_json.state }}"},
    "binary_sensor": {
        "name": "target in sight",
        "value_template": "{{ 'ON' if value_json.state == 'tracking' else 'OFF' }}",
    },
}
_SHOWN = ("state", "frame", "fps", "dropped_frames", "target", "targets", "cut", "layers", "round", "loss", "error")


class Publisher:
    """Publishes what sessions tell. ``PREFIX/status``: online or offline (the broker's will); ``PREFIX/NAME/state``:
    retained JSON; ``PREFIX/NAME/event``: events, those of frames only where ``frames`` is set.

    Connects in the background and again after failures; a broker that is away holds nobody up. Raises ConfigError
    where the client library is missing.
    """

    def __init__(self, config: MqttConfig) -> None:
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ModuleNotFoundError:
            raise ConfigError("mqtt needs paho-mqtt, which is not installed: pip install 'streamdrop[mqtt]'") from None
        self._config = config
        self._sessions: dict[str, StreamSession] = {}
        self._last: dict[str, tuple[float, str]] = {}
        self._gone: set[str] = set()  # what the broker retains of these is still to be taken back
        self._publishing = threading.RLock()  # by the client's thread, streams' and the API's
        self._where = f"{config.host}:{config.port}"
        self._trouble: str | None = None  # what the log has heard of, and need not hear at every attempt
        self._up = False
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.will_set(self._topic("status"), "offline", retain=True)
        if config.username is not None:
            self._client.username_pw_set(config.username, config.password)
        if config.tls:
            self._client.tls_set()
        self._client.max_queued_messages_set(1000)
        self._client.on_connect = self._connected
        self._client.on_connect_fail = self._unreachable
        self._client.on_disconnect = self._disconnected

    def start(self) -> None:
        """Begin to connect."""
        self._client.connect_async(self._config.host, self._config.port)
        self._client.loop_start()

    def stop(self) -> None:
        """Say goodbye and end."""
        if self._client.is_connected():
            self._client.publish(self._topic("status"), "offline", retain=True).wait_for_publish(1.0)
        self._client.disconnect()
        self._client.loop_stop()

    def attach(self, session: StreamSession) -> None:
        """Publish what this session tells, until it is detached or another of its name attached."""
        with self._publishing:
            self._sessions[session.name] = session
            self._gone.discard(session.name)
            self._discover(session)
        session.broadcast.listeners.append(lambda event: self._heard(session, event))

    def detach(self, name: str) -> None:
        """Publish nothing more about the stream of that name, and have the broker forget what it retains of it."""
        with self._publishing:
            self._sessions.pop(name, None)
            self._last.pop(name, None)
            self._gone.add(name)
            self._take_back()

    def _take_back(self) -> None:
        """Empty what is retained of streams that have gone; where there is no connection, once there is one."""
        if not self._client.is_connected():
            return
        for name in self._gone:
            for topic in (self._topic(name, "state"), *self._descriptions(name).values()):
                self._client.publish(topic, "", retain=True)
        self._gone.clear()

    def _topic(self, *parts: str) -> str:
        return "/".join((self._config.prefix, *parts))

    def _connected(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._warn(f"refuses ({reason}): check username and password")
            return
        log.info("mqtt: connected to %s", self._where)
        self._up, self._trouble = True, None
        client.publish(self._topic("status"), "online", retain=True)
        with self._publishing:
            self._take_back()
            for session in self._sessions.values():
                self._discover(session)
                self._state(session)

    def _disconnected(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        was_up, self._up = self._up, False
        if reason.is_failure and was_up:
            log.warning("mqtt: the connection to %s is lost (%s)", self._where, reason)
        elif reason.is_failure and self._trouble is None:  # else it is the end of what was refused
            self._warn(f"does not answer as a broker ({reason}): check host, port and tls")

    def _unreachable(self, client: Any, data: Any) -> None:
        """Called while the library handles what was raised."""
        error = sys.exc_info()[1]
        why = getattr(error, "strerror", None) or error or "no answer"
        self._warn(f"cannot be reached ({why}): check host and port, and that the broker runs; it is tried again")

    def _warn(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning("mqtt: %s %s", self._where, trouble)

    def _heard(self, session: StreamSession, event: dict[str, Any]) -> None:
        with self._publishing:
            if self._sessions.get(session.name) is not session or not self._client.is_connected():
                return
            frame = "score" in event
            if not frame or self._config.frames:
                self._client.publish(self._topic(session.name, "event"), json.dumps(event))
            then, word = self._last.get(session.name, (0.0, ""))
            if not frame or time.monotonic() - then > _STATE_SECONDS or word != session.status()["state"]:
                self._state(session)

    def _state(self, session: StreamSession) -> None:
        status = session.status()
        self._last[session.name] = (time.monotonic(), status["state"])
        values = {key: status[key] for key in _SHOWN}
        self._client.publish(self._topic(session.name, "state"), json.dumps(values), retain=True)

    def _descriptions(self, name: str) -> dict[str, str]:
        """Topics of the stream's descriptions by kind; none where nobody looks for them."""
        place = self._config.discovery
        return {} if place is None else {kind: f"{place}/{kind}/{self._known_as(name)}/config" for kind in _DESCRIBED}

    def _known_as(self, name: str) -> str:
        """The stream's own name among all that the broker knows: daemons differ in their prefix."""
        return re.sub(r"[^A-Za-z0-9_-]", "_", f"{self._config.prefix}-{name}")

    def _discover(self, session: StreamSession) -> None:
        """Describe the stream to home automation that looks for such descriptions."""
        if not self._client.is_connected():
            return
        name = session.name
        known_as = self._known_as(name)
        common = {
            "availability_topic": self._topic("status"),
            "state_topic": self._topic(name, "state"),
            "device": {"identifiers": [known_as], "name": f"{self._config.prefix} {name}", "sw_version": __version__},
        }
        for kind, topic in self._descriptions(name).items():
            body = {**common, **_DESCRIBED[kind], "unique_id": f"{known_as}-{kind}"}
            self._client.publish(topic, json.dumps(body), retain=True)
