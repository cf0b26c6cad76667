"""POST /v1/tags: one clip in, its scores out."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, BinaryIO, Final

from fastapi import APIRouter, Query, Request, Response
from opentelemetry import trace

from app.admission import attend, in_time
from app.batcher import Lane
from app.pipeline import Work
from app.problems import ProblemError, responses_for
from app.schemas import Audio, ModelName, TagQuery, TagResponse, TagScore, Timing, Window
from app.state import State, WithState
from app.thresholds import parse_thresholds
from app.uploads import clip_of
from model.tagger import Tagging

router = APIRouter(tags=["tags"])

BINARY: Final = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
TIMEOUT_PARAMETER: Final = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds in which the answer is wanted; cut to the operator's maximum.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "example": 30,
}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "The clip, as a form's field or as the raw body; its format is told by content.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": BINARY}}
            },
            "application/octet-stream": {"schema": BINARY},
            "audio/*": {"schema": BINARY},
        },
    },
    "parameters": [TIMEOUT_PARAMETER],
}
TIMED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "headers": {
            "Server-Timing": {
                "description": "Where the time went, in milliseconds.",
                "schema": {
                    "type": "string",
                    "examples": [
                        "upload;dur=1.2, decode;dur=21.0, queue;dur=0.4, inference;dur=25.7, total;dur=48.3"
                    ],
                },
            }
        }
    }
}
"""What an answer about one clip has beside its body."""
CLIP_SLUGS: Final = (
    *("no-clip", "empty-clip", "malformed-multipart", "bad-combination", "slow-body", "too-many-bytes"),
    *("too-many-seconds", "not-audio", "media-type", "undecodable", "too-short", "silent", "bad-parameter"),
    *("queue-full", "bytes-full", "batch-failed", "not-ready", "draining", "late-in-queue", "late-at-work"),
)


@router.post(
    "/v1/tags",
    summary="Tag one clip",
    response_description="The scores.",
    responses=TIMED | responses_for(*CLIP_SLUGS),
    openapi_extra=_BODY,
    response_model_exclude_none=True,
)
async def tag_clip(
    request: Request, response: Response, query: Annotated[TagQuery, Query()], state: WithState
) -> TagResponse:
    """Score one clip of music: independent tags, each with a calibrated probability.

    WAV, FLAC, MP3, OGG/Vorbis, Opus, M4A/AAC, WebM or AIFF. Nothing of the clip is kept after the answer.
    """
    refuse_repeated(request)
    thresholds = parse_thresholds(query.threshold, state.pipeline.tagger.bundle)
    async with clip_of(request) as clip:
        with state.pipeline.admit() as [lane]:
            answer = await attend(request, answer_clip(request, clip, lane, query, thresholds, state), state)
    response.headers["Server-Timing"] = server_timing(
        answer.timing_ms, getattr(request.state, "upload_s", 0.0)
    )
    return answer


async def answer_clip(
    request: Request,
    clip: BinaryIO,
    lane: Lane,
    query: TagQuery,
    thresholds: Mapping[str, float],
    state: State,
) -> TagResponse:
    """Tag one clip within the request's time, and count it. Raises AudioError, ProblemError."""
    work = Work()
    tagging = await in_time(
        request,
        state.pipeline.tag(clip, lane, work, start_s=query.start_s, duration_s=query.duration_s),
        work,
        state,
    )
    answer = answer_of(tagging, thresholds, query, state, timing_of(work, request.state.started))
    observe(answer, work, state)
    return answer


def refuse_repeated(request: Request) -> None:
    """Raise ProblemError if a query parameter is given twice, as only one of the two could be obeyed."""
    given = Counter(name for name, _ in request.query_params.multi_items())
    if repeated := sorted(name for name, times in given.items() if times > 1):
        raise ProblemError("bad-combination", f"{', '.join(repeated)}: given more than once.")


def timing_of(work: Work, started: float) -> Timing:
    """Where this request's time went."""
    return Timing(
        decode=round(work.decode_s * 1000, 1),
        queue=round(work.queue_s * 1000, 1),
        inference=round(work.inference_s * 1000, 1),
        total=round((time.monotonic() - started) * 1000, 1),
    )


def server_timing(timing: Timing, upload_s: float) -> str:
    """Write the Server-Timing header."""
    durations = {"upload": round(upload_s * 1000, 1), **timing.model_dump()}
    return ", ".join(f"{name};dur={milliseconds}" for name, milliseconds in durations.items())


def answer_of(
    tagging: Tagging, thresholds: Mapping[str, float], query: TagQuery, state: State, timing: Timing
) -> TagResponse:
    """Put the tagger's findings into the wire's form."""
    windows = (
        [Window(start_s=w.start_s, end_s=w.end_s, scores=w.scores) for w in tagging.windows]
        if query.windows
        else None
    )
    return TagResponse(
        tags=tags_of(tagging, thresholds),
        windows=windows,
        audio=audio_of(tagging),
        model=model_of(state),
        timing_ms=timing,
    )


def tags_of(tagging: Tagging, thresholds: Mapping[str, float]) -> list[TagScore]:
    """Judge each tag's score by its threshold."""
    return [
        TagScore(tag=tag, score=score, present=score >= thresholds[tag], threshold=thresholds[tag])
        for tag, score in tagging.scores.items()
    ]


def audio_of(tagging: Tagging) -> Audio:
    """Tell what was found in the clip."""
    return Audio.model_validate(tagging.audio, from_attributes=True)


def model_of(state: State) -> ModelName:
    """Name the model that answers."""
    bundle = state.pipeline.tagger.bundle
    return ModelName(name=bundle.name, version=bundle.version, sha256=bundle.sha256)


def observe(answer: TagResponse, work: Work, state: State) -> None:
    """Tell Prometheus, and the request's trace if there is one, of one answered clip."""
    state.metrics.decode.observe(work.decode_s)
    state.metrics.queue.observe(work.queue_s)
    state.metrics.audio.observe(answer.audio.analysed_s)
    for tag in answer.tags:
        state.metrics.present.labels(tag.tag).inc(tag.present)
    milliseconds = {
        f"music_tagger.{stage}_ms": value for stage, value in answer.timing_ms.model_dump().items()
    }
    attributes = {**milliseconds, "music_tagger.audio_s": answer.audio.analysed_s}
    trace.get_current_span().add_event("music_tagger.clip", attributes)
