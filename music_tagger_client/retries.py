"""When a request is sent again: the service is busy or restarts, or the network failed; never for long."""

import time
from typing import Any, Final

import httpx
from tenacity import (
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from music_tagger_client.problem import Problem

LATER: Final = frozenset({429, 502, 503})
"""502: of a proxy, while the service restarts behind it."""
BROKEN: Final = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
CONNECT_S: Final = 10.0
MOST_S: Final = 1e6
"""Longer than anybody waits; more than some systems can wait would be an error."""

# Up to 0.5, 1, 2, 4, 8 s: clients that were refused together do not come back together.
_spread: Final = wait_random_exponential(multiplier=0.5, max=8)


class Deadline:
    """The moment by which a call must be done, all its attempts and pauses included."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = time.monotonic() + min(seconds, MOST_S)

    def left_s(self) -> float:
        """Seconds that are left. Raises TimeoutError if there are none."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise self.late()
        return left

    def allows(self) -> httpx.Timeout:
        """The network's own bounds for one attempt. Raises TimeoutError."""
        left = self.left_s()
        return httpx.Timeout(left, connect=min(left, CONNECT_S))

    def is_why(self, problem: Problem) -> bool:
        """Whether the service met this deadline, which it is told, just before the client did."""
        return problem.status == httpx.codes.GATEWAY_TIMEOUT and time.monotonic() >= self._until

    def late(self) -> TimeoutError:
        """What is raised then."""
        return TimeoutError(f"There was no answer within {self._seconds:g} s.")


def policy(attempts: int, seconds: float, *, rewindable: bool) -> dict[str, Any]:
    """Tenacity's options, for Retrying and AsyncRetrying alike.

    No pause is begun that would end after `seconds`: the last failure is raised instead.
    """
    return {
        "retry": retry_if_exception(lambda error: rewindable and may_pass(error)),
        "wait": pause_s,
        "stop": stop_after_attempt(attempts) | stop_before_delay(seconds),
        "reraise": True,
    }


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    return isinstance(error, BROKEN) or (isinstance(error, Problem) and error.status in LATER)


def pause_s(state: RetryCallState) -> float:
    """Seconds before the next attempt: never fewer than Retry-After names, and a random part."""
    error = state.outcome.exception() if state.outcome else None
    told = error.retry_after_s if isinstance(error, Problem) else None
    return (told or 0.0) + _spread(state)
