"""What can be set about MQTT."""

from __future__ import annotations

import re
from dataclasses import dataclass

from streamdrop.config import secret
from streamdrop.errors import ConfigError
from streamdrop.values import check_fields

_LONGEST = 1000  # characters of a topic's beginning: MQTT ends topics at 65,535 bytes


@dataclass(frozen=True)
class MqttConfig:
    """A broker to publish to under ``prefix``. ``frames``: every frame's event too, not only rounds and the others.

    ``discovery``: where home automation looks for descriptions, such as ``homeassistant``; null: none are published.
    """

    host: str
    port: int = 1883
    username: str | None = None
    password: str | None = secret()
    tls: bool = False
    prefix: str = "streamdrop"
    discovery: str | None = None
    frames: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not _is_host(self.host):
            raise ConfigError(f"host is {self.host!r}: give a name or an address alone, such as broker.lan")
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}: give one from 1 to 65535")
        if self.password is not None and self.username is None:
            raise ConfigError("password is given without username, and would not be sent: give username too")
        for name in ("prefix", "discovery"):
            value = getattr(self, name)
            if value is not None and not _is_topic(value):
                raise ConfigError(f"{name} is {value[:100]!r}: give a topic without spaces, # and +")


def _is_host(text: str) -> bool:
    """A name or an address, without scheme, port or path."""
    try:
        text.encode("idna")
    except UnicodeError:  # an empty part, or one that is too long
        return False
    return bool(text) and re.search(r"[\s/@\0]", text) is None and text.count(":") != 1


def _is_topic(text: str) -> bool:
    return 0 < len(text) <= _LONGEST and not any(sign in text for sign in "#+\0 ")
