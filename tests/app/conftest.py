"""Fixtures of the service's tests: applications around the real tagger, and a browser."""

from collections.abc import AsyncIterator, Iterator

import pytest
from playwright.sync_api import Browser

from model.tagger import Tagger
from tests.app.browser import chromium
from tests.app.service import Service, serving


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
async def service(tagger: Tagger) -> AsyncIterator[Service]:
    """One for all tests of a module that leave it as it was; the others start their own."""
    async with serving(tagger, batch_segments=8) as running:
        yield running
