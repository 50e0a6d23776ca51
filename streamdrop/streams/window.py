"""The live view: a window in which the target is drawn with the mouse and the track is shown."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import numpy as np

from streamdrop.boxes import Box
from streamdrop.errors import StreamdropError
from streamdrop.streams.shrinking import scale_to_fit, scaled
from streamdrop.types import Image

if TYPE_CHECKING:
    from types import TracebackType

CONFIRM = frozenset({13, 32})
"""Enter, Space."""
CANCEL = frozenset({27, ord("c"), ord("q")})
SMALLEST = 3
"""Pixels per side below which a drag counts as a slip of the hand."""
LARGEST = (1280, 720)
"""Width and height above which pictures are shown smaller, so that they fit a screen."""


class Window:
    """One window, opened on the first picture. Enter or Space confirms a box, Esc or c cancels, q stops a run."""

    def __init__(self, title: str = "streamdrop") -> None:
        """Raises StreamdropError when there is no display, before the window library can end the process."""
        require_display()
        self.title = title
        self._open = False
        self._anchor: tuple[int, int] | None = None
        self._corner: tuple[int, int] | None = None

    def show(self, image: Image) -> bool:
        """Shows a frame, uint8 H×W×3 RGB; False once the user pressed q or Esc, or closed the window."""

        if self._open and self._gone():
            return False
        key = self._draw(scaled(image, scale_to_fit(image, LARGEST)), wait=1)
        return key not in (27, ord("q"))

    def select(self, image: Image) -> Box | None:
        """The box that the user drags on ``image`` and confirms; None when cancelled or the window was closed."""
        import cv2

        scale = scale_to_fit(image, LARGEST)
        picture = scaled(image, scale)
        self._draw(picture, wait=1)
        cv2.setMouseCallback(self.title, self._mouse)
        self._anchor = self._corner = None
        try:
            while not self._gone():
                key = self._draw(self._with_hint(picture), wait=15)
                box = self._box(picture.shape[1], picture.shape[0])
                if key in CONFIRM and box is not None:
                    return Box(*(value / scale for value in box))
                if key in CANCEL:
                    return None
            return None
        finally:
            if not self._gone():
                cv2.setMouseCallback(self.title, lambda *_: None)

    def _draw(self, image: Image, wait: int) -> int:
        import cv2

        if not self._open:
            # Qt, inside OpenCV's wheel, complains about its fonts on every window; whoever asks for its log keeps it.
            os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")
            cv2.namedWindow(self.title, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
            self._open = True
        cv2.imshow(self.title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return cv2.waitKey(wait) & 0xFF

    def _gone(self) -> bool:
        import cv2

        return self._open and cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) < 1

    def _mouse(self, event: int, x: int, y: int, flags: int, _: object) -> None:
        import cv2

        if event == cv2.EVENT_LBUTTONDOWN:
            self._anchor = self._corner = (x, y)
        elif self._anchor is not None and (event == cv2.EVENT_LBUTTONUP or flags & cv2.EVENT_FLAG_LBUTTON):
            self._corner = (x, y)

    def _box(self, width: int, height: int) -> Box | None:
        """What was dragged, cut to the frame; None while it is too small to be meant."""
        if self._anchor is None or self._corner is None:
            return None
        (x0, x1), (y0, y1) = (sorted(pair) for pair in zip(self._anchor, self._corner, strict=True))
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        if x1 - x0 < SMALLEST or y1 - y0 < SMALLEST:
            return None
        return Box(float(x0), float(y0), float(x1 - x0), float(y1 - y0))

    def _with_hint(self, image: Image) -> Image:
        import cv2

        from streamdrop.streams.annotate import SURE, caption

        canvas = np.array(image)
        if self._anchor is not None and self._corner is not None:
            cv2.rectangle(canvas, self._anchor, self._corner, SURE, 2, cv2.LINE_AA)
        caption(canvas, "drag a box around the target   Enter: start   Esc: cancel")
        return canvas

    def close(self) -> None:
        """Closes the window. Idempotent."""
        import cv2

        if self._open and not self._gone():
            cv2.destroyWindow(self.title)
            cv2.waitKey(1)
        self._open = False

    def __enter__(self) -> Window:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def require_display() -> None:
    """Raises StreamdropError when no window can be opened here: without display, or OpenCV without windows.

    Checked beforehand because the window library ends the process, not the call, when it finds no display.
    """
    import cv2

    gui = next((line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")), "")
    if "NONE" in gui.upper():
        raise StreamdropError(
            "no window: this OpenCV is built without windows (opencv-python-headless): "
            "install opencv-python, or give --box x,y,w,h and leave out --show"
        )
    if sys.platform.startswith("linux") and not display_answers():
        raise StreamdropError("no display: give --box x,y,w,h and leave out --show")


def display_answers() -> bool:
    """Whether the X display that DISPLAY names accepts connections; a Wayland one reaches Qt through its X server."""
    import socket
    from pathlib import Path

    name = os.environ.get("DISPLAY", "")
    if not name:
        return False
    host, _, rest = name.rpartition(":")
    number = rest.split(".")[0]
    if not number.isdecimal():
        return False
    if host in ("", "unix"):
        path = f"/tmp/.X11-unix/X{number}"
        return any(_connects(socket.AF_UNIX, address) for address in (path, "\0" + path))
    if Path(name).exists():  # macOS hands out the path of a socket
        return True
    return _connects(socket.AF_INET, (host, 6000 + int(number)))


def _connects(family: int, address: str | tuple[str, int]) -> bool:
    import socket

    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(address)
        except OSError:
            return False
    return True
