"""The documentation as a person uses it: in Chromium, with the network cut off, tried with a real clip."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.app.browser import SCREENSHOTS, Tab, new_tab
from tests.app.service import Process, server_process

CLIP = Path(__file__).parents[1] / "clips" / "sung_pop.opus"
METHODS = {"get", "post", "put", "patch", "delete", "head", "options", "trace"}


@pytest.fixture(scope="module")
def server(browser: Browser) -> Iterator[Process]:  # noqa: ARG001 - no server without a browser
    with server_process() as process:
        yield process


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    with new_tab(browser, viewport={"width": 1280, "height": 1600}) as opened:
        yield opened


def operations(server: Process) -> list[tuple[str, str]]:
    """What the service says it can do: (method, path)."""
    paths: dict[str, dict[str, Any]] = server.get("/openapi.json").json()["paths"]
    return [(method, path) for path, items in paths.items() for method in items if method in METHODS]


def test_every_operation_is_shown(server: Process, tab: Tab) -> None:
    page = tab.page
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
    assert tab.outside == []


def test_try_it_out_tags_a_real_clip(server: Process, tab: Tab) -> None:
    page = tab.page
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
    assert tab.outside == []


def test_redoc_is_whole_without_a_network(server: Process, tab: Tab) -> None:
    page = tab.page
    asked: list[str] = []  # before the page's policy refuses anything
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/redoc")

    expect(page.get_by_role("heading", name="Tag one clip").first).to_be_visible()
    assert tab.outside == []
    assert [url for url in asked if not url.startswith((server.url, "data:", "blob:"))] == []
