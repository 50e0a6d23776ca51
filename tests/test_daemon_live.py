"""A live source over the network that goes away and comes back: the stream reconnects and its target stays."""

from __future__ import annotations

import io
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import av
import pytest
from daemons import SECONDS, until
from small_tracker import SMALL

from streamdrop.service.settings import SessionSettings, load_daemon, tracker_settings
from streamdrop.service.share import Share, watch_rounds
from streamdrop.service.stream_session import StreamSession
from streamdrop.testing import moving_square

PERIOD = 1 / 20


def transport_stream() -> list[bytes]:
    """One circle of the scene as MPEG-TS, in pieces of about one frame each."""
    images, _ = moving_square(60)
    pieces: list[bytes] = []
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as container:
        stream = container.add_stream(
            "libx264", rate=20, options={"preset": "ultrafast", "tune": "zerolatency", "g": "5"}
        )
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for image in images * 4:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
            pieces.append(buffer.getvalue())
            buffer.seek(0)
            buffer.truncate()
    return pieces


class Camera:
    """An HTTP server that plays the scene without end, in time; ``off`` and ``on`` again at the same port."""

    def __init__(self) -> None:
        self.pieces = transport_stream()
        self.port = 0
        self.on()

    def on(self) -> None:
        self.stopping = stopping = threading.Event()
        pieces = self.pieces

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "video/mp2t")
                self.end_headers()
                for piece in pieces:
                    if stopping.wait(PERIOD):
                        return
                    try:
                        self.wfile.write(piece)
                    except OSError:
                        return

            def log_message(self, *_: Any) -> None:
                pass

        socketserver.ThreadingTCPServer.allow_reuse_address = True
        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def off(self) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def camera() -> Iterator[Camera]:
    one = Camera()
    yield one
    one.off()


@pytest.mark.slow
def test_a_source_that_comes_back_is_followed_again(camera, tmp_path):
    address = f"http://user:secret@127.0.0.1:{camera.port}/live.ts"
    stream = {"name": "s", "source": address, "box": [108.0, 48.0, 24.0, 24.0], "stale": 3.0}
    limits = {"retry_first": 0.05, "retry_most": 0.1}
    config = load_daemon({"state": str(tmp_path), "tracker": SMALL, "streams": [stream], "limits": limits})
    one, share = config.streams[0], Share(1)
    settings = SessionSettings(one, tracker_settings(config, one), config.outputs, config.limits)
    with watch_rounds(share):
        session = StreamSession(settings, tmp_path / "s", share)
        session.start()
        try:
            until(lambda: session.stats.counters.tracked >= 5, "tracked frames")
            assert session.signal.live
            camera.off()
            until(lambda: not session.signal.up and session.signal.error, "the loss of the signal")
            assert session.status()["state"] == "reconnecting"
            assert "secret" not in str(session.status())
            target = session.status()["target"]
            assert target is not None
            camera.on()
            until(lambda: session.signal.reconnects, "a connection again")
            before = session.stats.counters.tracked
            until(lambda: session.stats.counters.tracked >= before + 5, "tracked frames again")
            assert session.status()["error"] is None
        finally:
            session.stop()
            assert session.join(SECONDS)
    text = (tmp_path / "s" / "events.jsonl").read_text()
    assert '"event": "down"' in text
    assert text.count('"event": "target"') == 1
    assert "secret" not in text
