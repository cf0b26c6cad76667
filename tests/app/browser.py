"""Chromium with the network cut off, for tests that use the documentation and the page as a person does."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

from tests.app.service import PATIENCE_S

SCREENSHOTS = Path(__file__).parents[2] / "artifacts"
CHROMIUM = shutil.which("chromium")
ELSEWHERE = "tagger.example"
"""This machine, as if it were another one."""
# Root may only run it without its sandbox; the rest keeps it from calling its maker at every start, and gives
# it a microphone that beeps.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


@dataclass
class Tab:
    """A page, and what it did that a user does not see."""

    page: Page
    outside: list[str] = field(default_factory=list)
    """Addresses that it asked for and that are not this machine's."""
    errors: list[str] = field(default_factory=list)
    """What it complained of in the console, and exceptions that nobody caught."""

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE_S * 1000)
        self.page.route("http**/*", self._only_from_here)
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def screenshot(self, name: str) -> None:
        """Keep a picture of the whole page for people to look at."""
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    def _only_from_here(self, route: Route) -> None:
        if urlsplit(route.request.url).hostname in ("127.0.0.1", ELSEWHERE):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser; skip the test where there is none, unless this is CI."""
    if CHROMIUM is None and os.environ.get("CI") == "true":
        pytest.fail("Chromium is missing, and CI must not do without it: .ci/run installs it")
    if CHROMIUM is None:
        pytest.skip("Chromium is missing: run 'apt-get install chromium' to test in a browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def new_tab(browser: Browser, **options: Any) -> Iterator[Tab]:  # noqa: ANN401 - Playwright's own
    """Open a page of its own, which remembers nothing of others."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
    yield Tab(context.new_page())
    context.close()
