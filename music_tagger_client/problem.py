"""A failure that was answered: RFC 9457's members, and what the service adds to them."""

import http
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from pydantic import BaseModel, ValidationError


class Members(BaseModel):
    """The members of `application/problem+json`, with the defaults that RFC 9457 gives them."""

    type: str = "about:blank"
    title: str = ""
    status: int | None = None
    detail: str = ""
    instance: str = ""
    hint: str = ""


class Problem(Exception):  # noqa: N818 - RFC 9457's own word
    """The service, or a proxy before it, refused a request or failed.

    Attributes:
        type: which problem, as in `/problems/queue-full`; `about:blank` if a proxy answered.
        title: the same for every occurrence of the type.
        status: the HTTP status.
        detail: what was wrong this time.
        instance: the path and the request's id.
        hint: what to do next.
        request_id: the id under which the service's log holds the request.
        retry_after_s: seconds after which to try again, if that was told.
    """

    def __init__(self, members: Members, status: int, request_id: str, retry_after_s: float | None) -> None:
        super().__init__(members, status, request_id, retry_after_s)
        self.type = members.type
        self.title = members.title or phrase(status)
        self.status = status
        self.detail = members.detail
        self.instance = members.instance
        self.hint = members.hint
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        """The problem in one line for people."""
        words = " ".join(part for part in (f"{self.title}:", self.detail, self.hint) if part)
        return f"{words} ({self.status} {self.type}, request {self.request_id or 'unknown'})"


def problem_in(response: httpx.Response) -> Problem:
    """Read a problem from an answer, whoever gave it."""
    try:
        members = Members.model_validate_json(response.content)
    except ValidationError:
        members = Members()
    if not (members.title or members.detail):  # a proxy's own words
        members = members.model_copy(update={"detail": response.text[:200].strip()})
    return Problem(
        members,
        response.status_code,
        response.headers.get("x-request-id", ""),
        seconds_until(response.headers.get("retry-after", ""), datetime.now(UTC)),
    )


def problem_of(members: Members, request_id: str, retry_after_s: float | None) -> Problem:
    """Make a problem of one that stands inside an answer: a clip's of a batch."""
    return Problem(members, members.status or 500, request_id, retry_after_s)


def seconds_until(retry_after: str, now: datetime) -> float | None:
    """Read Retry-After, seconds or an HTTP date (RFC 9110, 10.2.3); none if it is neither."""
    if re.fullmatch(r"[0-9]+", retry_after):
        return float(retry_after)
    try:
        moment = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)  # "-0000": UTC of no known zone
    return max(0.0, (moment - now).total_seconds())


def phrase(status: int) -> str:
    """The status in words."""
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"
