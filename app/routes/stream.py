"""WS /v1/stream: live audio in, rolling scores out at every hop; docs/stream.md describes it for clients."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, TypeVar, cast
from urllib.parse import urlsplit

from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, ValidationError
from starlette.websockets import WebSocketDisconnect, WebSocketState

from app.admission import key_problem
from app.listener import PIPE_BYTES, Listener, Pipe
from app.problems import (
    ProblemError,
    from_audio,
    from_validation,
    instance_of,
    log_unexpected,
    problem_of,
    response_of,
)
from app.routes.tags import audio_of, model_of, tags_of
from app.schemas import StreamEnd, StreamFinal, StreamProblem, StreamStart, StreamWindow
from app.settings import Settings
from app.state import State
from app.thresholds import parse_thresholds
from model.audio import AudioError, endless_wav_header

router = APIRouter()

CLOSING: Final[Mapping[int, int]] = {400: 1007, 415: 1003, 422: 1007, 429: 1013, 500: 1011, 503: 1013}
"""Close code (RFC 6455) by a problem's status; 1008 (policy) for all others."""
DONE: Final = 1000
RESTART: Final = 1012
START_HINT: Final = (
    'Begin with the text {"encoding": "pcm_s16le", "sample_rate_hz": 44100} or {"encoding": "container"}.'
)
MOST_TEXT: Final = 10_000
"""Characters of a message of text: each unknown name in it would be told as an error of its own."""
END_HINT: Final = 'Send sound as binary messages, and {"end": true} as text after the last one.'
Sent = TypeVar("Sent", bound=BaseModel)


@router.websocket("/v1/stream")
async def stream(websocket: WebSocket) -> None:
    """Listen to one stream until it ends, fails, or the service stops."""
    state = cast(State, websocket.app.state.tagger_service)
    if refusal := origin_problem(websocket, state.settings):
        await websocket.send_denial_response(response_of(refusal, websocket.scope))
        return
    try:
        await websocket.accept()
        await websocket.close(await _serve(websocket, state))
    except WebSocketDisconnect:
        websocket.scope["state"]["outcome"] = "disconnected"
    except ProblemError as problem:
        await _refuse(websocket, problem, state.settings)
    except AudioError as error:
        await _refuse(websocket, from_audio(error), state.settings)
    except Exception as error:
        unexpected = log_unexpected(error, websocket.scope["state"]["request_id"])
        await _refuse(websocket, unexpected, state.settings)


@router.get("/v1/stream", include_in_schema=False)
async def no_websocket() -> None:
    """Answer what asks for the stream without opening a WebSocket."""
    raise ProblemError(
        "not-found",
        "This path takes WebSockets, and this request is none.",
        hint="Open it as ws:// or wss://; a proxy between must pass on the headers Upgrade and Connection.",
    )


@router.websocket("/{path:path}")
async def no_stream(websocket: WebSocket) -> None:
    """Answer a WebSocket to any other path."""
    await websocket.send_denial_response(response_of(ProblemError("not-found"), websocket.scope))


def origin_problem(websocket: WebSocket, settings: Settings) -> ProblemError | None:
    """Judge where the page comes from, as browsers let pages of any site open sockets to any other.

    Programs that are no browsers send no Origin.
    """
    origin = websocket.headers.get("origin")
    try:
        own = origin is None or urlsplit(origin).netloc == websocket.headers.get("host")
    except ValueError:  # such as http://[::1
        own = False
    return None if own or {origin, "*"} & set(settings.cors_origins) else ProblemError("origin")


async def _serve(websocket: WebSocket, state: State) -> int:
    """Judge the first message, then attend to the stream. Returns the code to close with."""
    settings = state.settings
    first = await _receive(websocket, settings.upload_idle_s)
    if isinstance(first, bytes):
        raise ProblemError("media-type", "The first message is binary.", hint=START_HINT)
    start = _parse(StreamStart, first, START_HINT)
    if problem := key_problem(websocket.scope, settings.api_keys, start.key) or state.refusal():
        raise problem
    thresholds = parse_thresholds(start.threshold, state.pipeline.tagger.bundle)
    if not state.pipeline.has_room():
        raise ProblemError("queue-full", retry_after_s=state.retry_after_s())
    with _place(state):
        return await _attend(websocket, start, thresholds, state)


@contextmanager
def _place(state: State) -> Iterator[None]:
    """Take one of the listeners' places. Raises ProblemError."""
    if state.listeners >= state.settings.max_listeners:
        raise ProblemError("listeners-full", retry_after_s=60)
    state.listeners += 1
    state.admitted += 1
    try:
        yield
    finally:
        state.listeners -= 1
        state.admitted -= 1


async def _attend(
    websocket: WebSocket, start: StreamStart, thresholds: Mapping[str, float], state: State
) -> int:
    """Listen and tell until the stream ends; if the service stops, tell what was heard so far."""
    pipe = Pipe(PIPE_BYTES)
    if start.sample_rate_hz is not None:
        await pipe.put(endless_wav_header(start.sample_rate_hz))
    listener = Listener(pipe, state.pipeline, state.settings)
    feeding = asyncio.ensure_future(_feed(websocket, pipe, state.settings))
    telling = asyncio.ensure_future(_tell(websocket, listener, pipe, thresholds, state))
    stopping = asyncio.ensure_future(state.stopping.wait())
    cut = asyncio.ensure_future(state.out_of_time.wait())
    tasks = (feeding, telling, stopping, cut)
    try:
        await asyncio.wait({feeding, telling, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if feeding.done():
            feeding.result()
        pipe.end()
        await asyncio.wait({telling, cut}, return_when=asyncio.FIRST_COMPLETED)
        stopped = not feeding.done() and stopping.done()
        if not telling.done() or (stopped and isinstance(telling.exception(), AudioError)):
            raise ProblemError("draining", retry_after_s=1)
        telling.result()
        return RESTART if stopped else DONE
    finally:
        for task in tasks:
            task.cancel()
        listener.close()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(websocket: WebSocket, pipe: Pipe, settings: Settings) -> None:
    """Put what arrives into the pipe, no faster than it is listened to, until the client says the end."""
    while isinstance(message := await _receive(websocket, settings.stream_idle_s), bytes):
        await pipe.put(message)
    _parse(StreamEnd, message, END_HINT)


async def _tell(
    websocket: WebSocket, listener: Listener, pipe: Pipe, thresholds: Mapping[str, float], state: State
) -> None:
    """Send each window's scores, then the whole stream's."""
    while window := await listener.window():
        latency_s = time.monotonic() - pipe.arrived_at
        present = {tag: score >= thresholds[tag] for tag, score in window.scores.items()}
        told = StreamWindow(
            event="window",
            start_s=window.start_s,
            end_s=window.end_s,
            scores=window.scores,
            present=present,
            latency_ms=round(latency_s * 1000, 1),
        )
        await _send(websocket, told, state.settings)
        state.metrics.windows.inc()
        state.metrics.stream_latency.observe(latency_s)
    tagging = await listener.finish()
    final = StreamFinal(
        event="final", tags=tags_of(tagging, thresholds), audio=audio_of(tagging), model=model_of(state)
    )
    await _send(websocket, final, state.settings)


async def _receive(websocket: WebSocket, idle_s: float) -> str | bytes:
    """The next message with something in it. Raises ProblemError if none comes, WebSocketDisconnect."""
    try:
        async with asyncio.timeout(idle_s):
            while (message := await websocket.receive()).get("bytes") == b"":
                pass
    except TimeoutError:
        raise ProblemError("stream-idle", f"No message arrived for {idle_s:g} s.") from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    data: bytes | None = message.get("bytes")
    return str(message["text"]) if data is None else data


def _parse(kind: type[Sent], text: str, hint: str) -> Sent:
    if len(text) > MOST_TEXT:
        raise ProblemError("bad-json", f"The message has more than {MOST_TEXT} characters.", hint=hint)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise ProblemError("bad-json", "The message is not JSON.", hint=hint) from None
        found = from_validation(error.errors())
        raise ProblemError(found.slug, found.detail, hint=hint) from None


async def _send(websocket: WebSocket, told: BaseModel, settings: Settings) -> None:
    """Send one message. Raises ProblemError if the client takes none, WebSocketDisconnect."""
    try:
        async with asyncio.timeout(settings.stream_idle_s):
            await websocket.send_text(told.model_dump_json())
    except TimeoutError:
        detail = f"The client took no message for {settings.stream_idle_s:g} s."
        raise ProblemError("stream-idle", detail) from None


async def _refuse(websocket: WebSocket, error: ProblemError, settings: Settings) -> None:
    """Tell a problem, note it as the stream's outcome, and close with the code that fits."""
    websocket.scope["state"]["outcome"] = error.slug
    problem = problem_of(error.slug, error.detail, error.hint, instance_of(websocket.scope))
    told = StreamProblem(event="problem", **problem.model_dump(), retry_after_s=error.retry_after_s)
    code = RESTART if error.slug == "draining" else CLOSING.get(error.kind.status, 1008)
    if websocket.application_state is WebSocketState.DISCONNECTED:  # the client left in the same moment
        return
    with suppress(WebSocketDisconnect, TimeoutError):
        async with asyncio.timeout(settings.stream_idle_s):
            await websocket.send_text(told.model_dump_json(exclude_none=True))
            await websocket.close(code)
