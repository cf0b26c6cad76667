"""Gathers segments of many clips into one forward pass, fairly, within bounds, and survives what goes wrong.

A clip enters by `Batcher.admit`, which reserves its room in the queue, and gets a `Lane`; segments are put on
the lane one by one, each answered by a future. A worker thread serves the device, or several serve one that
takes several batches at once: it takes a few segments from each lane in turn, so that a long clip cannot
starve a short one, and waits at most a moment for a batch to fill.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.logs import logger
from model.segments import Segment

Embed = Callable[[NDArray[np.float32]], NDArray[np.float32]]

SEGMENTS_IN_A_ROW: Final = 8
"""Of one clip, before the next one's turn: 40 s, so that a clip of half a minute is done in one turn. With
one segment a turn, all clips that are there would be done together, as late as can be."""
DEATHS_WINDOW_S: Final = 300.0
MOST_FAILURES: Final = 16
"""Forward passes in a row. No clip makes one fail: after so many it is the device that does nothing more."""
RATE_BATCHES: Final = 64
RATE_CLIPS: Final = 64
"""Of so many clips the mean length tells how much work one is of which nothing is known yet."""
MAX_RETRY_AFTER_S: Final = 3600


class QueueFullError(RuntimeError):
    """There is no room for another clip, or for another batch where the device has a queue of its own."""


class BatchFailedError(RuntimeError):
    """The forward pass that held this segment failed, or its worker died in it."""


class StoppedError(RuntimeError):
    """The batcher stopped, or gave up its device, before this segment's turn came."""


@dataclass(frozen=True, slots=True)
class Row:
    """One segment's answer: its embedding [E], how long it waited, and its share of the pass, in seconds."""

    embedding: NDArray[np.float32]
    queued_s: float
    inference_s: float


@dataclass(slots=True)
class _Item:
    segment: Segment
    future: Future[Row] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


@dataclass(eq=False, slots=True)
class Lane:
    """One clip's place in the queue; `reserved` segments of the queue's room are its own until released."""

    batcher: "Batcher"
    reserved: int
    is_live: bool = False
    """Whether it need not wait for its turn: somebody is listening."""
    expected: int | None = None
    """Segments that are still to be done; none: nobody knows yet."""
    items: deque[_Item] = field(default_factory=deque)
    taken: int = 0
    """Segments of this turn that the device has had."""

    def submit(self, segment: Segment) -> Future[Row]:
        """Queue a segment. Raises StoppedError."""
        return self.batcher.submit(self, segment)

    def resize(self, segments: int) -> None:
        """Give back room that this clip turned out not to need."""
        self.batcher.reserve(self, min(segments, self.reserved))

    def expect(self, segments: int) -> None:
        """Say how many segments are still to be done, so that nobody is let in who would be late."""
        self.batcher.expect(self, segments)

    def release(self) -> None:
        """Leave the queue: segments that still wait are dropped, and all room is given back."""
        self.batcher.leave(self)


class _Worker(threading.Thread):
    """A thread that serves the device, the batch in its hands, and since when."""

    def __init__(self, work: Callable[["_Worker"], None]) -> None:
        super().__init__(name="batcher", daemon=True)
        self._work = work
        self.batch: list[_Item] = []
        self.since = 0.0

    def run(self) -> None:
        """Serve until the batcher stops or the thread dies."""
        self._work(self)


class Batcher:
    """The queue in front of one device, and the threads that serve it. Thread-safe.

    Args:
        embed: the network's trunk, [B, samples] -> [B, E]; may raise QueueFullError.
        batch_segments: most segments of one forward pass.
        batch_wait_s: longest time in seconds that a segment waits for company once the worker is free.
        queue_segments: most segments admitted at once.
        max_deaths: deaths of workers within `DEATHS_WINDOW_S` after which none is restarted.
        on_batch: told the segments and seconds of each successful pass.
        on_exhausted: called once when workers died too often, or `MOST_FAILURES` passes in a row failed.
        concurrent_batches: most forward passes at once, a worker each.
    """

    def __init__(
        self,
        embed: Embed,
        *,
        batch_segments: int,
        batch_wait_s: float,
        queue_segments: int,
        max_deaths: int,
        on_batch: Callable[[int, float], None] = lambda _segments, _seconds: None,
        on_exhausted: Callable[[], None] = lambda: None,
        concurrent_batches: int = 1,
    ) -> None:
        self._embed = embed
        self._batch_segments = batch_segments
        self._batch_wait_s = batch_wait_s
        self._queue_segments = queue_segments
        self._max_deaths = max_deaths
        self._on_batch = on_batch
        self._on_exhausted = on_exhausted
        self._concurrent_batches = concurrent_batches
        self._changed = threading.Condition()
        # Those with a segment waiting, in the order of their next turn.
        self._live: deque[Lane] = deque()
        self._lanes: deque[Lane] = deque()
        self._turn = 0
        self._waiting = 0
        self._reserved = 0
        self._expected = 0
        self._unknown: set[Lane] = set()
        self._lengths: deque[int] = deque(maxlen=RATE_CLIPS)
        self._busy_since = 0.0
        self._finished = 0.0
        self._pace: deque[tuple[int, float]] = deque(maxlen=RATE_BATCHES)
        self._deaths: deque[float] = deque(maxlen=max_deaths)
        self._failures = 0
        self._stopped = False
        self._workers: list[_Worker] = []

    # What is let in

    def admit(self, segments: int, *, live: bool = False) -> Lane:
        """Reserve room for a clip with at most `segments` in the queue at once. Raises QueueFullError.

        `live`: come in even if the queue is full, and before the others; their number has a bound of its own.
        """
        lane = Lane(self, 0, live)
        with self._changed:
            if not (live or self.has_room(segments)):
                raise QueueFullError(f"{self._reserved} of {self._queue_segments} segments are taken")
            self._reserve(lane, segments)
            self._unknown.add(lane)
        return lane

    def has_room(self, segments: int) -> bool:
        """Whether a clip of that many segments would be admitted now."""
        return self._reserved + segments <= self._queue_segments

    def submit(self, lane: Lane, segment: Segment) -> Future[Row]:
        """See Lane.submit."""
        item = _Item(segment)
        with self._changed:
            if self._stopped:
                raise StoppedError
            if not lane.items:
                self._queue_of(lane).append(lane)
            lane.items.append(item)
            self._waiting += 1
            self._changed.notify_all()
        return item.future

    def reserve(self, lane: Lane, segments: int) -> None:
        """See Lane.resize."""
        with self._changed:
            self._reserve(lane, segments)

    def expect(self, lane: Lane, segments: int) -> None:
        """See Lane.expect."""
        with self._changed:
            if lane in self._unknown:
                self._unknown.discard(lane)
                self._lengths.append(min(segments, lane.reserved))
            self._expected += segments - (lane.expected or 0)
            lane.expected = segments

    def leave(self, lane: Lane) -> None:
        """See Lane.release."""
        with self._changed:
            self._unknown.discard(lane)
            self._expected -= lane.expected or 0
            lane.expected = 0
            self._reserve(lane, 0)
            self._waiting -= len(lane.items)
            if lane.items:
                self._queue_of(lane).remove(lane)
            dropped, lane.items = lane.items, deque()
        for item in dropped:
            item.future.cancel()

    def _queue_of(self, lane: Lane) -> deque[Lane]:
        return self._live if lane.is_live else self._lanes

    def _reserve(self, lane: Lane, segments: int) -> None:
        if self._reserved == 0:
            self._busy_since = time.monotonic()
        self._reserved += segments - lane.reserved
        lane.reserved = segments

    # What can be seen from outside

    @property
    def depth(self) -> int:
        """Segments that wait for the device."""
        return self._waiting

    @property
    def reserved(self) -> int:
        """Segments of room that admitted clips take, whether they are decoded or not."""
        return self._reserved

    @property
    def expected(self) -> float:
        """Segments that admitted clips are still to take the device, as far as is known.

        One whose length is not known yet counts as the mean of the last ones, and as its room at most.
        """
        usual = sum(self._lengths) / len(self._lengths) if self._lengths else math.inf
        return self._expected + sum(min(lane.reserved, usual) for lane in self._unknown)

    @property
    def alive(self) -> bool:
        """Whether all workers live."""
        workers = self._workers
        return bool(workers) and all(worker.is_alive() for worker in workers)

    @property
    def worker_id(self) -> int | None:
        """The first worker thread's identifier, as `threading.get_ident` gives it."""
        return self._workers[0].ident if self._workers else None

    def oldest_wait_s(self) -> float:
        """Seconds since the oldest segment was queued, or since the running pass began if that is longer."""
        with self._changed:
            since = [lane.items[0].since for lane in (*self._live, *self._lanes)]
            since += [
                worker.since
                for worker in self._workers
                if not all(item.future.done() for item in worker.batch)
            ]
        return max((time.monotonic() - moment for moment in since), default=0.0)

    def backlog_s(self) -> float:
        """Seconds in which all admitted work is done at the measured rate; 0 before there is one."""
        with self._changed:
            segments = sum(count for count, _ in self._pace)
            seconds = sum(elapsed for _, elapsed in self._pace)
            return self.expected * seconds / segments if segments else 0.0

    def retry_after_s(self) -> int:
        """`backlog_s` in whole seconds, 1 at least."""
        return min(max(math.ceil(self.backlog_s()), 1), MAX_RETRY_AFTER_S)

    # The workers

    def start(self) -> None:
        """Start the workers; called by one that dies, replace it."""
        with self._changed:
            dying = threading.current_thread()
            living = [worker for worker in self._workers if worker.is_alive() and worker is not dying]
            new = [_Worker(self._work) for _ in range(self._concurrent_batches - len(living))]
            for worker in new:
                worker.start()
            self._workers = living + new

    def stop(self, timeout_s: float = 5.0) -> None:
        """Refuse what still waits with StoppedError, and wait for the running passes."""
        self._refuse_all()
        until = time.monotonic() + timeout_s
        for worker in self._workers:
            worker.join(max(until - time.monotonic(), 0))

    def _refuse_all(self) -> None:
        with self._changed:
            self._stopped = True
            lanes = (*self._live, *self._lanes)
            refused = [item for lane in lanes for item in lane.items]
            for lane in lanes:
                lane.items.clear()
            self._live.clear()
            self._lanes.clear()
            self._waiting = 0
            self._changed.notify_all()
        for item in refused:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(StoppedError())

    def _work(self, worker: _Worker) -> None:
        try:
            while self._gather(worker):
                self._run(worker)
        except BaseException as error:
            self._bury(worker, error)

    def _gather(self, worker: _Worker) -> bool:
        """Take the next batch, in turn from the lanes; false when the batcher stopped.

        Live lanes come first, but while others wait they get half of it: a stream may be sent faster than it
        plays, and would leave nothing to the clips.
        """
        with self._changed:
            while not self._waiting and not self._stopped:
                self._changed.wait()
            self._wait_for_company()
            worker.batch = []
            self._turn = 1 - self._turn  # so that of batches of one segment, every other is live
            half = (self._batch_segments + self._turn) // 2
            self._take(worker, self._live, half if self._lanes else self._batch_segments)
            self._take(worker, self._lanes, self._batch_segments)
            self._take(worker, self._live, self._batch_segments)
            worker.since = time.monotonic()
            return not self._stopped

    def _wait_for_company(self) -> None:
        lanes = (*self._live, *self._lanes)
        until = min((lane.items[0].since for lane in lanes), default=0.0) + self._batch_wait_s
        while 0 < self._waiting < self._batch_segments and not self._stopped:
            if not self._changed.wait(max(until - time.monotonic(), 0)):
                return

    def _take(self, worker: _Worker, lanes: deque[Lane], most: int) -> None:
        """Fill the batch from these lanes until it has `most` segments."""
        while lanes and len(worker.batch) < most:
            lane = lanes[0]
            item = lane.items.popleft()
            self._waiting -= 1
            lane.taken += 1
            if not lane.items or lane.taken == SEGMENTS_IN_A_ROW:
                lane.taken = 0
                lanes.popleft()
                if lane.items:
                    lanes.append(lane)
            if item.future.set_running_or_notify_cancel():
                worker.batch.append(item)

    def _run(self, worker: _Worker) -> None:
        batch, started = worker.batch, worker.since
        if not batch:
            return
        try:
            embeddings = self._embed(np.stack([item.segment for item in batch]))
        except Exception as error:
            worker.batch = []
            if not isinstance(error, QueueFullError):
                logger.exception("a forward pass failed", extra={"segments": len(batch)})
                self._note_failure()
            _fail(batch, error)
            return
        took = time.monotonic() - started
        self._note_pace(len(batch))
        for item, embedding in zip(batch, embeddings, strict=True):
            item.future.set_result(Row(embedding, started - item.since, took / len(batch)))
        worker.batch = []
        self._on_batch(len(batch), took)

    def _note_failure(self) -> None:
        with self._changed:
            self._failures += 1
            is_broken = self._failures == MOST_FAILURES and not self._stopped
        if is_broken:
            logger.critical("%d forward passes in a row failed", MOST_FAILURES)
            self._give_up()

    def _give_up(self) -> None:
        self._refuse_all()
        self._on_exhausted()

    def _note_pace(self, segments: int) -> None:
        # Idle time does not count, but waiting for decoders while work is admitted does: the true rate.
        with self._changed:
            self._failures = 0
            now = time.monotonic()
            self._pace.append((segments, now - max(self._finished, self._busy_since)))
            self._finished = now

    def _bury(self, worker: _Worker, cause: BaseException) -> None:
        """Fail the dead worker's batch only, after another worker was started, unless too many died."""
        logger.critical("the worker died", exc_info=cause)
        batch, worker.batch = worker.batch, []
        now = time.monotonic()
        self._deaths.append(now)
        try:
            if len(self._deaths) == self._max_deaths and now - self._deaths[0] < DEATHS_WINDOW_S:
                self._give_up()
            else:
                self.start()
        finally:  # no thread may be left to start
            _fail(batch, cause)


def _fail(batch: list[_Item], cause: BaseException) -> None:
    failure: Exception = BatchFailedError(f"{type(cause).__name__}: {cause}")
    if isinstance(cause, QueueFullError):
        failure = cause
    else:
        failure.__cause__ = cause
    for item in batch:
        if not item.future.done():
            item.future.set_exception(failure)
