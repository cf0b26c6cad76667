"""POST /v1/tags/batch: several clips in, each one's scores or problem out, in their order."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, BinaryIO, Final

from fastapi import APIRouter, Query, Request

from app.admission import attend
from app.batcher import Lane
from app.problems import ProblemError, from_audio, instance_of, log_unexpected, problem_of, responses_for
from app.routes.tags import (
    BINARY,
    TIMEOUT_PARAMETER,
    answer_clip,
    refuse_repeated,
)
from app.schemas import BatchItem, BatchResponse, TagQuery
from app.state import State, WithState
from app.thresholds import parse_thresholds
from app.uploads import clips_of
from model.audio import AudioError

router = APIRouter(tags=["tags"])

_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "The clips, each a form's field `file`; their formats are told by content.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "array", "minItems": 1, "items": BINARY}},
                }
            }
        },
    },
    "parameters": [TIMEOUT_PARAMETER],
}
_RESPONSES: Final = responses_for(
    *("no-clip", "malformed-multipart", "bad-combination", "slow-body", "too-many-bytes", "too-many-clips"),
    *("media-type", "bad-parameter", "queue-full", "bytes-full", "not-ready", "draining"),
)


@router.post(
    "/v1/tags/batch",
    summary="Tag several clips",
    response_description="A result or a problem for each clip, in order.",
    responses=_RESPONSES,
    openapi_extra=_BODY,
    response_model_exclude_none=True,
)
async def tag_clips(request: Request, query: Annotated[TagQuery, Query()], state: WithState) -> BatchResponse:
    """Score several clips, each as `/v1/tags` would: answers in order, each a result or a problem.

    A bad clip never hurts the others. The clips share one upload limit and one deadline; room in the queue is
    taken for all of them or for none.
    """
    refuse_repeated(request)
    thresholds = parse_thresholds(query.threshold, state.pipeline.tagger.bundle)
    async with clips_of(request, state.settings.max_batch_clips) as clips:
        with state.pipeline.admit(len(clips)) as lanes:
            items = [
                _item(index, request, clip, lane, query, thresholds, state)
                for index, (clip, lane) in enumerate(zip(clips, lanes, strict=True))
            ]
            found = await attend(request, asyncio.gather(*items), state)
    for item in found:
        outcome = item.problem.type.rpartition("/")[2] if item.problem else "ok"
        state.metrics.batch_clips.labels(outcome).inc()
    return BatchResponse(items=found)


async def _item(
    index: int,
    request: Request,
    clip: BinaryIO,
    lane: Lane,
    query: TagQuery,
    thresholds: Mapping[str, float],
    state: State,
) -> BatchItem:
    try:
        result = await answer_clip(request, clip, lane, query, thresholds, state)
        return BatchItem(index=index, status=200, result=result)
    except AudioError as error:
        problem = from_audio(error)
    except ProblemError as error:
        problem = error
    except Exception as error:
        problem = log_unexpected(error, request.state.request_id)
    told = problem_of(problem.slug, problem.detail, problem.hint, instance_of(request.scope))
    return BatchItem(index=index, status=told.status, problem=told, retry_after_s=problem.retry_after_s)
