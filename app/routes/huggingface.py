"""POST /hf/audio-classification: the form that Hugging Face's clients speak.

`huggingface_hub.InferenceClient(model=URL).audio_classification(clip)` sends the raw clip; with parameters it
sends JSON, the clip in base64 as `inputs`.
"""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Annotated, Any, BinaryIO, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from app.admission import attend
from app.problems import ProblemError, from_validation, responses_for
from app.routes.tags import (
    BINARY,
    CLIP_SLUGS,
    TIMED,
    TIMEOUT_PARAMETER,
    answer_clip,
    refuse_repeated,
    server_timing,
)
from app.schemas import Label, LabelParameters, LabelQuery, LabelRequest, TagQuery
from app.state import State, WithState
from app.uploads import clip_of, memory_file, read_raw, type_of

router = APIRouter(tags=["tags"])

MOST_MARKS: Final = 200
"""Quotes, or commas, of a body: base64 has none, and millions of small values would take gigabytes."""
PIECE: Final = 1 << 20
"""Characters of base64 that are decoded at once, a multiple of four."""

_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "The clip as the raw body, or in base64 beside the parameters.",
        "content": {
            "application/octet-stream": {"schema": BINARY},
            "audio/*": {"schema": BINARY},
            "application/json": {"schema": {"$ref": "#/components/schemas/LabelRequest"}},
        },
    },
    "parameters": [TIMEOUT_PARAMETER],
}


@router.post(
    "/hf/audio-classification",
    summary="Tag one clip for Hugging Face's clients",
    response_description="The tags by falling score.",
    responses=TIMED | responses_for("bad-json", *CLIP_SLUGS),
    openapi_extra=_BODY,
)
async def classify(
    request: Request, response: Response, query: Annotated[LabelQuery, Query()], state: WithState
) -> list[Label]:
    """Score one clip and list the tags by falling score.

    `huggingface_hub.InferenceClient(model=URL).audio_classification("song.mp3", top_k=2)` works unchanged.
    """
    refuse_repeated(request)
    thresholds = state.pipeline.tagger.bundle.thresholds
    async with _clip_and_parameters(request, state) as (clip, parameters):
        if query.top_k and parameters.top_k:
            raise ProblemError("bad-combination", "top_k: given in the query and in the body.")
        with state.pipeline.admit() as [lane]:
            answering = answer_clip(request, clip, lane, TagQuery(), thresholds, state)
            answer = await attend(request, answering, state)
    response.headers["Server-Timing"] = server_timing(answer.timing_ms, getattr(request.state, "upload_s", 0))
    falling = sorted(answer.tags, key=lambda tag: tag.score, reverse=True)
    return [Label(label=tag.tag, score=tag.score) for tag in falling[: query.top_k or parameters.top_k]]


@asynccontextmanager
async def _clip_and_parameters(
    request: Request, state: State
) -> AsyncIterator[tuple[BinaryIO, LabelParameters]]:
    if type_of(request)[0] != b"application/json":
        async with clip_of(request) as clip:
            yield clip, LabelParameters()
        return
    with ExitStack() as files:
        body = await read_raw(request, files)
        clip = files.enter_context(memory_file())
        async with _turn(request, state):
            parameters = await asyncio.to_thread(_parse, body, clip)  # many MB: the event loop must not wait
        yield clip, parameters


@asynccontextmanager
async def _turn(request: Request, state: State) -> AsyncIterator[None]:
    """One body after the other, as a clip in JSON takes four times the bytes that are counted."""
    try:
        async with asyncio.timeout_at(request.state.deadline) as timeout:
            with state.cut_short(timeout):
                await state.one_json_body.acquire()
    except TimeoutError:
        if state.out_of_time.is_set():
            detail = "The service stopped before the body was parsed."
            raise ProblemError("draining", detail, retry_after_s=1) from None
        detail = "The body had not been parsed when the request's deadline passed."
        raise ProblemError("late-in-queue", detail, retry_after_s=state.retry_after_s()) from None
    try:
        yield
    finally:
        state.one_json_body.release()


def _parse(body: BinaryIO, clip: BinaryIO) -> LabelParameters:
    """Write the clip in a request's body to `clip`. Raises ProblemError."""
    body.seek(0)
    text = body.read()
    body.truncate(0)
    if max(text.count(b'"'), text.count(b",")) > MOST_MARKS:
        raise ProblemError("bad-json", "The body has many more values than `inputs` and `parameters`.")
    try:
        parsed = LabelRequest.model_validate_json(text)
        del text
        for start in range(0, len(parsed.inputs), PIECE):
            clip.write(base64.b64decode(parsed.inputs[start : start + PIECE], validate=True))
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise ProblemError("bad-json") from error
        raise from_validation(error.errors()) from error
    except ValueError as error:
        hint = "Send the clip in base64 on one line, without line breaks (base64 -w0)."
        raise ProblemError("bad-parameter", f"inputs: not base64 ({error}).", hint=hint) from error
    return parsed.parameters
