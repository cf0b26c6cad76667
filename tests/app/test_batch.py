"""POST /v1/tags/batch: answers in order, a bad clip alone with its problem, bounds that count clips."""

import asyncio
from typing import Any

import httpx
import pytest

from app.settings import Settings
from model.tagger import Tagger
from tests.app.service import Service, check_problem, scores, serving, tune

pytestmark = pytest.mark.anyio


async def post(service: Service, *clips: bytes, query: str = "", **options: Any) -> httpx.Response:  # noqa: ANN401
    files = [("file", (f"{index}.wav", clip)) for index, clip in enumerate(clips)]
    return await service.client.post(f"/v1/tags/batch{query}", files=files, **options)


def scores_of(item: dict[str, Any]) -> dict[str, float]:
    return {tag["tag"]: tag["score"] for tag in item["result"]["tags"]}


def counted(service: Service, outcome: str) -> float:
    return service.metric("music_tagger_batch_clips_total", outcome=outcome)


async def test_answers_come_in_order_and_are_those_of_each_clip_alone(service: Service) -> None:
    clips = [tune(12, 110), tune(3, 440), tune(7, 220)]

    items = (await post(service, *clips)).json()["items"]

    assert [(item["index"], item["status"]) for item in items] == [(0, 200), (1, 200), (2, 200)]
    for item, clip in zip(items, clips, strict=True):
        assert scores_of(item) == pytest.approx(scores(await service.tag(clip)), abs=1e-4)


async def test_a_bad_clip_gets_its_own_problem_and_hurts_no_other(service: Service) -> None:
    expected = {"ok": 2, "not-audio": 1, "too-short": 1, "empty-clip": 1, "silent": 0}
    before = {outcome: counted(service, outcome) for outcome in expected}

    response = await post(service, tune(3), b"no music at all " * 99, tune(0.05), b"", tune(4))

    items = response.json()["items"]
    assert response.status_code == 200
    assert [item["status"] for item in items] == [200, 415, 422, 400, 200]
    slugs = [item["problem"]["type"].removeprefix("/problems/") for item in items[1:4]]
    assert slugs == ["not-audio", "too-short", "empty-clip"]
    assert all(item["problem"]["status"] == item["status"] and item["problem"]["hint"] for item in items[1:4])
    assert all(("result" in item) != ("problem" in item) for item in items)
    assert {outcome: counted(service, outcome) - before[outcome] for outcome in expected} == expected


async def test_the_query_goes_for_every_clip(service: Service) -> None:
    response = await post(service, tune(12), tune(3), query="?windows=true&threshold=0.5&duration_s=2")

    for item in response.json()["items"]:
        assert item["result"]["windows"]
        assert {tag["threshold"] for tag in item["result"]["tags"]} == {0.5}
        assert item["result"]["audio"]["analysed_s"] == pytest.approx(2, abs=0.1)


async def test_a_failing_pass_is_an_item_s_problem_too(service: Service) -> None:
    service.tagger.failure = RuntimeError("the device hiccups")
    try:
        items = (await post(service, tune(3), b"no music")).json()["items"]
    finally:
        service.tagger.failure = None

    assert [item["status"] for item in items] == [500, 415]
    assert items[0]["problem"]["type"] == "/problems/batch-failed"
    assert scores(await service.tag(tune(3)))


async def test_room_is_taken_for_all_clips_or_for_none(tagger: Tagger) -> None:
    limits = {"clip_segments": 4, "queue_segments": 12, "batch_clips": 3}
    async with serving(tagger, **limits) as service:
        service.tagger.hold()
        alone = asyncio.create_task(service.tag(tune(3)))
        await service.tagger.wait_until_entered()

        # The clip alone proved short and keeps 1 segment: two more clips fit the queue, three do not.
        refused = await post(service, tune(3), tune(3), tune(3))
        admitted = asyncio.create_task(post(service, tune(3), tune(3)))
        service.tagger.free.set()

        problem = check_problem(refused, 429, "queue-full")
        assert int(refused.headers["retry-after"]) >= 1
        assert problem["instance"].startswith("/v1/tags/batch#")
        assert [item["status"] for item in (await admitted).json()["items"]] == [200, 200]
        assert scores(await alone)


async def test_items_that_were_not_done_in_time_say_so(tagger: Tagger) -> None:
    async with serving(tagger) as service:
        service.tagger.hold()

        response = await post(service, tune(3), b"no music", headers={"X-Request-Timeout": "0.5"})

        items = response.json()["items"]
        assert [item["status"] for item in items] == [504, 415]
        assert items[0]["problem"]["type"] == "/problems/late-at-work"


async def test_items_that_had_no_turn_in_time_say_when_to_come_back(tagger: Tagger) -> None:
    async with serving(tagger, decoders=1) as service:
        assert scores(await service.tag(tune(20)))  # tells the rate
        service.tagger.hold()
        before = asyncio.create_task(service.tag(tune(20)))
        await service.tagger.wait_until_entered()

        response = await post(service, tune(3), b"no music", headers={"X-Request-Timeout": "0.5"})

        service.tagger.free.set()
        assert scores(await before)
        late, bad = response.json()["items"]
        assert (late["status"], bad["status"]) == (503, 415)
        assert late["retry_after_s"] >= 1
        assert "retry_after_s" not in bad


async def test_clips_are_counted_while_they_arrive(tagger: Tagger) -> None:
    async with serving(tagger, batch_clips=2) as service:
        problem = check_problem(await post(service, tune(2), tune(2), tune(2)), 413, "too-many-clips")
        assert "2" in problem["detail"]
        assert len((await post(service, tune(2), tune(2))).json()["items"]) == 2


@pytest.mark.parametrize(("queue", "clips"), [(1024, 32), (160, 10), (16, 1)])
def test_no_batch_is_let_in_that_the_queue_could_never_admit(queue: int, clips: int) -> None:
    settings = Settings(batch_clips=32, clip_segments=16, queue_segments=queue)

    assert settings.max_batch_clips == clips


@pytest.mark.parametrize(
    ("options", "status", "slug"),
    [
        ({"content": tune(2)}, 415, "media-type"),
        ({"files": {"song": ("a.wav", b"x")}}, 400, "no-clip"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "malformed-multipart"),
    ],
    ids=["raw body", "no file", "no boundary"],
)
async def test_a_bad_body_is_told_why(
    service: Service, options: dict[str, Any], status: int, slug: str
) -> None:
    check_problem(await service.client.post("/v1/tags/batch", **options), status, slug)


async def test_a_bad_parameter_refuses_the_whole(service: Service) -> None:
    check_problem(await post(service, tune(2), query="?threshold=loud"), 422, "bad-parameter")
