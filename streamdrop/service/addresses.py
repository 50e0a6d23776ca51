"""Addresses of streams, taken apart, and of servers."""

from __future__ import annotations

import ipaddress
import re
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

Server: TypeAlias = tuple[str, str | None, int | None]
"""Scheme, host and port."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_address(text: str) -> bool:
    """Whether it begins as an address does, ``rtsp://``, and names no file."""
    return _ADDRESS.match(text) is not None


def server_and_path(address: str) -> tuple[Server, str] | None:
    """An address's server, and its path; None for one that is malformed."""
    try:
        parts = urlsplit(address)
        server = (parts.scheme.lower(), parts.hostname, parts.port)
    except ValueError:  # half of an IPv6 address, or a port that is none
        return None
    return (server, unquote(parts.path)) if parts.netloc else None  # servers read %2e%2e as ..


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
