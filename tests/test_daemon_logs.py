"""The daemon's log: a line a message, in UTF-8, whatever files are called."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamdrop.service.logs import start_logging
from streamdrop.service.settings import LoggingConfig

NAME = "ü\n2026 INFO b: fine\x1b[2J\udcff 😀.mp4"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """Where to log; afterwards logging is as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    yield tmp_path / "log ü.txt"
    logging.captureWarnings(False)
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_message_is_one_line_and_no_name_adds_another(log):
    start_logging(LoggingConfig(file=str(log)))
    logging.getLogger("streamdrop").warning("a: %s is gone", NAME)
    logging.getLogger("streamdrop").error("b: after")
    first, second = log.read_text(encoding="utf-8").splitlines()
    assert first.endswith(r"WARNING a: ü\n2026 INFO b: fine\x1b[2J\udcff 😀.mp4 is gone")
    assert second.endswith("ERROR   b: after")


def test_a_traceback_has_its_lines_and_names_what_is_no_text(log):
    start_logging(LoggingConfig(file=str(log)))
    try:
        raise ValueError(NAME)
    except ValueError:
        logging.getLogger("streamdrop").exception("a failed")
    text = log.read_text(encoding="utf-8")
    assert "Traceback" in text
    assert r"\udcff" in text


def test_json_has_the_name_as_it_is(log):
    start_logging(LoggingConfig(file=str(log), format="json"))
    logging.getLogger("streamdrop").warning("a: %s", NAME)
    assert json.loads(log.read_text(encoding="utf-8"))["message"] == f"a: {NAME}"
