"""The HTTP server: uvicorn in a thread of its own, so that signals stay with the daemon."""

from __future__ import annotations

import socket
import threading
import time
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from streamdrop.errors import OutputError
from streamdrop.service.http.connections import Http, WebSocket
from streamdrop.service.settings import HttpConfig

_LISTENING = 10.0  # seconds within which it answers
_CLOSING = 1  # seconds that open requests have at the end


class HttpServer:
    """Serves ``app`` from ``start`` to ``stop``. Raises OutputError where the address cannot be had."""

    def __init__(self, app: ASGIApp, config: HttpConfig) -> None:
        self._socket = _bound(config)
        self.port = int(self._socket.getsockname()[1])
        host = f"[{config.host}]" if ":" in config.host else config.host
        self.address = f"http://{host}:{self.port}"
        http: Any = partial(Http, limits=config)
        web_socket: Any = partial(WebSocket, limits=config)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="auto",  # uvloop where it is installed
                http=http,
                ws=web_socket,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=_CLOSING,
                timeout_keep_alive=15,
                ws_per_message_deflate=False,  # JPEG does not shrink, and each client would cost a compressor
                ws_max_size=config.max_body,
                ws_ping_interval=20.0,
                ws_ping_timeout=20.0,
            )
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        deadline = time.monotonic() + _LISTENING
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise OutputError(f"{self.address}: the server does not start: see the log")
            time.sleep(0.01)

    def stop_soon(self) -> None:
        """Take no more requests; those that are open go on for a moment."""
        self._server.should_exit = True

    def stop(self) -> None:
        """Answer what is open, then end."""
        self.stop_soon()
        self._thread.join(_CLOSING + 1.0)
        self._socket.close()


def _bound(config: HttpConfig) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, min(int(config.client_kb * 1024), 2**30))
        listening.bind(address)
        listening.listen(256)
    except OSError as error:
        why = error.strerror or str(error)
        raise OutputError(f"http: {config.host}:{config.port}: cannot be had ({why}): choose another port") from None
    return listening
