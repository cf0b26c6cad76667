"""The clients: `Client` for ordinary programs, `AsyncClient`, with the same methods, for asyncio and Trio."""

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Self

import anyio
import anyio.to_thread
import httpx
from tenacity import AsyncRetrying, Retrying

from music_tagger_client.problem import Problem, problem_in
from music_tagger_client.results import Model, Tagging, batch_in
from music_tagger_client.retries import Deadline, policy
from music_tagger_client.upload import Body, Clip, form_body, raw_body

URL: Final = "http://127.0.0.1:8000"
LATE: Final = (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout)


class Client:
    """A client of one service; threads may share it. Close it, or use it in a `with` statement.

    Every method may raise `Problem` (the service refused or failed), TimeoutError (no answer in time),
    httpx.TransportError (it cannot be reached), and ValueError (what answered is no music-tagger). Requests
    that met 429, 502, 503 or a broken connection are sent again, not before Retry-After says so, unless they
    send a stream that cannot be rewound.

    Args:
        url: where the service is; else MUSIC_TAGGER_URL from the environment, else http://127.0.0.1:8000.
        key: the API key, where the service asks for one; else MUSIC_TAGGER_KEY from the environment.
        timeout: seconds for each call, with all its attempts and pauses. The service is told how many are
            left, and drops work that nobody waits for any more.
        attempts: most times that a request is sent.

    Raises ValueError if the key cannot be one, or stands beside a user in the URL.
    """

    def __init__(
        self, url: str | None = None, *, key: str | None = None, timeout: float = 120.0, attempts: int = 5
    ) -> None:
        self._http = httpx.Client(**_service(url, key))
        self._timeout = timeout
        self._attempts = attempts

    def tag(
        self,
        clip: Clip,
        *,
        windows: bool = False,
        threshold: float | Mapping[str, float] | None = None,
        start_s: float = 0.0,
        duration_s: float | None = None,
        timeout: float | None = None,
    ) -> Tagging:
        """Tag one clip, sent in pieces: it is never held whole, and its name is not sent.

        Args:
            clip: a path, a file's bytes, or a file opened for reading bytes, sent from where it stands.
            windows: add the timeline.
            threshold: from which score a tag is present, in [0, 1], for all tags or by tag; else the model's.
            start_s: skip so many seconds.
            duration_s: listen to so many seconds at most.
            timeout: seconds for this call instead of the client's own.

        Raises OSError if the file cannot be read, and what the class names.
        """
        query = _query(windows, threshold, start_s, duration_s)
        with raw_body(clip) as body:
            answer = self._send("POST", "/v1/tags", query=query, body=body, timeout=timeout)
        return Tagging.model_validate_json(answer.content)

    def tag_batch(
        self,
        clips: Sequence[Clip],
        *,
        windows: bool = False,
        threshold: float | Mapping[str, float] | None = None,
        start_s: float = 0.0,
        duration_s: float | None = None,
        timeout: float | None = None,
    ) -> list[Tagging | Problem]:
        """Tag several clips in one request: in their order, each one's result, or the problem it met.

        The service bounds how many; 32 as it comes. Arguments and errors are those of `tag`.
        """
        query = _query(windows, threshold, start_s, duration_s)
        with form_body(clips) as body:
            return batch_in(self._send("POST", "/v1/tags/batch", query=query, body=body, timeout=timeout))

    def model(self, *, timeout: float | None = None) -> Model:
        """Describe the model that serves: its tags and what they mean, thresholds, metrics."""
        return Model.model_validate_json(self._send("GET", "/v1/model", timeout=timeout).content)

    def ready(self, *, timeout: float | None = None) -> bool:
        """Tell whether the service takes work now; asks once."""
        try:
            self._send("GET", "/health/ready", timeout=timeout, attempts=1)
        except Problem as problem:
            if problem.status == httpx.codes.SERVICE_UNAVAILABLE:
                return False
            raise
        return True

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        timeout: float | None = None,
        attempts: int | None = None,
    ) -> httpx.Response:
        seconds = self._timeout if timeout is None else timeout
        deadline = Deadline(seconds)

        def attempt() -> httpx.Response:
            options = _options(deadline, query, body)
            bounds = options["extensions"]["timeout"]
            pieces = _in_time(body.pieces(), deadline, bounds) if body else None
            with self._http.stream(method, path, content=pieces, **options) as answer:
                found = b"".join(_in_time(answer.iter_raw(), deadline, bounds))
            return _checked(httpx.Response(answer.status_code, headers=answer.headers, content=found))

        again = Retrying(
            **policy(attempts or self._attempts, seconds, rewindable=not body or body.rewindable)
        )
        try:
            return again(attempt)
        except Problem as problem:
            if deadline.is_why(problem):
                raise deadline.late() from problem
            raise
        except LATE as error:
            raise deadline.late() from error


class AsyncClient:
    """`Client` for asynchronous programs: the same arguments and errors; files are read in threads."""

    def __init__(
        self, url: str | None = None, *, key: str | None = None, timeout: float = 120.0, attempts: int = 5
    ) -> None:
        self._http = httpx.AsyncClient(**_service(url, key))
        self._timeout = timeout
        self._attempts = attempts

    async def tag(
        self,
        clip: Clip,
        *,
        windows: bool = False,
        threshold: float | Mapping[str, float] | None = None,
        start_s: float = 0.0,
        duration_s: float | None = None,
        timeout: float | None = None,
    ) -> Tagging:
        """Tag one clip, as `Client.tag`."""
        query = _query(windows, threshold, start_s, duration_s)
        with raw_body(clip) as body:
            answer = await self._send("POST", "/v1/tags", query=query, body=body, timeout=timeout)
        return Tagging.model_validate_json(answer.content)

    async def tag_batch(
        self,
        clips: Sequence[Clip],
        *,
        windows: bool = False,
        threshold: float | Mapping[str, float] | None = None,
        start_s: float = 0.0,
        duration_s: float | None = None,
        timeout: float | None = None,
    ) -> list[Tagging | Problem]:
        """Tag several clips in one request, as `Client.tag_batch`."""
        query = _query(windows, threshold, start_s, duration_s)
        with form_body(clips) as body:
            answer = await self._send("POST", "/v1/tags/batch", query=query, body=body, timeout=timeout)
        return batch_in(answer)

    async def model(self, *, timeout: float | None = None) -> Model:
        """Describe the model that serves, as `Client.model`."""
        return Model.model_validate_json((await self._send("GET", "/v1/model", timeout=timeout)).content)

    async def ready(self, *, timeout: float | None = None) -> bool:
        """Tell whether the service takes work now; asks once."""
        try:
            await self._send("GET", "/health/ready", timeout=timeout, attempts=1)
        except Problem as problem:
            if problem.status == httpx.codes.SERVICE_UNAVAILABLE:
                return False
            raise
        return True

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        timeout: float | None = None,
        attempts: int | None = None,
    ) -> httpx.Response:
        seconds = self._timeout if timeout is None else timeout
        deadline = Deadline(seconds)

        async def attempt() -> httpx.Response:
            options = _options(deadline, query, body)
            pieces = _in_threads(body) if body else None
            return _checked(await self._http.request(method, path, content=pieces, **options))

        again = AsyncRetrying(
            sleep=anyio.sleep,
            **policy(attempts or self._attempts, seconds, rewindable=not body or body.rewindable),
        )
        try:
            with anyio.fail_after(seconds):
                return await again(attempt)
        except Problem as problem:
            if deadline.is_why(problem):
                raise deadline.late() from problem
            raise
        except (*LATE, TimeoutError) as error:
            raise deadline.late() from error


def _service(url: str | None, key: str | None) -> dict[str, Any]:
    """What httpx is told of the service. Raises ValueError."""
    base = httpx.URL(url or os.environ.get("MUSIC_TAGGER_URL") or URL)
    headers = _headers(key)
    if base.userinfo and headers:  # httpx would send the user, and no key
        raise ValueError("The URL names a user, and there is a key, too: only one of them can be sent.")
    return {"base_url": base, "headers": headers}


def _headers(key: str | None) -> dict[str, str]:
    key = (key or os.environ.get("MUSIC_TAGGER_KEY") or "").strip()
    if not key.isprintable() or not key.isascii():  # the network library would print it
        raise ValueError("The key holds a character that no key can hold; copy it again.")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _query(
    windows: bool,
    threshold: float | Mapping[str, float] | None,
    start_s: float,
    duration_s: float | None,
) -> dict[str, str]:
    """The query of /v1/tags, without what the service takes for granted."""
    asked = {
        "windows": "true" if windows else None,
        "threshold": _pairs(threshold) if isinstance(threshold, Mapping) else threshold,
        "start_s": start_s or None,
        "duration_s": duration_s,
    }
    return {name: str(value) for name, value in asked.items() if value is not None}


def _pairs(thresholds: Mapping[str, float]) -> str | None:
    return ",".join(f"{tag}:{number}" for tag, number in thresholds.items()) or None


def _options(deadline: Deadline, query: Mapping[str, str] | None, body: Body | None) -> dict[str, Any]:
    """What httpx is told for one attempt besides the content. Raises TimeoutError."""
    headers = {**(body.headers if body else {}), "X-Request-Timeout": f"{deadline.left_s():.3f}"}
    return {"params": query, "headers": headers, "extensions": {"timeout": deadline.allows().as_dict()}}


def _in_time(pieces: Iterable[bytes], deadline: Deadline, bounds: dict[str, float | None]) -> Iterator[bytes]:
    """The pieces; with each, the bound of what is read next. Raises TimeoutError."""
    for piece in pieces:
        bounds["read"] = deadline.left_s()
        yield piece


async def _in_threads(body: Body) -> AsyncIterator[bytes]:
    """The body's pieces. A stream may have none for ever: its thread is left alone when time is up."""
    pieces = iter(body.pieces())
    leave = not body.rewindable
    while piece := await anyio.to_thread.run_sync(next, pieces, b"", abandon_on_cancel=leave):
        yield piece


def _checked(answer: httpx.Response) -> httpx.Response:
    """The answer, if it is a good one. Raises Problem."""
    if not answer.is_success:
        raise problem_in(answer)
    return answer
