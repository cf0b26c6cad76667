"""What surrounds every request: its id, its line in the log, its count, and the last net under failures."""

import logging
import re
import time
import uuid
from typing import Final

from opentelemetry import trace
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.logs import logger
from app.metrics import Metrics
from app.problems import log_unexpected, response_of

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Pages load nothing from outside, whatever their scripts want: ReDoc asks for a logo.
# The docs have inline scripts; a page that has none brings its own, stricter one.
PAGES_POLICY: Final = "default-src 'self' 'unsafe-inline' data: blob:; frame-ancestors 'self'"
CLOSED: Final = "the handler is closed"
"""What uvloop says to who writes on a connection that was lost."""
PROBES: Final = frozenset({"GET /health/live", "GET /health/ready", "GET /metrics"})
"""Asked some twenty times a minute: where all is well, the log need not hold it."""
METHODS: Final = frozenset({"GET", "POST", "WS"})


class RequestContext:
    """Echoes or makes X-Request-ID; logs and counts each request once; answers what nobody else caught."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        state = scope.setdefault("state", {})
        state["started"] = started
        state.setdefault("request_id", request_id_of(scope))
        if scope["type"] == "websocket":
            await self._stream(scope, receive, send)
            return
        answer = _Answer(send, state["request_id"])
        try:
            await self._app(scope, receive, answer.send)
        except ClientDisconnect:
            state.setdefault("outcome", "disconnected")
        except Exception as error:
            problem = log_unexpected(error, state["request_id"])
            state["outcome"] = problem.slug
            if not answer.status:
                await response_of(problem, scope)(scope, receive, answer.send)
        finally:
            answered = state.get("answered") or time.monotonic()  # what lingers after it is no work
            self._note(scope, answer.status, answered - started)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A stream answers its failures itself. Its length is the client's choice, so it is not measured."""
        state = scope["state"]

        async def send_with_id(message: Message) -> None:
            if message["type"] in ("websocket.accept", "websocket.http.response.start"):
                MutableHeaders(scope=message)["X-Request-ID"] = state["request_id"]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            state["outcome"] = "internal"
            raise
        finally:
            found = "ok" if scope.get("route") else "not-found"
            operation, outcome = operation_of(scope), state.get("outcome", found)
            self._metrics.requests.labels(operation, outcome).inc()
            line = {"operation": operation, "outcome": outcome, "request_id": state["request_id"]}
            seconds = round(time.monotonic() - state["started"], 1)
            logger.info("stream", extra={**line, "seconds": seconds, **trace_id()})

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        operation = operation_of(scope)
        outcome = state.get("outcome") or ("ok" if 0 < status < 400 else "cancelled")
        self._metrics.requests.labels(operation, outcome).inc()
        self._metrics.total.labels(operation).observe(seconds)
        line = {"operation": operation, "status": status, "outcome": outcome, "ms": round(seconds * 1000, 1)}
        line["bytes"] = state.get("upload_bytes", 0)
        level = logging.DEBUG if operation in PROBES and outcome == "ok" else logging.INFO
        logger.log(level, "request", extra={"request_id": state["request_id"], **line, **trace_id()})


class _Answer:
    """The way out: remembers the status, adds the request's id, and keeps pages to this host."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._request_id
            if headers.get("content-type", "").startswith("text/html"):
                headers.setdefault("Content-Security-Policy", PAGES_POLICY)
        try:
            await self._send(message)
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and CLOSED not in str(error):
                raise
            raise ClientDisconnect from error


def operation_of(scope: Scope) -> str:
    """Name the operation by its route's template: few values, and nothing that a client made up."""
    method = scope.get("method", "WS").replace("HEAD", "GET")
    path = getattr(scope.get("route"), "path", None) or "unmatched"
    return f"{method} {path}" if method in METHODS else "unmatched"


def trace_id() -> dict[str, str]:
    """For the log: the id of the trace that this request belongs to, if it is traced."""
    span = trace.get_current_span().get_span_context()
    return {"trace_id": trace.format_trace_id(span.trace_id)} if span.is_valid else {}


def request_id_of(scope: Scope) -> str:
    """Take the client's id if it is one that can be logged and echoed safely, else make one."""
    asked = Headers(scope=scope).get("x-request-id", "")
    return asked if REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
