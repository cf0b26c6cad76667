"""What the service answers, as its wire contract says; fields that are newer than this client are let by."""

from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict

from music_tagger_client.problem import Members, Problem, problem_of


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class TagScore(_Result):
    """One tag's answer."""

    tag: str
    score: float
    """Calibrated probability that the tag applies, in [0, 1]."""
    present: bool
    """Whether score >= threshold."""
    threshold: float


class Window(_Result):
    """The scores of one stretch of the clip; neighbours overlap."""

    start_s: float
    end_s: float
    scores: dict[str, float]


class Audio(_Result):
    """What was found in the clip."""

    format: str
    codec: str
    sample_rate_hz: int
    channels: int
    duration_s: float
    analysed_s: float


class ModelName(_Result):
    """Which model answered."""

    name: str
    version: str
    sha256: str


class Timing(_Result):
    """Where the service's time went, in milliseconds; the steps overlap."""

    decode: float
    queue: float
    inference: float
    total: float


class Tagging(_Result):
    """The answer to one clip."""

    tags: tuple[TagScore, ...]
    """In the model's order. They do not exclude each other: the scores do not sum to one."""
    windows: tuple[Window, ...] | None = None
    """The timeline, if it was asked for."""
    audio: Audio
    model: ModelName
    timing_ms: Timing

    @property
    def scores(self) -> dict[str, float]:
        """Each tag's score."""
        return {tag.tag: tag.score for tag in self.tags}

    @property
    def present(self) -> tuple[str, ...]:
        """The tags whose score reaches their threshold."""
        return tuple(tag.tag for tag in self.tags if tag.present)


class TagMeaning(_Result):
    """One tag of the model."""

    tag: str
    meaning: str
    threshold: float


class Model(_Result):
    """The model that serves."""

    name: str
    version: str
    sha256: str
    device: str
    engine: str
    precision: str
    sample_rate_hz: int
    window_s: float
    hop_s: float
    tags: tuple[TagMeaning, ...]
    metrics: dict[str, Any]
    """Measured on held-out clips."""


class _BatchItem(_Result):
    result: Tagging | None = None
    problem: Members | None = None
    retry_after_s: float | None = None


class _Batch(_Result):
    items: tuple[_BatchItem, ...]


def batch_in(response: httpx.Response) -> list[Tagging | Problem]:
    """Read the answers to a batch's clips, in their order."""
    items = _Batch.model_validate_json(response.content).items
    request_id = response.headers.get("x-request-id", "")
    return [
        item.result or problem_of(item.problem or Members(), request_id, item.retry_after_s) for item in items
    ]
