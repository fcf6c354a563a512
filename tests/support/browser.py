"""The web page in a real browser: fixtures, and what its tests do most."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A new page with storage of its own, which may reach nothing but this machine and must not report an error."""
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Security Policy" in message.text else None)
    page.on("request", lambda request: problems.append(request.url) if "127.0.0.1" not in request.url else None)
    yield page
    page.close()
    assert not [problem for problem in problems if not problem.startswith(("data:", "blob:"))]


def open_page(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.get_by_label("Steps")).to_have_value("35", timeout=PATIENCE_MS)  # the model card is there


def the_video(page: Page) -> Any:
    """Length and width of the video on the screen, once the browser can play it."""
    player = page.locator("video")
    expect(player).to_be_visible(timeout=PATIENCE_MS)
    return player.evaluate(
        "async video => { while (!(video.duration > 0)) await new Promise(setTimeout); "
        "return [video.duration, video.videoWidth] }"
    )
