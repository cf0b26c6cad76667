"""GET /v1/model: which model serves, and how good it is."""

from fastapi import APIRouter

from app.problems import responses_for
from app.schemas import ModelResponse, TagMeaning
from app.state import WithState

router = APIRouter(tags=["model"])


@router.get(
    "/v1/model",
    summary="Describe the model",
    response_description="The model that serves.",
    responses=responses_for("not-ready"),
)
async def describe_model(state: WithState) -> ModelResponse:
    """Tags with their meanings and thresholds, held-out metrics, version, hash, device and engine."""
    tagger = state.pipeline.tagger
    bundle = tagger.bundle
    return ModelResponse(
        name=bundle.name,
        version=bundle.version,
        sha256=bundle.sha256,
        device=tagger.device,
        engine=tagger.engine,
        precision=tagger.precision,
        sample_rate_hz=bundle.sample_rate_hz,
        window_s=bundle.window_s,
        hop_s=bundle.hop_s,
        tags=[
            TagMeaning(tag=tag, meaning=bundle.meanings.get(tag, ""), threshold=bundle.thresholds[tag])
            for tag in bundle.tags
        ],
        metrics=bundle.metrics,
    )
