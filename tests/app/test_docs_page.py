"""The documentation as a person uses it: in Chromium, with the network cut off, tried with a real clip."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Route, expect, sync_playwright

from tests.app.service import PATIENCE_S, Process, server_process

CLIP = Path(__file__).parents[1] / "clips" / "sung_pop.opus"
SCREENSHOTS = Path(__file__).parents[2] / "artifacts"
CHROMIUM = shutil.which("chromium")
METHODS = {"get", "post", "put", "patch", "delete", "head", "options", "trace"}
# Root may only run it without its sandbox; the rest keeps it from calling its maker at every start.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module", autouse=True)
def _chromium() -> None:
    if CHROMIUM is None and os.environ.get("CI") == "true":
        pytest.fail("Chromium is missing, and CI must not do without it: .ci/run installs it")
    if CHROMIUM is None:
        pytest.skip(
            "Chromium is missing: run 'apt-get install chromium' to test the documentation in a browser"
        )


@pytest.fixture(scope="module")
def server(_chromium: None) -> Iterator[Process]:
    with server_process() as process:
        yield process


@pytest.fixture
def outside() -> list[str]:
    """Addresses that the page asked for and that are not this machine's."""
    return []


@pytest.fixture
def page(_chromium: None, outside: list[str]) -> Iterator[Page]:
    def only_from_here(route: Route) -> None:
        if urlsplit(route.request.url).hostname == "127.0.0.1":
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 1600})
        page.set_default_timeout(PATIENCE_S * 1000)
        page.route("http**/*", only_from_here)
        yield page
        browser.close()


def operations(server: Process) -> list[tuple[str, str]]:
    """What the service says it can do: (method, path)."""
    paths: dict[str, dict[str, Any]] = server.get("/openapi.json").json()["paths"]
    return [(method, path) for path, items in paths.items() for method in items if method in METHODS]


def test_every_operation_is_shown(server: Process, page: Page, outside: list[str]) -> None:
    page.goto(f"{server.url}/docs")

    expect(page.locator(".opblock")).to_have_count(len(operations(server)))
    shown = [
        (
            block.locator(".opblock-summary-method").inner_text().lower(),
            str(block.locator(".opblock-summary-path").get_attribute("data-path")),
        )
        for block in page.locator(".opblock").all()
    ]
    assert sorted(shown) == sorted(operations(server))
    assert outside == []


def test_try_it_out_tags_a_real_clip(server: Process, page: Page, outside: list[str]) -> None:
    page.goto(f"{server.url}/docs")
    operation = page.locator(".opblock", has=page.locator('[data-path="/v1/tags"]'))
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.locator('input[type="file"]').set_input_files(CLIP)

    with page.expect_response("**/v1/tags*") as answer:
        operation.get_by_role("button", name="Execute", exact=True).click()

    assert answer.value.status == 200
    status = operation.locator(".live-responses-table tbody .response-col_status")
    expect(status).to_contain_text("200")
    expect(operation.locator(".live-responses-table")).to_contain_text('"vocal"')
    SCREENSHOTS.mkdir(exist_ok=True)
    operation.locator(".live-responses-table").screenshot(path=SCREENSHOTS / "docs-try-it-out.png")
    assert outside == []


def test_redoc_is_whole_without_a_network(server: Process, page: Page, outside: list[str]) -> None:
    page.goto(f"{server.url}/redoc")

    expect(page.get_by_role("heading", name="Tag one clip").first).to_be_visible()
    assert outside == []
