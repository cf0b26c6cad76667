"""The wire contract, v1: the query that goes in and the JSON that comes out, whatever the bundle's tags.

Models that name tags have no example here: theirs are made of the tags that are served (see `app.examples`).
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from model.audio import MOST_S

Score = Annotated[float, Field(ge=0, le=1)]
TagName = Annotated[str, Field(description="The tag's name.")]
Scores = Annotated[dict[str, Score], Field(description="The score of each tag.")]
Seconds = Annotated[float, Field(ge=0)]
Milliseconds = Annotated[float, Field(ge=0)]
EMPTY_IS_NONE: Final = BeforeValidator(lambda value: None if value == "" else value)
"""`?name=` is how many clients send a parameter that is not given."""

AUDIO: Final = {
    "format": "mp3",
    "codec": "mp3",
    "sample_rate_hz": 44100,
    "channels": 2,
    "duration_s": 213.4,
    "analysed_s": 213.4,
}
TIMING: Final = {"decode": 61.2, "queue": 3.1, "inference": 40.7, "total": 106.0}
PROBLEM: Final = {
    "type": "/problems/too-short",
    "title": "The clip is too short",
    "status": 422,
    "detail": "Only 0.05 s of sound could be read, at least 1.00 s are needed.",
    "instance": "/v1/tags#2f1c7a5e9b0d4c3f8a6e1d2b3c4f5a60",
    "hint": "Send a longer clip, or choose a longer part of it.",
}


def _example(example: dict[str, Any], extra: Literal["ignore", "forbid"] = "ignore") -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]}, extra=extra)


class TagQuery(BaseModel):
    """How to tag the clip; a name that is not listed here is refused, so that no typing error goes unseen."""

    model_config = _example({"windows": True, "threshold": "0.5"}, extra="forbid")

    windows: bool = Field(
        default=False, description="Add the timeline: the scores of every window.", examples=[True]
    )
    threshold: Annotated[str | None, EMPTY_IS_NONE] = Field(
        default=None,
        max_length=2000,
        description="From which score a tag is present: one number for all (`0.5`), or by tag "
        "(`TAG:0.6,TAG:0.4`); the others keep the model's own.",
        examples=["0.5"],
    )
    start_s: float = Field(
        default=0.0,
        ge=0,
        le=MOST_S,
        allow_inf_nan=False,
        description="Skip so many seconds.",
        examples=[30],
    )
    duration_s: Annotated[float | None, EMPTY_IS_NONE] = Field(
        default=None,
        gt=0,
        le=MOST_S,
        allow_inf_nan=False,
        description="Listen to so many seconds at most; empty: to the end.",
        examples=[60],
    )


class TagScore(BaseModel):
    """One tag's answer. Tags do not exclude each other: the scores do not sum to one."""

    tag: TagName
    score: Score = Field(description="Calibrated probability that the tag applies.")
    present: bool = Field(description="Whether score >= threshold.")
    threshold: Score = Field(description="The model's own, or as the request said.")


class Window(BaseModel):
    """The scores of one stretch of the clip; neighbours overlap."""

    start_s: Seconds = Field(description="From the beginning of the clip.")
    end_s: Seconds = Field(description="From the same.")
    scores: Scores


class Audio(BaseModel):
    """What was found in the clip."""

    model_config = _example(AUDIO)

    format: str = Field(description="Container, told by content.")
    codec: str = Field(description="How the sound is coded in it.")
    sample_rate_hz: int = Field(description="Of the clip, before resampling.", gt=0)
    channels: int = Field(description="Of the clip; their mean is what is listened to.", gt=0)
    duration_s: Seconds = Field(description="Length of the clip.")
    analysed_s: Seconds = Field(description="How much of it was listened to.")


class ModelName(BaseModel):
    """Which model answered."""

    name: str = Field(description="The bundle's name.")
    version: str = Field(description="The bundle's version.")
    sha256: str = Field(description="Of the weights.")


class Timing(BaseModel):
    """Where the time went, in milliseconds. The steps overlap, so the parts need not sum to total."""

    model_config = _example(TIMING)

    decode: Milliseconds = Field(description="A decoder spent on this clip.")
    queue: Milliseconds = Field(description="Waiting for a decoder, and the longest wait for the device.")
    inference: Milliseconds = Field(
        description="This clip's share of the forward passes that it was part of."
    )
    total: Milliseconds = Field(description="From the request's headers to this answer, upload included.")


class TagResponse(BaseModel):
    """The answer to one clip."""

    tags: list[TagScore] = Field(description="In the model's order.")
    windows: list[Window] | None = Field(default=None, description="Only with `windows=true`.")
    audio: Audio = Field(description="What was found in the clip.")
    model: ModelName = Field(description="Which model answered.")
    timing_ms: Timing = Field(description="Where the time went, in milliseconds.")


class BatchItem(BaseModel):
    """One clip of a batch: a result, or the problem that kept it from one."""

    model_config = _example({"index": 1, "status": 422, "problem": PROBLEM})

    index: int = Field(ge=0, description="Which of the request's clips, counted from 0.")
    status: int = Field(description="The status that this clip would have got alone.")
    result: TagResponse | None = Field(default=None, description="Only with status 200.")
    problem: "Problem | None" = Field(default=None, description="Only with another status.")
    retry_after_s: int | None = Field(
        default=None, ge=1, description="Seconds after which to send this clip again, where waiting helps."
    )


class BatchResponse(BaseModel):
    """The answers to all clips of a batch, in the request's order."""

    items: list[BatchItem] = Field(description="One for each clip.")


class StreamStart(BaseModel):
    """The first message of a stream: what follows as binary messages."""

    model_config = _example({"encoding": "pcm_s16le", "sample_rate_hz": 44100}, extra="forbid")

    encoding: Literal["pcm_s16le", "container"] = Field(
        description="pcm_s16le: mono samples of 16 bits, little-endian. container: the bytes of a file in "
        "any format that is known here, told by content, in pieces of any size."
    )
    sample_rate_hz: int | None = Field(
        default=None, ge=4_000, le=192_000, description="Of pcm_s16le, which cannot tell it itself."
    )
    threshold: str | None = Field(default=None, max_length=2000, description="As in the query of /v1/tags.")
    key: str | None = Field(
        default=None,
        max_length=2000,
        repr=False,
        description="The API key, for those who cannot send it as a header: web pages.",
    )

    @model_validator(mode="after")
    def _check_rate(self) -> Self:
        if (self.encoding == "pcm_s16le") != (self.sample_rate_hz is not None):
            raise ValueError("sample_rate_hz belongs to pcm_s16le, and to it alone")
        return self


class StreamEnd(BaseModel):
    """The last message of a stream: what was sent is all there is."""

    model_config = _example({"end": True}, extra="forbid")

    end: Literal[True] = Field(description="Nothing more is sent.")


class StreamWindow(BaseModel):
    """Told at every hop: the scores of the last two segments; of the first one alone after the first hop."""

    event: Literal["window"] = Field(description="Which message this is.")
    start_s: Seconds = Field(description="From the beginning of the stream.")
    end_s: Seconds = Field(description="From the same.")
    scores: Scores
    present: dict[str, bool] = Field(description="Whether score >= threshold.")
    latency_ms: Milliseconds = Field(
        description="From the arrival of the message that completed the window to this answer."
    )


class StreamFinal(BaseModel):
    """Told after the end: the scores of the whole stream."""

    event: Literal["final"] = Field(description="Which message this is.")
    tags: list[TagScore] = Field(description="In the model's order.")
    audio: Audio = Field(description="What was found in the clip.")
    model: ModelName = Field(description="Which model answered.")


class Label(BaseModel):
    """One tag's score as `huggingface_hub` names it."""

    label: TagName
    score: Score = Field(description="Calibrated probability that the tag applies.")


class LabelQuery(BaseModel):
    """How many labels to answer."""

    model_config = _example({"top_k": 2}, extra="forbid")

    top_k: Annotated[int | None, EMPTY_IS_NONE] = Field(
        default=None, ge=1, description="So many labels at most; empty: all.", examples=[2]
    )


class LabelParameters(LabelQuery):
    """The parameters as `huggingface_hub` sends them."""

    model_config = _example({"top_k": 2, "function_to_apply": "sigmoid"}, extra="forbid")

    function_to_apply: Literal["sigmoid"] | None = Field(
        default=None, description="Tags do not exclude each other, so it can only be the sigmoid."
    )


class LabelRequest(BaseModel):
    """The JSON body that `huggingface_hub` sends when there are parameters."""

    model_config = _example({"inputs": "UklGRiQAAABXQVZF", "parameters": {"top_k": 2}}, extra="forbid")

    inputs: str = Field(
        description="The clip, in base64.",
        json_schema_extra={"format": "byte", "contentEncoding": "base64"},
    )
    parameters: LabelParameters = Field(default=LabelParameters(), description="What is asked of them.")


class TagMeaning(BaseModel):
    """One tag of the model."""

    tag: TagName
    meaning: str = Field(description="When it applies; empty if the bundle does not say.")
    threshold: Score = Field(description="From which score it is present, unless a request says otherwise.")


class ModelResponse(BaseModel):
    """The model that serves."""

    name: str = Field(description="The bundle's name.")
    version: str = Field(description="The bundle's version.")
    sha256: str = Field(description="Of the weights.")
    device: str = Field(description="Where the network runs: cpu, mps or cuda.")
    engine: str = Field(description="What computes the network: torch or openvino.")
    precision: str = Field(description="In which numbers: fp32 or bf16.")
    sample_rate_hz: int = Field(description="To which every clip is resampled.")
    window_s: float = Field(description="Seconds that one score of the timeline covers.")
    hop_s: float = Field(description="Seconds from one window's start to the next one's.")
    tags: list[TagMeaning] = Field(description="In the order of every answer.")
    metrics: dict[str, Any] = Field(description="Measured on held-out clips, as stored beside the weights.")


class Health(BaseModel):
    """The state of this instance."""

    model_config = _example({"status": "ready"})

    status: Literal["live", "ready"] = Field(description="What it is.")


class Problem(BaseModel):
    """A failure, after RFC 9457, with a hint that says what to do next."""

    model_config = _example(PROBLEM)

    type: str = Field(description="Which problem: a relative URI that describes it.")
    title: str = Field(description="The same for every occurrence of the type.")
    status: int = Field(ge=400, le=599, description="The HTTP status.")
    detail: str = Field(description="What was wrong this time.")
    instance: str = Field(description="The path and the request's id, which the log names too.")
    hint: str = Field(description="What to do next.")


class StreamProblem(Problem):
    """Told when a stream fails, before it is closed."""

    model_config = _example(
        {"event": "problem", **PROBLEM, "instance": str(PROBLEM["instance"]).replace("tags", "stream")}
    )

    event: Literal["problem"] = Field(description="Which message this is.")
    retry_after_s: int | None = Field(default=None, ge=1, description="Seconds after which to try again.")
