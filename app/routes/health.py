"""Whether this instance lives, whether it should get work, and what it counted."""

from fastapi import APIRouter, Response

from app.metrics import CONTENT_TYPE
from app.problems import responses_for
from app.schemas import Health
from app.state import WithState

router = APIRouter(tags=["health"])


@router.get(
    "/health/live",
    summary="Is the process alive?",
    response_description="It is.",
    responses=responses_for(key=False),
)
async def live() -> Health:
    """200 as long as the process answers at all."""
    return Health(status="live")


@router.get(
    "/health/ready",
    summary="Should it get work?",
    response_description="It should.",
    responses=responses_for("not-ready", "draining", key=False),
)
async def ready(state: WithState) -> Health:
    """200 only if a clip sent now is worked on: not while warming up, draining, stuck or without worker."""
    if refusal := state.refusal():
        raise refusal
    return Health(status="ready")


for path, health in (("/health/live", live), ("/health/ready", ready)):
    router.head(path, include_in_schema=False)(health)  # as some monitors ask


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    response_description="All metrics.",
    responses={
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}, "example": "music_tagger_ready 1.0\n"}}
        },
        **responses_for(),
    },
)
async def metrics(state: WithState) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    return Response(state.metrics.exposition(), media_type=CONTENT_TYPE)
