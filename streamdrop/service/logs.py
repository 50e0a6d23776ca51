"""The daemon's log: text or JSON lines, secrets left out wherever they come from."""

from __future__ import annotations

import json
import logging
import sys
import time

from streamdrop.errors import OutputError
from streamdrop.service.redact import redacted
from streamdrop.service.settings import LoggingConfig


class _Redacting(logging.Formatter):
    """The last step before a line is written: nothing gets around it."""

    def __init__(self, as_json: bool, hidden: tuple[str, ...]) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")
        self._as_json, self._hidden = as_json, hidden

    def formatMessage(self, record: logging.LogRecord) -> str:
        """One line, though a file's name may hold a line break; escapes for what no terminal should be sent."""
        text = super().formatMessage(record).rstrip()
        return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line (and a traceback's), without secrets."""
        if self._as_json:
            values = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": record.getMessage(),
            }
            if record.exc_info:
                values["traceback"] = self.formatException(record.exc_info)
            text = json.dumps(values)
        else:
            text = super().format(record)
        text = redacted(text)
        for secret in self._hidden:
            text = text.replace(secret, "…")
        return text


def start_logging(config: LoggingConfig, hidden: tuple[str, ...] = ()) -> None:
    """Log to stderr or ``config.file``; ``hidden`` texts never appear. Raises OutputError."""
    try:
        handler = _handler(config.file)
    except OSError as error:
        raise OutputError(f"logging.file {config.file}: cannot be written ({error.strerror}): choose another") from None
    handler.setFormatter(_Redacting(config.format == "json", hidden))
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.captureWarnings(True)


def _handler(file: str | None) -> logging.Handler:
    """The log in UTF-8 whatever the locale; a traceback may name what is no text."""
    if file is None:
        return logging.StreamHandler(sys.stderr)
    return logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
