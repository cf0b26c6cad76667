"""What is let in: keys, bytes, pace, room, deadlines, and clients that go away."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message

from app.admission import AHEAD_BYTES, LINGER_S
from model.tagger import Tagger
from tests.app.service import RawRequest, Service, check_problem, scores, serving, tune, until

pytestmark = pytest.mark.anyio
MB = 1_000_000


async def chunked(total: int, taken: list[int]) -> AsyncIterator[bytes]:
    """A body of unknown length, that notes how much of it was asked for."""
    for _ in range(0, total, 10_000):
        taken.append(10_000)
        yield b"\0" * 10_000


# Keys


async def test_without_keys_everyone_may_enter(service: Service) -> None:
    assert scores(await service.tag(tune(2)))


@pytest.mark.parametrize(
    ("header", "status", "slug"),
    [
        (None, 401, "key-missing"),
        ("Basic c2VjcmV0", 401, "key-missing"),
        ("Bearer ", 401, "key-missing"),
        ("Bearer wrong", 403, "key-wrong"),
        ("Bearer first,second", 403, "key-wrong"),
    ],
)
async def test_a_key_is_judged_before_a_byte_of_the_body_is_read(
    tagger: Tagger, header: str | None, status: int, slug: str
) -> None:
    async with serving(tagger, api_keys="first, second") as service:
        request = RawRequest(service.app, {"Authorization": header} if header else {})
        answering = asyncio.create_task(request.run())
        await until(lambda: request.response() is not None and len(request.outgoing) > 1)
        assert request.pieces_taken == 0

        request.feed(tune(2), more=False)

        response = await answering
        assert response is not None
        check_problem(response, status, slug)


@pytest.mark.parametrize("key", ["first", "second"])
async def test_each_key_opens(tagger: Tagger, key: str) -> None:
    async with serving(tagger, api_keys="first,second") as service:
        assert scores(await service.tag(tune(2), headers={"Authorization": f"Bearer {key}"}))


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", "/docs", "/redoc", "/openapi.json", "/", "/problems"]
)
async def test_health_and_documentation_stay_open(tagger: Tagger, path: str) -> None:
    async with serving(tagger, api_keys="first") as service:
        assert (await service.client.get(path)).status_code in (200, 307)


@pytest.mark.parametrize("path", ["/v1/model", "/metrics", "/anything/else", "//health/live"])
async def test_all_else_is_closed(tagger: Tagger, path: str) -> None:
    async with serving(tagger, api_keys="first") as service:
        check_problem(await service.client.get(f"http://test{path}"), 401, "key-missing")


# Bytes


async def test_a_declared_size_over_the_limit_is_refused_unread(tagger: Tagger) -> None:
    async with serving(tagger, max_upload_mb=0.1) as service:
        request = RawRequest(service.app, {"Content-Length": str(MB)})
        answering = asyncio.create_task(request.run())
        await until(lambda: len(request.outgoing) > 1)
        assert request.pieces_taken == 0
        request.feed(b"", more=False)
        response = await answering
        assert response is not None
        check_problem(response, 413, "too-many-bytes")


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "10"}], ids=["no length", "a lying length"])
async def test_bytes_are_counted_as_they_arrive(tagger: Tagger, headers: dict[str, str]) -> None:
    async with serving(tagger, max_upload_mb=0.1) as service:
        request = RawRequest(service.app, headers)
        answering = asyncio.create_task(request.run())
        for _ in range(10):
            request.feed(b"\0" * 10_000, more=True)
        await until(lambda: request.pieces_taken == 10)
        assert request.response() is None

        request.feed(b"\0", more=True)

        await until(lambda: len(request.outgoing) > 1)
        request.vanish()
        response = await answering
        assert response is not None
        check_problem(response, 413, "too-many-bytes")
        assert response.headers["connection"] == "close"


async def test_a_form_is_counted_the_same_way(tagger: Tagger) -> None:
    async with serving(tagger, max_upload_mb=0.1) as service:
        form = await service.client.post("/v1/tags", files={"file": ("a.wav", tune(10), "audio/wav")})
        check_problem(form, 413, "too-many-bytes")
        assert scores(await service.tag(tune(2)))


async def test_bytes_in_flight_are_bounded_and_given_back(tagger: Tagger) -> None:
    async with serving(tagger, max_upload_mb=1, max_inflight_mb=1) as service:
        first = RawRequest(service.app, {"Content-Length": "950000"})
        answering = asyncio.create_task(first.run())
        await until(lambda: service.state.inflight_bytes == 950_000)

        second = await service.tag(tune(2))

        check_problem(second, 429, "bytes-full")
        assert int(second.headers["retry-after"]) >= 1
        first.vanish()
        assert await answering is None
        assert service.state.inflight_bytes == 0
        assert scores(await service.tag(tune(2)))


async def test_of_a_declared_size_only_what_comes_next_is_held(tagger: Tagger) -> None:
    async with serving(tagger, max_upload_mb=9, max_inflight_mb=10) as service:
        slow = RawRequest(service.app, {"Content-Length": "9000000"})
        answering = asyncio.create_task(slow.run())
        await until(lambda: service.state.inflight_bytes == AHEAD_BYTES)

        assert scores(await service.tag(tune(100)))  # 3.2 MB, beside 9 that were only announced

        slow.feed(b"\0" * 3_000_000, more=True)
        await until(lambda: service.state.inflight_bytes == 3_000_000 + AHEAD_BYTES)
        slow.feed(b"\0" * 4_000_000, more=True)
        await until(lambda: service.state.inflight_bytes == 9_000_000)
        slow.vanish()
        assert await answering is None
        assert service.state.inflight_bytes == 0


async def test_uploads_that_outgrow_the_common_budget_are_refused_when_they_do(tagger: Tagger) -> None:
    async with serving(tagger, max_upload_mb=9, max_inflight_mb=10) as service:
        uploads = [RawRequest(service.app, {"Content-Length": "6000000"}) for _ in range(2)]
        answering = [asyncio.create_task(upload.run()) for upload in uploads]
        await until(lambda: service.state.inflight_bytes == 2 * AHEAD_BYTES)
        uploads[0].feed(b"\0" * 5_500_000, more=True)
        await until(lambda: service.state.inflight_bytes == 6_000_000 + AHEAD_BYTES)

        uploads[1].feed(b"\0" * 4_000_000, more=True)
        uploads[1].feed(b"\0", more=True)

        await until(lambda: len(uploads[1].outgoing) > 1)
        for upload in uploads:
            upload.vanish()
        first, second = await asyncio.gather(*answering)
        assert first is None
        assert second is not None
        check_problem(second, 429, "bytes-full")
        assert service.state.inflight_bytes == 0


async def test_the_bytes_are_given_back_though_the_answer_is_not_taken(tagger: Tagger) -> None:
    class Unread(RawRequest):
        taken = asyncio.Event()

        async def _send(self, message: Message) -> None:
            await self.taken.wait()
            await super()._send(message)

    async with serving(tagger) as service:
        request = Unread(service.app, {"Content-Length": "100000"})
        answering = asyncio.create_task(request.run())
        await until(lambda: service.state.inflight_bytes == 100_000)

        request.feed(b"\0" * 100_000, more=False)

        await until(lambda: service.state.inflight_bytes == 0)
        assert not answering.done()
        request.taken.set()
        response = await answering
        assert response is not None
        check_problem(response, 415, "not-audio")


async def test_a_long_song_counts_whole_as_soon_as_its_length_is_known(tagger: Tagger) -> None:
    async with serving(tagger, clip_segments=4) as service:
        assert scores(await service.tag(tune(20)))  # tells the rate
        service.tagger.hold()
        song = asyncio.create_task(service.tag(tune(600)))
        part = asyncio.create_task(
            service.client.post("/v1/tags?start_s=300&duration_s=50", content=tune(600))
        )

        batcher = service.state.pipeline.batcher
        await until(lambda: batcher.expected == 600 / 5 + 50 / 5)

        late = await service.tag(tune(3), headers={"X-Request-Timeout": f"{batcher.backlog_s():.3f}"})
        check_problem(late, 429, "queue-full")
        assert int(late.headers["retry-after"]) >= batcher.backlog_s()
        service.tagger.free.set()
        assert scores(await song)
        assert scores(await part)
        assert batcher.expected == 0


# Pace


async def test_a_stalled_body_is_given_up(tagger: Tagger) -> None:
    async with serving(tagger, upload_idle_s=0.1) as service:
        request = RawRequest(service.app)
        request.feed(tune(2)[:1000], more=True)
        answering = asyncio.create_task(request.run())
        await until(lambda: len(request.outgoing) > 1)
        request.vanish()
        response = await answering
        assert response is not None
        assert "0.1 s" in check_problem(response, 408, "slow-body")["detail"]


async def test_a_trickling_body_is_given_up(tagger: Tagger) -> None:
    async with serving(tagger, upload_timeout_s=0.3) as service:

        async def trickle() -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0.02)
                yield b"\0"

        started = time.monotonic()
        response = await service.client.post("/v1/tags", content=trickle())
        check_problem(response, 408, "slow-body")
        assert time.monotonic() - started >= 0.3


async def test_an_upload_that_outlives_the_grace_time_is_told_so(tagger: Tagger) -> None:
    async with serving(tagger) as service:
        request = RawRequest(service.app, {"Content-Length": "100000"})
        request.feed(b"\0" * 50_000, more=True)
        answering = asyncio.create_task(request.run())
        await until(lambda: request.pieces_taken == 1)

        service.state.end_grace()

        await until(lambda: len(request.outgoing) > 1)
        request.vanish()
        response = await answering
        assert response is not None
        check_problem(response, 503, "draining")
        assert response.headers["retry-after"] == "1"


async def test_a_refused_request_holds_up_no_stop_and_its_lingering_is_no_latency(tagger: Tagger) -> None:
    async with serving(tagger, api_keys="first") as service:
        request = RawRequest(service.app, {"Content-Length": "100000"})
        answering = asyncio.create_task(request.run())

        await until(lambda: len(request.outgoing) > 1)

        assert service.state.admitted == 0
        assert not answering.done()
        await answering
        assert 0 < service.metric("music_tagger_total_seconds_sum", operation="POST unmatched") < LINGER_S / 2


async def test_who_has_nothing_to_send_is_refused_without_lingering(tagger: Tagger) -> None:
    async with serving(tagger, api_keys="first") as service:
        async with asyncio.timeout(LINGER_S / 2):
            response = await RawRequest(service.app, {"Content-Length": "0"}).run()

    assert response is not None
    check_problem(response, 401, "key-missing")
    assert "connection" not in response.headers


# Room


async def test_a_full_queue_refuses_with_an_honest_time_and_recovers(tagger: Tagger) -> None:
    async with serving(tagger, queue_segments=16, clip_segments=16) as service:
        service.tagger.hold()
        first = asyncio.create_task(service.tag(tune(60)))
        await service.tagger.wait_until_entered()
        taken: list[int] = []

        refused = await service.client.post("/v1/tags", content=chunked(MB, taken))

        check_problem(refused, 429, "queue-full")
        assert int(refused.headers["retry-after"]) == service.state.retry_after_s() >= 1
        service.tagger.free.set()
        assert scores(await first)
        assert scores(await service.tag(tune(2)))


async def test_a_long_clip_is_never_held_whole(tagger: Tagger) -> None:
    async with serving(tagger, clip_segments=4, batch_segments=2) as service:
        service.tagger.hold()
        answering = asyncio.create_task(service.tag(tune(150)))
        await service.tagger.wait_until_entered()
        await asyncio.sleep(0.3)  # time enough to decode it all, were there no bound

        assert service.state.pipeline.batcher.depth <= 4
        assert service.metric("music_tagger_queue_segments") <= 4
        service.tagger.free.set()
        assert (await answering).json()["audio"]["analysed_s"] == pytest.approx(150, abs=0.1)


async def test_a_short_clip_overtakes_a_long_one(tagger: Tagger) -> None:
    async with serving(tagger) as service:
        long = asyncio.create_task(service.tag(tune(150)))
        await until(lambda: service.state.pipeline.batcher.depth > 0)

        assert scores(await service.tag(tune(5)))

        assert not long.done()
        assert scores(await long)


# Deadlines and clients


async def test_a_deadline_passed_at_work_is_504(tagger: Tagger) -> None:
    async with serving(tagger) as service:
        service.tagger.hold()

        response = await service.tag(tune(5), headers={"X-Request-Timeout": "0.5"})

        problem = check_problem(response, 504, "late-at-work")
        assert "X-Request-Timeout" in problem["hint"]
        service.tagger.free.set()
        assert scores(await service.tag(tune(2)))


async def test_a_deadline_passed_in_the_queue_is_503_and_says_when_to_come_back(tagger: Tagger) -> None:
    async with serving(tagger, batch_segments=1) as service:
        service.tagger.hold()
        first = asyncio.create_task(service.tag(tune(5)))
        await service.tagger.wait_until_entered()

        response = await service.tag(tune(5), headers={"X-Request-Timeout": "0.5"})

        check_problem(response, 503, "late-in-queue")
        assert int(response.headers["retry-after"]) >= 1
        assert service.state.pipeline.batcher.depth == 0
        service.tagger.free.set()
        assert scores(await first)


async def test_a_clip_that_would_be_late_is_refused_at_once(tagger: Tagger) -> None:
    async with serving(tagger) as service:
        service.tagger.hold()
        first = asyncio.create_task(service.tag(tune(60)))
        await service.tagger.wait_until_entered()

        refused = await service.tag(tune(5), headers={"X-Request-Timeout": "0.01"})

        assert "deadline" in check_problem(refused, 429, "queue-full")["detail"]
        assert int(refused.headers["retry-after"]) >= 1
        service.tagger.free.set()
        assert scores(await first)


async def test_with_no_time_at_all_the_queue_is_not_blamed(service: Service) -> None:
    response = await service.tag(tune(2), headers={"X-Request-Timeout": "5e-324"})

    assert response.status_code in (408, 503, 504)
    assert "X-Request-Timeout" in response.json()["hint"]


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan"])
async def test_a_senseless_deadline_is_refused(service: Service, value: str) -> None:
    response = await service.tag(tune(2), headers={"X-Request-Timeout": value})

    assert "X-Request-Timeout" in check_problem(response, 422, "bad-parameter")["detail"]


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/v1/model", "/metrics"])
async def test_what_does_no_work_reads_no_deadline_and_no_parameters(service: Service, path: str) -> None:
    response = await service.client.get(f"{path}?{'a&' * 40}", headers={"X-Request-Timeout": "soon"})

    assert response.status_code == 200


async def test_a_deadline_is_cut_to_the_maximum(tagger: Tagger) -> None:
    async with serving(tagger, request_timeout_s=0.2, max_request_timeout_s=0.3) as service:
        service.tagger.hold()
        started = time.monotonic()
        check_problem(await service.tag(tune(2), headers={"X-Request-Timeout": "1e9"}), 504, "late-at-work")
        assert time.monotonic() - started < 10
        service.tagger.free.set()


async def test_the_work_of_a_client_that_left_is_dropped_and_counted(tagger: Tagger) -> None:
    async with serving(tagger, batch_segments=1) as service:
        service.tagger.hold()
        request = RawRequest(service.app)
        request.feed(tune(60), more=False)
        answering = asyncio.create_task(request.run())
        await service.tagger.wait_until_entered()
        await until(lambda: service.state.pipeline.batcher.depth > 0)

        request.vanish()

        assert await answering is None
        assert service.state.pipeline.batcher.depth == 0
        outcome = {"operation": "POST /v1/tags", "outcome": "disconnected"}
        assert service.metric("music_tagger_requests_total", **outcome) == 1
        service.tagger.free.set()
        assert scores(await service.tag(tune(2)))


async def test_a_client_that_leaves_while_uploading_leaves_nothing_behind(service: Service) -> None:
    request = RawRequest(service.app, {"Content-Length": "100000"})
    request.feed(b"\0" * 50_000, more=True)
    answering = asyncio.create_task(request.run())
    await until(lambda: service.state.inflight_bytes == 100_000)

    request.vanish()

    assert await answering is None
    assert service.state.inflight_bytes == 0
    assert service.state.admitted == 0


# Failures of the device


async def test_a_failing_batch_is_a_problem_of_its_own(tagger: Tagger) -> None:
    async with serving(tagger) as service:
        service.tagger.failure = RuntimeError("secret internals")

        problem = check_problem(await service.tag(tune(2)), 500, "batch-failed")

        assert "secret" not in str(problem)
        service.tagger.failure = None
        assert scores(await service.tag(tune(2)))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_may_be_written_in_any_case(tagger: Tagger, scheme: str) -> None:
    async with serving(tagger, api_keys="first") as service:
        assert scores(await service.tag(tune(2), headers={"Authorization": f"{scheme} first"}))
