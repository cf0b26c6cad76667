"""Health tells the truth: while warming, draining, after a death, and when work is stuck."""

import asyncio
import ctypes
import threading
from typing import cast

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from app.state import State
from model.bundle import BundleError
from model.tagger import Tagger
from tests.app.service import HeldTagger, Service, check_problem, scores, serving, tune, until

pytestmark = pytest.mark.anyio


def kill_worker(service: Service) -> None:
    """Raise SystemExit inside the running worker thread: it dies wherever it is."""
    ident = service.state.pipeline.batcher.worker_id
    assert ident is not None
    assert (
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(SystemExit)) == 1
    )


async def test_live_and_ready(service: Service) -> None:
    assert (await service.client.get("/health/live")).json() == {"status": "live"}
    assert (await service.client.get("/health/ready")).json() == {"status": "ready"}
    assert service.metric("music_tagger_ready") == 1


@pytest.mark.parametrize("path", ["/", "/health/live", "/health/ready"])
async def test_monitors_may_ask_for_the_head_alone(service: Service, path: str) -> None:
    assert (await service.client.head(path)).status_code == 200


async def test_not_ready_until_the_model_answered_the_warm_up(tagger: Tagger) -> None:
    held = HeldTagger(tagger)
    held.hold()
    app = create_app(Settings(), tagger=cast(Tagger, held))
    state: State = app.state.tagger_service
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        await held.wait_until_entered()
        check_problem(await client.get("/health/ready"), 503, "not-ready")
        refused = await client.post("/v1/tags", content=tune(2))
        check_problem(refused, 503, "not-ready")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await client.get("/health/live")).status_code == 200

        held.free.set()

        await until(lambda: state.warm)
        assert (await client.get("/health/ready")).status_code == 200


async def test_a_model_that_fails_the_warm_up_ends_the_service(tagger: Tagger) -> None:
    held, failed = HeldTagger(tagger), threading.Event()
    held.failure = RuntimeError("the device is broken")
    app = create_app(Settings(), tagger=cast(Tagger, held), on_failure=failed.set)
    async with app.router.lifespan_context(app):
        assert await asyncio.to_thread(failed.wait, 10)


async def test_missing_weights_stop_the_start(tmp_path_factory: pytest.TempPathFactory) -> None:
    app = create_app(Settings(weights=tmp_path_factory.mktemp("empty")))

    with pytest.raises(BundleError):
        async with app.router.lifespan_context(app):
            pass


async def test_draining_takes_no_new_work(tagger: Tagger) -> None:
    async with serving(tagger) as service:
        service.state.draining = True

        check_problem(await service.client.get("/health/ready"), 503, "draining")
        refused = await service.tag(tune(2))
        check_problem(refused, 503, "draining")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await service.client.get("/health/live")).status_code == 200


async def test_stuck_work_makes_it_unready(tagger: Tagger) -> None:
    async with serving(tagger, max_wait_s=0.05) as service:
        service.tagger.hold()
        answering = asyncio.create_task(service.tag(tune(5)))
        await service.tagger.wait_until_entered()
        await asyncio.sleep(0.1)

        problem = check_problem(await service.client.get("/health/ready"), 503, "not-ready")

        assert "waited" in problem["detail"]
        service.tagger.free.set()
        assert scores(await answering)
        await until(lambda: service.metric("music_tagger_ready") == 1)
        assert (await service.client.get("/health/ready")).status_code == 200


async def test_a_dead_worker_fails_only_its_batch_and_is_replaced(tagger: Tagger) -> None:
    async with serving(tagger, batch_segments=1) as service:
        service.tagger.hold()
        in_the_batch = asyncio.create_task(service.tag(tune(3, 110.0)))
        await service.tagger.wait_until_entered()
        behind_it = asyncio.create_task(service.tag(tune(3, 330.0)))
        await until(lambda: service.state.pipeline.batcher.depth == 1)

        kill_worker(service)

        check_problem(await in_the_batch, 500, "batch-failed")
        service.tagger.free.set()
        assert scores(await behind_it)
        assert service.metric("music_tagger_workers_alive") == 1
        assert (await service.client.get("/health/ready")).status_code == 200
        assert not service.failed.is_set()


async def test_after_repeated_deaths_it_is_unready_and_asks_to_be_replaced(tagger: Tagger) -> None:
    async with serving(tagger, max_worker_deaths=2) as service:
        service.tagger.hold()
        for _ in range(2):
            answering = asyncio.create_task(service.tag(tune(3)))
            await service.tagger.wait_until_entered()
            kill_worker(service)
            check_problem(await answering, 500, "batch-failed")

        assert await asyncio.to_thread(service.failed.wait, 10)
        check_problem(await service.client.get("/health/ready"), 503, "not-ready")
        await until(lambda: service.metric("music_tagger_workers_alive") == 0)
        check_problem(await service.tag(tune(2)), 503, "not-ready")


async def test_a_worker_that_dies_without_a_replacement_ends_the_service(
    tagger: Tagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tagger) as service:
        monkeypatch.setattr(service.state.pipeline.batcher, "start", lambda: None)
        service.tagger.hold()
        answering = asyncio.create_task(service.tag(tune(3)))
        await service.tagger.wait_until_entered()

        kill_worker(service)

        check_problem(await answering, 500, "batch-failed")
        assert await asyncio.to_thread(service.failed.wait, 10)
