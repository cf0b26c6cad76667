"""What is let in, and for how long: keys, bytes, seconds and deadlines, judged as early as they can be.

`Admission` is pure ASGI, so that it sees a request's headers before anything reads its body, and each piece
of the body before anything keeps it. Its checks run in this order: key, state of the service, room in the
queue, time to the deadline, declared size; then, piece by piece, size and pace.
"""

import asyncio
import hmac
import math
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final, TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.connection import DISCARD
from app.pipeline import Work
from app.problems import ProblemError, response_of
from app.settings import Settings, hash_key
from app.state import State

OPEN_PATHS: Final = frozenset({"/", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
OPEN_PREFIXES: Final = ("/health/", "/problems", "/web/", "/static-offline-docs/")
LINGER_S: Final = 2.0
MOST_PARAMETERS: Final = 32
"""Of a query: what is wrong with each is found out by the event loop, while all others wait."""
AHEAD_BYTES: Final = 4_000_000
"""Of what a body declares, so much is counted before it arrives: a clip's worth, so that most uploads are not
refused half-way; and no more, so that a few slow ones cannot hold what others could use."""
WORTH_A_TRY: Final = 0.8
"""Share of a request's time that the work before it may take: the rate may fall, and uploads take time."""
Result = TypeVar("Result")


class Admission:
    """Judges each request before, and while, its body arrives."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with the problem that keeps it out."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # a stream is judged by its route, as its first message may bear the key
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = Body(scope, receive, send, self._state)
        try:
            self._judge_headers(scope, body, works=scope["method"] == "POST")
            await self._app(scope, body.receive, body.send)
        except ProblemError as problem:
            await response_of(problem, scope)(scope, body.receive, body.send)
        finally:
            body.leave()

    def _judge_headers(self, scope: Scope, body: "Body", *, works: bool) -> None:
        if problem := key_problem(scope, self._state.settings.api_keys):
            raise problem
        if not works:  # nothing of the query or of the deadline is read
            return
        if scope.get("query_string", b"").count(b"&") >= MOST_PARAMETERS:
            raise ProblemError("bad-parameter", f"The query has more than {MOST_PARAMETERS} parameters.")
        body.until = scope["state"]["deadline"] = deadline_of(scope, self._state.settings)
        if problem := self._state.refusal():
            raise problem
        if not self._state.pipeline.has_room():
            raise ProblemError("queue-full", retry_after_s=self._state.retry_after_s())
        self._judge_wait(body.until - asyncio.get_running_loop().time())
        body.enter()

    def _judge_wait(self, left_s: float) -> None:
        """Refuse at once what would be late, as work on it would be for nothing. Raises ProblemError."""
        backlog_s = self._state.pipeline.batcher.backlog_s()
        if 0 < WORTH_A_TRY * left_s < backlog_s:  # with no time left, the wait for the body tells
            detail = f"The work admitted takes about {backlog_s:.1f} s, the deadline is in {left_s:.2g} s."
            raise ProblemError("queue-full", detail, retry_after_s=self._state.retry_after_s())


class Body:
    """One request's body on its way in, and its answer on the way out.

    Against the common budget count the bytes that have arrived, and `AHEAD_BYTES` of those that are declared
    and have not, until the request is done.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, state: State) -> None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        self.declared = int(length) if length.isdecimal() else 0
        empty = length == "0" or scope["method"] != "POST"
        self.complete = self.declared == 0 and "transfer-encoding" not in headers and empty
        self.until = math.inf
        self._receive = receive
        self._send = send
        self._state = state
        self._scope = scope
        self._held = 0
        self._entered = False
        self._answering = False
        self._arrived = 0
        self._started = asyncio.get_running_loop().time()

    def enter(self) -> None:
        """Take room for what comes first; all that is declared must find room now. Raises ProblemError.

        From now on the request counts as admitted, so that a stop waits for it.
        """
        self._hold(self.declared)
        self._entered = True
        self._state.admitted += 1

    def _hold(self, needed: int) -> None:
        """Count what has arrived and what comes next, if `needed` bytes of this body find room."""
        settings = self._state.settings
        if needed > settings.max_upload_bytes:
            raise ProblemError("too-many-bytes", f"The body has more than {settings.max_upload_mb:g} MB.")
        free = settings.max_inflight_bytes - self._state.inflight_bytes + self._held
        if needed > free:
            raise ProblemError("bytes-full", retry_after_s=self._state.retry_after_s())
        held = max(self._arrived, min(self.declared, self._arrived + AHEAD_BYTES, free))
        self._state.inflight_bytes += held - self._held
        self._held = held

    def _release(self) -> None:
        self._state.inflight_bytes -= self._held
        self._held = 0

    def leave(self) -> None:
        """Give all bytes back, and count as admitted no more."""
        self._release()
        self._state.admitted -= self._entered
        self._entered = False

    async def receive(self) -> Message:
        """Receive the next piece within its time, and count it. Raises ProblemError."""
        if self.complete:
            return await self._receive()
        message = await self._receive_in_time()
        if message["type"] == "http.request":
            self._arrived += len(message.get("body", b""))
            if not self._answering:
                self._hold(self._arrived)
            self.complete = not message.get("more_body", False)
            if self.complete:
                self._note_upload()
        return message

    async def _receive_in_time(self) -> Message:
        settings = self._state.settings
        now = asyncio.get_running_loop().time()
        idle, whole = now + settings.upload_idle_s, self._started + settings.upload_timeout_s
        try:
            async with asyncio.timeout_at(min(idle, whole, self.until)) as timeout:
                with self._state.cut_short(timeout):
                    return await self._receive()
        except TimeoutError:
            if self._state.out_of_time.is_set():
                detail = "The service stopped before the body had come."
                raise ProblemError("draining", detail, retry_after_s=1) from None
            hint = None
            if self.until <= min(idle, whole):
                detail = f"The body was not complete after {self.until - self._started:g} s, its deadline."
                hint = "Give the request more time by X-Request-Timeout, or send a smaller file."
            elif whole <= idle:
                detail = f"The body was not complete after {settings.upload_timeout_s:g} s."
            else:
                detail = f"No byte of the body arrived for {settings.upload_idle_s:g} s."
            raise ProblemError("slow-body", detail, hint=hint) from None

    def _note_upload(self) -> None:
        took = asyncio.get_running_loop().time() - self._started
        self._scope["state"].update(upload_s=took, upload_bytes=self._arrived)
        if self._arrived:
            self._state.metrics.upload.observe(took)

    async def send(self, message: Message) -> None:
        """Send the answer; if it comes before the body's end, close the connection, but gently.

        Closing at once would reset the connection while the client still writes, and it would never read the
        answer. So the answer goes out whole, then the rest of the body is thrown away for a moment.
        The bytes are given back as the answer starts, as a client that does not read may hold it up.
        """
        self._answering = True
        self._release()
        if self.complete:
            await self._send(message)
        elif message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Connection"] = "close"
            await self._send(message)
        elif message.get("more_body", False):
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})
            self.leave()
            self._scope["state"]["answered"] = time.monotonic()
            await self._discard_rest()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard_rest(self) -> None:
        if discard := self._scope.get("extensions", {}).get(DISCARD):
            await discard(self.declared, LINGER_S)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (message := await self._receive())["type"] == "http.request" and message.get(
                    "more_body"
                ):
                    pass


def needs_key(path: str) -> bool:
    """Whether a path is closed where keys are configured: all are but health, documentation and the page."""
    return path not in OPEN_PATHS and not path.startswith(OPEN_PREFIXES)


def key_problem(scope: Scope, hashes: tuple[str, ...], key_sent: str | None = None) -> ProblemError | None:
    """Judge the key in a request's headers; where they bear none, `key_sent`, which came another way.

    Every hash is compared, each in constant time.
    """
    if not hashes or not needs_key(scope["path"]):
        return None
    scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":  # a proxy's own password, say
        key = key_sent or ""
    if not key.strip():
        return ProblemError("key-missing", headers={"WWW-Authenticate": "Bearer"})
    presented = hash_key(key.strip())
    matches = [hmac.compare_digest(presented, known) for known in hashes]
    return None if any(matches) else ProblemError("key-wrong")


def deadline_of(scope: Scope, settings: Settings) -> float:
    """When this request must be answered, by the loop's clock. Raises ProblemError."""
    asked = Headers(scope=scope).get("x-request-timeout")
    try:
        seconds = settings.request_timeout_s if asked is None else float(asked)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise ProblemError("bad-parameter", "X-Request-Timeout: must be a number of seconds above 0.")
    return asyncio.get_running_loop().time() + min(seconds, settings.max_request_timeout_s)


async def in_time(request: Request, work_on: Awaitable[Result], work: Work, state: State) -> Result:
    """Await the work on one clip until the request's deadline; then drop it.

    Raises what the work raises, and ProblemError when the deadline passed.
    """
    try:
        async with asyncio.timeout_at(request.state.deadline):
            return await work_on
    except TimeoutError:
        if work.at_work:
            detail = "The clip was not done when the request's deadline passed."
            raise ProblemError("late-at-work", detail) from None
        detail = "The work had not begun when the request's deadline passed."
        raise ProblemError("late-in-queue", detail, retry_after_s=state.retry_after_s()) from None


async def attend(request: Request, task_of: Awaitable[Result], state: State) -> Result:
    """Await the work on a request while its client is there and the service runs; else drop the work.

    Raises what the work raises, ProblemError when the grace time passed, ClientDisconnect.
    """
    task = asyncio.ensure_future(task_of)
    gone = asyncio.ensure_future(_client_gone(request))
    cut = asyncio.ensure_future(state.out_of_time.wait())
    try:
        await asyncio.wait({task, gone, cut}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        raise ProblemError("draining", "The service stopped before the clip was done.", retry_after_s=1)
    finally:
        for waiting in (task, gone, cut):
            waiting.cancel()
        await asyncio.gather(task, gone, cut, return_exceptions=True)


async def _client_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
