"""``streamdrop serve``: the daemon, its HTTP server, and the signals that it obeys."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamdrop.atomic import replace_text
from streamdrop.errors import ConfigError, OutputError, StreamdropError
from streamdrop.service.daemon import Daemon
from streamdrop.service.logs import start_logging
from streamdrop.service.settings import DaemonConfig, load_daemon

log = logging.getLogger("streamdrop")

INTERRUPTED = 130
_SWITCH = 0.001  # seconds a thread may hold the interpreter while others wait: trackers would keep the API waiting
_ENDING = ("SIGTERM", "SIGINT")


class Server:
    """The daemon of one YAML file and its HTTP server. ``reload`` reads the file again."""

    def __init__(self, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> None:
        self._path, self._overrides = path, tuple(overrides)
        self._ending = threading.Event()
        config = load_daemon(path, overrides)
        start_logging(config.logging, _secrets(config))
        app_module, server_module = _http()
        self.daemon = Daemon(config)
        try:
            app = app_module.make_app(self.daemon, self.reload, self._ending.is_set)
            self.http = server_module.HttpServer(app, config.http)
        except BaseException:
            self.daemon.stop()
            raise

    def start(self) -> None:
        """Answer, then start the streams; ``state/daemon.json`` says where. Raises OutputError."""
        self.http.start()
        self.daemon.start()
        self._tell_where()
        log.info("open %s", self.http.address)

    def _tell_where(self) -> None:
        path = Path(self.daemon.config.state) / "daemon.json"
        try:
            replace_text(path, json.dumps({"pid": os.getpid(), "address": self.http.address}))
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror}): free some space") from None

    def reload(self) -> dict[str, list[str]]:
        """Read the file again; what differs restarts. Raises ConfigError: nothing has changed then."""
        try:
            done = self.daemon.reload(load_daemon(self._path, self._overrides))
        except StreamdropError as error:
            self.daemon.reload_failed = True
            log.error("not reloaded: %s", error)
            raise
        log.info("reloaded: %s", "; ".join(f"{what} {', '.join(names)}" for what, names in done.items() if names))
        return done

    def stop(self) -> bool:
        """Save and end everything; whether all ended in time."""
        self._ending.set()  # live views close, so that the HTTP server need not wait for them
        self.http.stop_soon()
        ended = self.daemon.stop()
        self.http.stop()
        (Path(self.daemon.config.state) / "daemon.json").unlink(missing_ok=True)
        return ended


def serve(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> int:
    """Run until SIGTERM (0) or Ctrl-C (130); SIGHUP reloads. Raises ConfigError, OutputError before anything starts."""
    sys.setswitchinterval(_SWITCH)
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
    _listen(("SIGHUP",), arrived)  # before the file is read, which may change at once
    server = Server(path, overrides)
    _listen(_ENDING, arrived)
    numbers: set[int] = set()
    try:
        server.start()
        while not numbers & {signal.SIGTERM, signal.SIGINT}:
            if numbers:
                _reload(server)
            numbers = _next(arrived)
    finally:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))  # a second Ctrl-C does not wait
        server.stop()
    logging.shutdown()
    return INTERRUPTED if signal.SIGINT in numbers else 0


def _listen(names: Sequence[str], arrived: queue.SimpleQueue[int]) -> None:
    for name in names:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: arrived.put(number))


def _secrets(config: DaemonConfig) -> tuple[str, ...]:
    """What the log must never show."""
    given = (config.http.token, config.mqtt and config.mqtt.password)
    return tuple(one for one in given if one)


def _next(arrived: queue.SimpleQueue[int]) -> set[int]:
    """All signals that have come; waits in short steps, since a wait without end would hold the signals back."""
    numbers: set[int] = set()
    while not numbers or not arrived.empty():
        with contextlib.suppress(queue.Empty):
            numbers.add(arrived.get(timeout=0.5))
    return numbers


def _reload(server: Server) -> None:
    try:
        server.reload()
    except StreamdropError:
        return  # it is in the log; what was configured before goes on


def _http() -> tuple[Any, Any]:
    try:
        from streamdrop.service.http import app, server
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the daemon needs {error.name}, which is not installed: pip install 'streamdrop[daemon]'"
        ) from None
    return app, server
