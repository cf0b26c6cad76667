"""Fixtures of the service's tests: the real tagger, loaded once, and applications around it."""

from collections.abc import AsyncIterator

import pytest

from model.tagger import Tagger
from tests.app.service import Service, serving


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tagger() -> Tagger:
    return Tagger.load(device="cpu")


@pytest.fixture(scope="module")
async def service(tagger: Tagger) -> AsyncIterator[Service]:
    """One for all tests of a module that leave it as it was; the others start their own."""
    async with serving(tagger, batch_segments=8) as running:
        yield running
