"""POST /hf/audio-classification: the form that Hugging Face's clients speak.

`huggingface_hub.InferenceClient(model=URL).audio_classification(clip)` sends the raw clip; with parameters it
sends JSON, the clip in base64 as `inputs`.
"""

import asyncio
import base64
import io
from typing import Annotated, Any, BinaryIO, Final

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError

from app.admission import attend
from app.problems import ProblemError, from_validation, responses_for
from app.routes.tags import BINARY, CLIP_SLUGS, TIMEOUT_PARAMETER, answer_clip, refuse_repeated
from app.schemas import Label, LabelParameters, LabelQuery, LabelRequest, TagQuery
from app.state import WithState
from app.uploads import read_clip, read_raw

router = APIRouter(tags=["tags"])

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
    responses=responses_for("bad-json", *CLIP_SLUGS),
    openapi_extra=_BODY,
)
async def classify(request: Request, query: Annotated[LabelQuery, Query()], state: WithState) -> list[Label]:
    """Score one clip and list the tags by falling score.

    `huggingface_hub.InferenceClient(model=URL).audio_classification("song.mp3", top_k=2)` works unchanged.
    """
    refuse_repeated(request)
    clip, parameters = await _read(request)
    if query.top_k and parameters.top_k:
        raise ProblemError("bad-combination", "top_k: given in the query and in the body.")
    thresholds = state.pipeline.tagger.bundle.thresholds
    with state.pipeline.admit() as [lane]:
        answering = answer_clip(request, clip, lane, TagQuery(), thresholds, state)
        answer = await attend(request, answering, state)
    falling = sorted(answer.tags, key=lambda tag: tag.score, reverse=True)
    return [Label(label=tag.tag, score=tag.score) for tag in falling[: query.top_k or parameters.top_k]]


async def _read(request: Request) -> tuple[BinaryIO, LabelParameters]:
    if not request.headers.get("content-type", "").startswith("application/json"):
        return await read_clip(request), LabelParameters()
    body = await read_raw(request)
    return await asyncio.to_thread(_parse, body.getvalue())  # many MB: the event loop must not wait for it


def _parse(body: bytes) -> tuple[BinaryIO, LabelParameters]:
    try:
        parsed = LabelRequest.model_validate_json(body)
        return io.BytesIO(base64.b64decode(parsed.inputs, validate=True)), parsed.parameters
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise ProblemError("bad-json") from error
        raise from_validation(error.errors()) from error
    except ValueError as error:
        raise ProblemError("bad-parameter", f"inputs: not base64 ({error}).") from error
