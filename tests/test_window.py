"""The live view: without a display it says what to do; the mouse draws a box in the frame's pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from streamdrop.boxes import Box
from streamdrop.errors import StreamdropError
from streamdrop.streams import Window, window


@pytest.mark.parametrize("display", [None, "", ":9734", "nonsense", "127.0.0.1:9"])
def test_no_display_is_said_before_a_window_is_tried(display: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    if display is not None:
        monkeypatch.setenv("DISPLAY", display)
    with pytest.raises(StreamdropError, match="give --box x,y,w,h"):
        Window()


class Screen:
    """Stands in for OpenCV's window: a script of mouse events and keys, one step per picture shown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, object]]) -> None:
        self.steps, self.mouse, self.shown, self.open = steps, None, [], True
        monkeypatch.setattr(window, "require_display", lambda: None)
        monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
        monkeypatch.setattr(cv2, "imshow", lambda _, image: self.shown.append(image))
        monkeypatch.setattr(cv2, "setMouseCallback", lambda _, call: setattr(self, "mouse", call))
        monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: float(self.open))
        monkeypatch.setattr(cv2, "destroyWindow", lambda *_: setattr(self, "open", False))
        monkeypatch.setattr(cv2, "waitKey", self.wait)

    def wait(self, _: int) -> int:
        if self.mouse is None or not self.steps:
            return 255
        kind, value = self.steps.pop(0)
        if kind == "key":
            return int(value)  # type: ignore[call-overload]
        if kind == "shut":
            self.open = False
            return 255
        events = {"down": cv2.EVENT_LBUTTONDOWN, "move": cv2.EVENT_MOUSEMOVE, "up": cv2.EVENT_LBUTTONUP}
        x, y = value  # type: ignore[misc]
        self.mouse(events[kind], x, y, cv2.EVENT_FLAG_LBUTTON if kind == "move" else 0, None)
        return 255


FRAME = np.zeros((120, 160, 3), np.uint8)
DRAG = [("down", (100, 90)), ("move", (60, 50)), ("up", (40, 30))]
ENTER, ESCAPE = ("key", 13), ("key", 27)


@pytest.mark.parametrize(
    ("steps", "box"),
    [
        ([*DRAG, ENTER], Box(40, 30, 60, 60)),
        ([("down", (5, 5)), ("up", (6, 6)), ENTER, *DRAG, ("key", 32)], Box(40, 30, 60, 60)),
        ([("down", (150, 100)), ("up", (400, -20)), ENTER], Box(150, 0, 10, 100)),
        ([*DRAG, ESCAPE], None),
        ([*DRAG, ("key", ord("c"))], None),
        ([*DRAG, ("shut", None)], None),
        ([ENTER, ESCAPE], None),
    ],
)
def test_a_box_is_dragged_and_confirmed(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, object]], box: Box | None
) -> None:
    Screen(monkeypatch, list(steps))
    with Window() as view:
        assert view.select(FRAME) == box


def test_a_large_frame_is_shown_smaller_and_the_box_is_in_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch, [*DRAG, ENTER])
    assert Window().select(np.zeros((1440, 2560, 3), np.uint8)) == Box(80, 60, 120, 120)
    assert screen.shown[0].shape == (720, 1280, 3)


def test_q_stops_a_run_and_so_does_closing_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch, [("key", ord("x")), ("key", ord("q"))])
    screen.mouse = print
    view = Window()
    assert view.show(FRAME)
    assert not view.show(FRAME)
    screen.open = False
    assert not view.show(FRAME)
    view.close()
    view.close()
