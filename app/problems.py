"""Every failure of the service: one table, one exception, one way to answer (RFC 9457 and a hint).

To add a failure, add a row to `PROBLEMS`; raise it with `ProblemError(slug)`, and name its slug in the
`responses_for(...)` of each operation that can answer it.
"""

import errno
import http
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from app.logs import logger
from app.schemas import Problem
from model.audio import (
    AudioError,
    AudioTooLongError,
    AudioTooShortError,
    EmptyAudioError,
    NotAudioError,
    SilentAudioError,
    UndecodableAudioError,
)

MEDIA_TYPE: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of failure: its status, and its words where an occurrence has no better ones."""

    status: int
    title: str
    detail: str
    hint: str


SEND_FILE: Final = "Send the clip as the multipart field `file` (curl -F file=@song.mp3), or as the raw body."
LATER: Final = "Send the request again after the seconds that Retry-After names."

PROBLEMS: Final[Mapping[str, Kind]] = {
    "no-clip": Kind(400, "There is no clip", "The form has no field named `file`.", SEND_FILE),
    "empty-clip": Kind(
        400, "The clip is empty", "The clip is empty: it has no bytes.", "Check the file and send it again."
    ),
    "malformed-multipart": Kind(
        400,
        "The multipart body is malformed",
        "The body ended before the closing boundary.",
        "Let the HTTP client build the form, Content-Type header with its boundary included.",
    ),
    "bad-json": Kind(
        400,
        "The JSON body is malformed",
        "The body is not JSON.",
        'Send {"inputs": CLIP_IN_BASE64, "parameters": {"top_k": 2}}, or the clip itself as the raw body.',
    ),
    "bad-combination": Kind(
        400,
        "The parameters do not fit together",
        "threshold gives both one number for all tags and numbers by tag.",
        "Give `threshold=0.5`, or `threshold=TAG:0.6,TAG:0.4`, and each parameter once.",
    ),
    "bad-request": Kind(
        400,
        "The request cannot be understood",
        "The request is not valid HTTP.",
        "See /docs for the operations.",
    ),
    "key-missing": Kind(
        401,
        "A key is needed",
        "The request bears no API key.",
        "Send the header `Authorization: Bearer KEY` with the key that the operator gave you.",
    ),
    "key-wrong": Kind(
        403,
        "The key is wrong",
        "The API key is not known here.",
        "Ask the operator of this service for a valid key.",
    ),
    "origin": Kind(
        403,
        "Pages of this origin may not listen here",
        "The Origin header names another site than this service's own page.",
        "Ask the operator to name the origin in TAGGER_CORS_ORIGINS.",
    ),
    "not-found": Kind(
        404, "There is nothing here", "No operation has this path.", "See /docs for the operations."
    ),
    "method-not-allowed": Kind(
        405,
        "The method does not fit the path",
        "This path does not take this method.",
        "Use a method that the Allow header names; see /docs.",
    ),
    "slow-body": Kind(
        408,
        "The body arrives too slowly",
        "No byte of the body arrived for 10 s.",
        "Send it again over a faster line, or send a smaller file: MP3 or Opus instead of WAV.",
    ),
    "stream-idle": Kind(
        408,
        "The stream stands still",
        "No message arrived for 15 s.",
        'Send sound as it comes, {"end": true} at its end, and open a new stream after a pause.',
    ),
    "too-many-bytes": Kind(
        413,
        "The upload is too large",
        "The body has more than 128 MB.",
        "Send a compressed file (MP3, Opus, M4A) or a part of the song.",
    ),
    "too-many-seconds": Kind(
        413,
        "The clip is too long",
        "The clip is longer than 7200 s.",
        "Cut it, or choose a part of at most 7200 s with start_s and duration_s.",
    ),
    "too-many-clips": Kind(
        413,
        "Too many clips in one request",
        "The form has more than 32 fields named `file`.",
        "Spread the clips over several requests.",
    ),
    "not-audio": Kind(
        415,
        "Unsupported audio format",
        "The clip is not in a supported audio format.",
        "Send a WAV, FLAC, MP3, OGG, Opus, M4A, AAC, WebM or AIFF file with a sound track.",
    ),
    "media-type": Kind(
        415,
        "The body's media type does not fit",
        "Content-Type is application/json.",
        "Send multipart/form-data with the field `file`, or the clip as the raw body with "
        "`Content-Type: application/octet-stream`.",
    ),
    "undecodable": Kind(
        422,
        "The audio cannot be decoded",
        "The clip is damaged or cut off before its sound.",
        "Play the file to check it, then export or upload it again as a whole.",
    ),
    "too-short": Kind(
        422,
        "The clip is too short",
        "Only 0.05 s of sound could be read, at least 1.00 s are needed.",
        "Send a longer clip, or choose a longer part of it.",
    ),
    "silent": Kind(
        422,
        "The clip is silent",
        "The clip is silent: all 30.00 s of it are below -70 dBFS.",
        "Check that the right track was exported and that its volume is not at zero.",
    ),
    "bad-parameter": Kind(
        422,
        "A parameter is not valid",
        "threshold: `high` is not a number from 0 to 1.",
        "Correct the parameter that the detail names; see /docs.",
    ),
    "queue-full": Kind(429, "The queue is full", "As much work is admitted as the service can hold.", LATER),
    "bytes-full": Kind(
        429, "Too many uploads at once", "As many bytes are held as the service can hold.", LATER
    ),
    "listeners-full": Kind(
        429, "Too many streams at once", "As many streams are open as the service can hold.", LATER
    ),
    "internal": Kind(
        500,
        "The service failed",
        "An unexpected failure; the log holds it under this request's id.",
        "Send the request again; if it fails again, tell the operator the id in X-Request-ID.",
    ),
    "batch-failed": Kind(
        500,
        "The network failed on this clip's batch",
        "The forward pass that held a part of this clip failed.",
        "Send the clip again; if it fails again, tell the operator the id in X-Request-ID.",
    ),
    "not-ready": Kind(503, "The service is not ready", "The model is warming up.", LATER),
    "draining": Kind(503, "The service is stopping", "This instance takes no new work.", LATER),
    "late-in-queue": Kind(
        503,
        "The deadline passed in the queue",
        "The work had not begun after 120 s.",
        "Send it again after the seconds that Retry-After names, or give it more time by X-Request-Timeout.",
    ),
    "late-at-work": Kind(
        504,
        "The deadline passed while working",
        "The clip was not done after 120 s.",
        "Give the request more time by X-Request-Timeout, or choose a part with start_s and duration_s.",
    ),
}

AUDIO_PROBLEMS: Final[Mapping[type[AudioError], str]] = {
    EmptyAudioError: "empty-clip",
    NotAudioError: "not-audio",
    UndecodableAudioError: "undecodable",
    AudioTooShortError: "too-short",
    AudioTooLongError: "too-many-seconds",
    SilentAudioError: "silent",
}
MOST_FINDINGS: Final = 10
MOST_NAME: Final = 100
"""Characters that are told of the name of a parameter that is not known."""
_BY_STATUS: Final = {404: "not-found", 405: "method-not-allowed"}
_EVERYWHERE: Final = ("internal",)
_KEYS: Final = ("key-missing", "key-wrong")


class ProblemError(Exception):
    """A failure to be answered: a row of `PROBLEMS`, with what is known of this occurrence.

    `retry_after_s` (whole seconds) becomes the Retry-After header.
    """

    def __init__(
        self,
        slug: str,
        detail: str | None = None,
        *,
        hint: str | None = None,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.slug = slug
        self.kind = PROBLEMS[slug]
        self.detail = detail or self.kind.detail
        self.hint = hint or self.kind.hint
        self.headers = dict(headers or {})
        self.retry_after_s = retry_after_s
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)
        super().__init__(f"{slug}: {self.detail}")


@contextmanager
def refused_if_no_file_is_left() -> Iterator[None]:
    """Raise ProblemError where the block fails as the process may open no more files."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        detail = "As many files are open as the service may open."
        raise ProblemError("bytes-full", detail, retry_after_s=1) from error


def problem_of(slug: str, detail: str, hint: str, instance: str) -> Problem:
    """Fill in the wire form of one failure."""
    kind = PROBLEMS[slug]
    return Problem(
        type=f"/problems/{slug}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=instance,
        hint=hint,
    )


def instance_of(scope: Scope) -> str:
    """The path and the request's id."""
    return f"{quote(scope.get('path', ''))}#{scope.get('state', {}).get('request_id', '')}"


def response_of(error: ProblemError, scope: Scope) -> Response:
    """Answer a failure, and note it as the request's outcome."""
    scope.setdefault("state", {})["outcome"] = error.slug
    body = problem_of(error.slug, error.detail, error.hint, instance_of(scope)).model_dump()
    return JSONResponse(body, error.kind.status, headers=error.headers, media_type=MEDIA_TYPE)


def log_unexpected(error: Exception, request_id: str) -> ProblemError:
    """Log a failure that nobody foresaw, under its request's id, and name it as such."""
    logger.error("unexpected failure", exc_info=error, extra={"request_id": request_id})
    return ProblemError("internal")


def from_audio(error: AudioError) -> ProblemError:
    """Map what the decoder found to its problem; the decoder's own words are kept."""
    slug = next(
        (AUDIO_PROBLEMS[kind] for kind in type(error).__mro__ if kind in AUDIO_PROBLEMS), "undecodable"
    )
    return ProblemError(slug, str(error), hint=error.hint)


def _from_http(error: HTTPException) -> ProblemError:
    slug = _BY_STATUS.get(error.status_code, "bad-request" if error.status_code < 500 else "internal")
    detail = str(error.detail) if slug == "bad-request" else None
    return ProblemError(slug, detail, headers=error.headers)


def from_validation(errors: Iterable[Mapping[str, Any]]) -> ProblemError:
    """Name each parameter that is not valid, given what Pydantic found."""
    told = islice(errors, MOST_FINDINGS)  # whoever sends thousands of names need not be told of each
    return ProblemError("bad-parameter", "; ".join(map(_finding, told)))


def _finding(item: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"])[:MOST_NAME]
    what = str(item["msg"]).removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def install(app: FastAPI) -> None:
    """Turn every failure under this application, the framework's own too, into a problem."""

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemError)  # noqa: S101 - Starlette's handler type is wider than its promise
        return response_of(error, request.scope)

    async def on_audio(request: Request, error: Exception) -> Response:
        assert isinstance(error, AudioError)  # noqa: S101
        return response_of(from_audio(error), request.scope)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        return response_of(_from_http(error), request.scope)

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        within = ({**item, "loc": item["loc"][1:]} for item in error.errors())  # without "query", "path"
        return response_of(from_validation(within), request.scope)

    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(AudioError, on_audio)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)


def responses_for(*slugs: str, key: bool = True) -> dict[int | str, dict[str, Any]]:
    """Declare an operation's failures for OpenAPI: one example for each slug, gathered by status.

    `key`: whether the operation needs a key where keys are configured.
    """
    declared: dict[int | str, dict[str, Any]] = {}
    for slug in (*slugs, *(_KEYS if key else ()), *_EVERYWHERE):
        kind = PROBLEMS[slug]
        entry = declared.setdefault(kind.status, _empty_declaration(kind.status))
        example = problem_of(slug, kind.detail, kind.hint, "/v1/tags#2f1c7a5e9b0d4c3f8a6e1d2b3c4f5a60")
        entry["content"][MEDIA_TYPE]["examples"][slug] = {
            "summary": kind.title,
            "value": example.model_dump(),
        }
    return dict(sorted(declared.items(), key=lambda item: int(item[0])))


def _empty_declaration(status: int) -> dict[str, Any]:
    declaration: dict[str, Any] = {
        "description": http.HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
    }
    if status in (429, 503):
        declaration["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
        }
    return declaration
