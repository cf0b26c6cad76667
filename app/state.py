"""What the parts of one running application share; everything else is handed to them."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, cast

from fastapi import Depends, Request

from app.logs import logger
from app.metrics import Metrics
from app.pipeline import Pipeline
from app.problems import ProblemError
from app.settings import Settings
from model.tagger import Tagger


class State:
    """One application's settings, metrics and pipeline, and what it has admitted; for the event loop only."""

    def __init__(self, settings: Settings, on_failure: Callable[[], None]) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.tagger: Tagger | None = None  # to be served; without one, the start loads it
        self.loaded: Pipeline | None = None
        self.warm = False
        self.draining = False
        self.stopping = asyncio.Event()  # as `draining`, for those who wait for it
        self.out_of_time = asyncio.Event()  # the grace time is over: all work is dropped
        self.failed = False
        self.admitted = 0
        self.inflight_bytes = 0
        self.listeners = 0
        self.one_json_body = asyncio.Lock()
        self._timeouts: set[asyncio.Timeout] = set()
        self._on_failure = on_failure
        self._watch()

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline. Raises ProblemError before it is loaded."""
        if self.loaded is None:
            raise ProblemError("not-ready", "The model is not loaded.", retry_after_s=1)
        return self.loaded

    @contextmanager
    def cut_short(self, timeout: asyncio.Timeout) -> Iterator[None]:
        """Let a timeout pass when the grace time is over, within the block."""
        self._timeouts.add(timeout)
        if self.out_of_time.is_set():
            timeout.reschedule(0)
        try:
            yield
        finally:
            self._timeouts.discard(timeout)

    def end_grace(self) -> None:
        """Drop all work, and what waits for bodies."""
        self.out_of_time.set()
        for timeout in self._timeouts:
            if not timeout.expired():
                timeout.reschedule(0)

    def fail(self) -> None:
        """The service cannot come back by itself: take no more work and let the process end. Thread-safe."""
        logger.critical("the service cannot recover and stops, to be replaced")
        self.failed = True
        self._on_failure()

    def refusal(self) -> ProblemError | None:
        """Why new work is refused, if it is: the truth that /health/ready tells."""
        if self.draining:
            return ProblemError("draining", retry_after_s=1)
        reason = self._unready()
        return ProblemError("not-ready", reason, retry_after_s=1) if reason else None

    def _unready(self) -> str | None:
        if self.loaded is None:
            return "The model is not loaded."
        if self.failed or (self.warm and not self.loaded.batcher.alive):
            return "The worker died."
        if not self.warm:
            return "The model is warming up."
        if (waited := self.loaded.oldest_wait_s()) > self.settings.max_wait_s:
            return f"The oldest work has waited {waited:.0f} s; {self.settings.max_wait_s:g} s is the bound."
        return None

    def retry_after_s(self) -> int:
        """Whole seconds in which all admitted work is done at the measured rate."""
        return self.loaded.batcher.retry_after_s() if self.loaded else 1

    def _watch(self) -> None:
        self.metrics.inflight_bytes.set_function(lambda: self.inflight_bytes)
        self.metrics.listeners.set_function(lambda: self.listeners)
        self.metrics.queue_depth.set_function(lambda: self.loaded.batcher.depth if self.loaded else 0)
        self.metrics.admitted.set_function(lambda: self.loaded.batcher.reserved if self.loaded else 0)
        self.metrics.queue_age.set_function(lambda: self.loaded.oldest_wait_s() if self.loaded else 0)
        self.metrics.decoder_memory.set_function(
            lambda: self.loaded.decoder_memory_bytes() if self.loaded else 0
        )
        self.metrics.workers.set_function(lambda: int(self.loaded is not None and self.loaded.batcher.alive))
        self.metrics.ready.set_function(lambda: int(self.refusal() is None))


async def state_of(request: Request) -> State:
    """Hand a route its application's state; asynchronous, as FastAPI would take a thread for it otherwise."""
    return cast(State, request.app.state.tagger_service)


WithState = Annotated[State, Depends(state_of)]
