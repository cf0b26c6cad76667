"""What surrounds a request: ids, headers, logs, metrics, CORS."""

import json
import logging
import re

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.context import RequestContext
from app.logs import JsonFormatter
from app.metrics import Metrics
from model.tagger import Tagger
from tests.app.service import Service, scores, serving, tune

pytestmark = pytest.mark.anyio


async def test_a_request_id_is_echoed(service: Service) -> None:
    response = await service.client.get("/health/live", headers={"X-Request-ID": "abc-1.2_3"})

    assert response.headers["x-request-id"] == "abc-1.2_3"


@pytest.mark.parametrize("bad", ["", "a b", "x" * 129, 'a"b', "a/b"])
async def test_a_request_id_that_could_do_harm_is_replaced(service: Service, bad: str) -> None:
    response = await service.client.get("/health/live", headers={"X-Request-ID": bad})

    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


async def test_server_timing_names_each_step(service: Service) -> None:
    header = (await service.tag(tune(2))).headers["server-timing"]

    assert re.findall(r"(\w+);dur=[\d.]+", header) == ["upload", "decode", "queue", "inference", "total"]


async def test_each_request_is_logged_once_without_its_file_name(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")

    await service.client.post(
        "/v1/tags", files={"file": ("secret-name.wav", tune(2))}, headers={"X-Request-ID": "one"}
    )
    await service.client.get("/secret-path.wav", headers={"X-Request-ID": "two"})

    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name == "app"]
    assert [(line["request_id"], line["operation"], line["status"]) for line in lines] == [
        ("one", "POST /v1/tags", 200),
        ("two", "GET unmatched", 404),
    ]
    assert "secret" not in json.dumps(lines)


@pytest.mark.parametrize("path", ["/web/main.js", "/nothing"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_is_only_looked_at_does_not_count_as_work(
    service: Service, caplog: pytest.LogCaptureFixture, method: str, path: str
) -> None:
    caplog.set_level(logging.INFO, "app")

    await service.client.request(method, path)

    lines = [vars(record)["operation"] for record in caplog.records if record.message == "request"]
    assert lines == ["GET unmatched"]


async def test_a_traceback_stays_on_one_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.LogRecord("app", logging.ERROR, "", 0, "failed", None, (type(error), error, None))

    line = JsonFormatter().format(record)

    assert "\n" not in line
    assert "two\nlines" in json.loads(line)["exception"]


@pytest.mark.parametrize(
    "failure", [ConnectionResetError(), RuntimeError("unable to write; the handler is closed")], ids=repr
)
async def test_an_answer_that_cannot_be_sent_is_no_failure_of_the_service(failure: Exception) -> None:
    async def answer(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        raise failure

    metrics = Metrics()

    await RequestContext(answer, metrics)({"type": "http", "method": "GET", "headers": []}, receive, send)

    labels = {"operation": "GET unmatched", "outcome": "disconnected"}
    assert metrics.registry.get_sample_value("music_tagger_requests_total", labels) == 1


async def test_metrics_account_for_every_request(tagger: Tagger) -> None:
    async with serving(tagger) as service:
        good = scores(await service.tag(tune(12)))
        await service.tag(b"not audio at all")
        await service.tag(b"")

        outcomes = {"ok": 1, "not-audio": 1, "empty-clip": 1}
        for outcome, count in outcomes.items():
            labels = {"operation": "POST /v1/tags", "outcome": outcome}
            assert service.metric("music_tagger_requests_total", **labels) == count
        assert service.metric("music_tagger_total_seconds_count", operation="POST /v1/tags") == 3
        assert service.metric("music_tagger_audio_seconds_sum") == pytest.approx(12, abs=0.1)
        assert service.metric("music_tagger_decode_seconds_count") == 1
        assert service.metric("music_tagger_queue_seconds_count") == 1
        assert service.metric("music_tagger_upload_seconds_count") == 2
        assert service.metric("music_tagger_inflight_bytes") == 0
        assert service.metric("music_tagger_queue_segments") == 0
        present = {tag for tag in good if service.metric("music_tagger_tags_present_total", tag=tag)}
        assert present == {tag for tag in good if good[tag] >= tagger.bundle.thresholds[tag]}


async def test_metrics_are_exposed_as_prometheus_reads_them(service: Service) -> None:
    response = await service.client.get("/metrics")

    assert response.headers["content-type"].startswith("text/plain; version=")
    assert "\nmusic_tagger_workers_alive 1.0\n" in response.text
    assert "\nprocess_resident_memory_bytes " in response.text


async def test_cors_is_off_unless_told(service: Service, tagger: Tagger) -> None:
    origin = {"Origin": "https://example.org"}
    assert (
        "access-control-allow-origin"
        not in (await service.client.get("/health/live", headers=origin)).headers
    )

    async with serving(tagger, cors_origins="https://example.org", api_keys="first") as shared:
        refused = await shared.tag(tune(2), headers=origin)
        preflight = await shared.client.options(
            "/v1/tags", headers={**origin, "Access-Control-Request-Method": "POST"}
        )

    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://example.org"
    assert "x-request-id" in refused.headers["access-control-expose-headers"].lower()
    assert preflight.status_code == 200
