"""What must not be shown: users, passwords and keys in addresses, and tokens."""

from __future__ import annotations

import re

_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s]*@")  # a password may hold quotes
_QUERY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s?'\"]*)\?[^\s'\"]*")
_NAMED = re.compile(r"\b(user(?:name)?|pass(?:word|wd)?|pwd|token|key|secret|auth)=[^&/\s'\"]*", re.IGNORECASE)


def redacted(text: str) -> str:
    """``text`` with user, password, query and ``password=…``-like parts of every address in it left out."""
    if "://" not in text:
        return text
    return _NAMED.sub(r"\1=…", _QUERY.sub(r"\1", _USER.sub(r"\1", text)))
