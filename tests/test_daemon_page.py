"""The page in a real browser: a box is drawn on a running stream and tracked, on a desk and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import SECONDS, make_scene, until
from small_tracker import SMALL

from streamdrop.service.daemon import Daemon
from streamdrop.service.http.app import make_app
from streamdrop.service.http.server import HttpServer
from streamdrop.service.settings import load_daemon

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="the page is not tested: pip install '.[browser]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="the page is not tested: install the package chromium"),
]
TOKEN = "a token of the tests/=+"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A daemon with a token and one stream without a target."""
    root = tmp_path_factory.mktemp("page")
    boxes = make_scene(root / "scene")
    config = load_daemon(
        {
            "state": str(root / "run"),
            "http": {"port": 0, "token": TOKEN},
            "tracker": SMALL,
            "streams": [{"name": "scene", "source": str(root / "scene"), "fps": 12, "loop": True}],
        }
    )
    daemon, ending = Daemon(config), []
    server = HttpServer(make_app(daemon, lambda: {}, lambda: bool(ending)), config.http)
    server.start()
    daemon.start()
    until(lambda: daemon.get("scene").status()["state"] == "waiting", "a stream that waits")
    yield server.address, daemon.get("scene"), boxes
    ending.append(True)
    assert daemon.stop(SECONDS)
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    quiet = ["--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield one
        one.close()


@pytest.fixture
def page(browser: Any, served: Any) -> Iterator[Any]:
    """The stream's page, the token given; no script fails while it is open."""
    one, failures = browser.new_page(viewport={"width": 1200, "height": 860}), []
    one.on("pageerror", lambda error: failures.append(error))
    one.goto(served[0])
    one.fill("#token", TOKEN)
    one.keyboard.press("Enter")
    one.click("text=scene")
    comes(one, "seen.picture !== null")
    yield one
    assert not failures
    one.close()


def comes(page: Any, expression: str) -> None:
    """Wait for a script's expression to be true; the page's own policy forbids the driver's way of waiting."""
    until(lambda: page.evaluate(f"!!({expression})"), expression)


def draw(page: Any, boxes: list[list[float]]) -> int:
    """Drag a box around the square on the picture that is shown; returns the frame's number."""
    place = page.locator("#view").bounding_box()
    scale = place["width"] / page.evaluate("view.width")
    to = lambda x, y: (place["x"] + x * scale, place["y"] + y * scale)  # noqa: E731
    page.mouse.move(*to(1, 1))
    page.mouse.down()  # the picture stands still from here on
    frame = int(page.evaluate("draft.frame"))
    x, y, w, h = boxes[frame % 60]
    page.evaluate("([x, y]) => { draft.from = [x, y]; }", [x, y])
    page.mouse.move(*to(x + w, y + h))
    page.mouse.up()
    return frame


def test_a_box_is_drawn_tracked_reloaded_redrawn_and_paused(page, served, tmp_path):
    _, session, boxes = served
    frame = draw(page, boxes)
    comes(page, "['tracking', 'uncertain'].includes(document.querySelector('#state')?.textContent)")
    until(lambda: len(session.stats.rounds(100)) >= 5, "rounds")
    assert session.stats.frames(1500)[0]["frame"] == frame
    comes(page, "seen.frames.length > 3 && seen.rounds.length > 3")
    comes(page, "document.querySelectorAll('#layers .dropped').length > 0")
    assert page.locator("#events li").count() >= 3
    page.screenshot(path=tmp_path / "tracked.png")

    page.reload()
    comes(page, "seen.frames.length > 3 && seen.picture?.target")
    assert page.evaluate("seen.sockets.length") == 2
    before = session.stats.counters.rounds
    again = draw(page, boxes)
    assert again > frame
    until(lambda: session.stats.counters.rounds > before + 2, "rounds of the redrawn target")

    page.click("#pause")
    comes(page, "document.querySelector('#state').textContent === 'paused'")
    assert session.status()["paused"]
    page.keyboard.press("p")
    comes(page, "document.querySelector('#state').textContent !== 'paused'")
    page.keyboard.press("c")
    comes(page, "document.querySelector('#state').textContent === 'waiting'")


def test_a_box_is_drawn_with_the_keyboard(page, served):
    _, session, _ = served
    page.keyboard.press("b")
    for key in ("ArrowLeft", "ArrowUp", "Shift+ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
    box = page.evaluate("draft.box")
    page.keyboard.press("Enter")
    comes(page, "seen.head.target !== null")
    learned = lambda: [e for e in session.stats.frames(1500) if e["box"] == pytest.approx(box, abs=0.01)]  # noqa: E731
    until(learned, "the box that was drawn")
    page.keyboard.press("Escape")
    comes(page, "location.hash === ''")


def test_it_fits_a_phone_and_takes_a_finger(browser, served, tmp_path):
    address, session, _ = served
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark")
    page = context.new_page()
    page.goto(f"{address}/#scene")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    comes(page, "seen.picture !== null")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert all(b["height"] >= 36 for b in (one.bounding_box() for one in page.locator(".tools button").all()))
    before = session.stats.counters.rounds
    page.tap("#draw")
    place = page.locator("#view").bounding_box()
    middle = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}
    for kind, offset in (("pointerdown", -40), ("pointermove", 30), ("pointerup", 30)):
        page.dispatch_event(
            "#view",
            kind,
            {
                "pointerId": 1,
                "pointerType": "touch",
                "isPrimary": True,
                "clientX": middle["x"] + offset,
                "clientY": middle["y"] + offset,
            },
        )
    until(lambda: session.stats.counters.rounds > before, "a round")
    page.screenshot(path=Path(tmp_path) / "phone.png", full_page=True)
    context.close()


def test_several_targets_are_drawn_chosen_and_let_go(page, served, tmp_path):
    _, session, boxes = served
    draw(page, boxes)
    comes(page, "seen.head?.targets?.length === 1 && !document.querySelector('#add').disabled")
    first = page.evaluate("seen.head.targets[0].id")
    page.keyboard.press("a")
    assert page.evaluate("draft.more")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    comes(page, "document.querySelectorAll('#targets button').length === 2")
    second = page.evaluate("seen.pick")
    assert second != first
    assert [one["id"] for one in session.status()["targets"]] == [first, second]
    page.screenshot(path=tmp_path / "two.png")
    page.keyboard.press(str(first)) if first < 10 else page.click(f"#targets button[data-id='{first}']")
    comes(page, f"document.querySelector('#targets button[aria-pressed=true]')?.dataset.id === '{first}'")
    comes(page, f"own(seen.frames).length && own(seen.frames).every(e => e.target === {first})")
    page.click(f"#targets button[data-id='{second}']")
    page.keyboard.press("c")
    comes(page, "seen.head.targets.length === 1")
    assert [one["id"] for one in session.status()["targets"]] == [first]
    page.keyboard.press("c")
    comes(page, "document.querySelector('#state').textContent === 'waiting'")
