"""OpenTelemetry, turned on by its own variables: what a collector gets of a request."""

import gzip
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.app.service import Process, check_problem, scores, server_process, tune

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}


class Collector(ThreadingHTTPServer):
    """Takes spans in OTLP over HTTP, as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taking)
        self.spans: list[Span] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Taking(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            request = ExportTraceServiceRequest.FromString(body)
            self.server.spans += [
                span for by in request.resource_spans for scope in by.scope_spans for span in scope.spans
            ]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield collector
        collector.shutdown()


@contextmanager
def exporting(url: str) -> Iterator[Process]:
    """A server that tells a collector of every request, at the latest when it stops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        patch.setenv("OTEL_METRICS_EXPORTER", "none")
        with server_process() as server:
            yield server
            assert server.stop() == 0


def values(attributes: Any) -> dict[str, Any]:  # noqa: ANN401 - protobuf's container
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def test_a_request_is_a_span_of_its_client_s_trace_and_tells_where_the_time_went(
    collector: Collector,
) -> None:
    with exporting(collector.url) as server:
        assert scores(server.post(tune(10), headers=PARENT))
        check_problem(server.post(b"", headers=PARENT), 400, "empty-clip")

    [good, bad] = [span for span in collector.spans if span.trace_id.hex() == TRACE_ID]
    logged = [line["ms"] for line in server.log_lines() if line.get("trace_id") == TRACE_ID]
    assert good.name == bad.name == "POST /v1/tags"
    assert [values(span.attributes)["http.response.status_code"] for span in (good, bad)] == [200, 400]
    [event] = good.events
    told = values(event.attributes)
    assert event.name == "music_tagger.clip"
    assert told["music_tagger.audio_s"] == 10
    assert 0 < told["music_tagger.decode_ms"] < told["music_tagger.total_ms"]
    assert 0 < told["music_tagger.inference_ms"] < told["music_tagger.total_ms"] <= logged[0]
    assert not bad.events
    assert len(logged) == 2


def test_without_a_collector_s_address_nothing_is_traced() -> None:
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ

    with server_process() as server:
        assert scores(server.post(tune(2), headers=PARENT))
        assert server.stop() == 0

    assert not [line for line in server.log_lines() if "trace_id" in line]


def test_a_collector_that_is_not_there_costs_no_request_and_few_seconds_of_a_stop() -> None:
    with exporting("http://127.0.0.1:9") as server:
        assert scores(server.post(tune(2)))
        stopping = time.monotonic()

    assert time.monotonic() - stopping < 6
