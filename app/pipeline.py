"""One clip's way through the service: decoded in turns by a pool of threads, embedded in shared batches.

A clip is decoded a few segments at a time, and only while its lane has room. So a two-hour song is never held
whole, and decoder threads serve all clips in rotation. Threads, not processes: FFmpeg runs without the
interpreter's lock.
"""

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import numpy as np

from app.batcher import Batcher, BatchFailedError, Lane, QueueFullError, Row, Segment, StoppedError
from app.metrics import Metrics
from app.problems import ProblemError
from app.settings import Settings
from model.audio import AudioInfo, AudioReader
from model.tagger import Tagger, Tagging

TURN_SEGMENTS: Final = (
    6  # 30 s of audio, some 50 ms of decoding: short enough to take turns, long enough to be cheap
)


@dataclass(slots=True)
class Work:
    """How far one clip has come, and where its time went (seconds)."""

    decoding: bool = False
    decode_s: float = 0.0
    waited_for_decoder_s: float = 0.0
    rows: list[Row] = field(default_factory=list)
    pending: deque[Future[Row]] = field(default_factory=deque)

    @property
    def at_work(self) -> bool:
        """Whether a decoder or the device has this clip in hand, or the device has had a part of it."""
        return (
            self.decoding
            or bool(self.rows)
            or any(future.running() or (future.done() and not future.cancelled()) for future in self.pending)
        )

    @property
    def queue_s(self) -> float:
        """The wait for a decoder, and the longest wait of a segment for the device."""
        return self.waited_for_decoder_s + max((row.queued_s for row in self.rows), default=0.0)

    @property
    def inference_s(self) -> float:
        """The clip's share of its forward passes."""
        return sum(row.inference_s for row in self.rows)


class Decoder:
    """One clip's decoder, resumed in turns by whichever thread is free."""

    def __init__(
        self, reader: Callable[[], AudioReader], cut: Callable[[AudioReader], Iterator[Segment]]
    ) -> None:
        self._open = reader  # opening reads from the clip, so it belongs to the first turn, in a thread
        self._cut = cut
        self._turn = threading.Lock()
        self._closed = threading.Event()
        self._reader: AudioReader | None = None
        self._segments: Iterator[Segment] = iter(())

    def take(self, count: int) -> list[Segment]:
        """Decode up to `count` more segments; fewer mean that the clip ended. Raises AudioError."""
        with self._turn:
            if self._reader is None and not self._closed.is_set():
                self._reader = self._open().__enter__()
                self._segments = self._cut(self._reader)
            unless_closed = itertools.takewhile(lambda _: not self._closed.is_set(), self._segments)
            return list(itertools.islice(unless_closed, count))

    @property
    def info(self) -> AudioInfo:
        """What was found; complete after the last segment."""
        assert self._reader is not None  # noqa: S101 - asked for only after take()
        return self._reader.info

    def close(self) -> None:
        """Let the decoder go; a turn that is running ends at its next segment."""
        self._closed.set()
        with self._turn:
            if self._reader is not None:
                self._reader.__exit__(None, None, None)
                self._reader = None


class Pipeline:
    """The tagger, the threads that decode for it and the batcher in front of it."""

    def __init__(
        self, tagger: Tagger, settings: Settings, metrics: Metrics, on_exhausted: Callable[[], None]
    ) -> None:
        self.tagger = tagger
        self.batcher = Batcher(
            tagger.embed,
            batch_segments=settings.batch_segments,
            batch_wait_s=settings.batch_wait_ms / 1000,
            queue_segments=settings.queue_segments,
            max_deaths=settings.max_worker_deaths,
            on_batch=metrics.seen_batch,
            on_exhausted=on_exhausted,
            concurrent_batches=settings.concurrent_batches,
        )
        self._settings = settings
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._turns: dict[Future[list[Segment]], float] = {}

    async def warm_up(self) -> None:
        """Answer one full batch and one clip of silence, so that the first real clip does not pay for it."""
        lane = self.batcher.admit(self._settings.batch_segments)
        try:
            silence = np.zeros(self.tagger.segment_samples, np.float32)
            pending = [lane.submit(silence) for _ in range(self._settings.batch_segments)]
            rows = [await asyncio.wrap_future(future) for future in pending]
        finally:
            lane.release()
        seconds = len(rows) * self.tagger.bundle.hop_s
        info = AudioInfo("warm-up", "none", self.tagger.bundle.sample_rate_hz, 1, seconds, seconds)
        await self._in_pool(lambda: self._finish(rows, info))

    def has_room(self) -> bool:
        """Whether a new clip would be admitted now."""
        return self.batcher.has_room(self._settings.clip_segments)

    def oldest_wait_s(self) -> float:
        """Age in seconds of the oldest work that waits for the device or is in a decoder's hands or queue."""
        turns = [time.monotonic() - since for since in tuple(self._turns.values())]
        return max([self.batcher.oldest_wait_s(), *turns])

    def close(self) -> None:
        """Stop: what still waits is refused."""
        self.batcher.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def admit(self, clips: int = 1) -> Iterator[list[Lane]]:
        """Reserve room for so many clips, for all or for none, until the block ends. Raises ProblemError."""
        lanes: list[Lane] = []
        try:
            for _ in range(clips):
                lanes.append(self.batcher.admit(self._settings.clip_segments))  # noqa: PERF401 - released if the next is refused
            yield lanes
        except QueueFullError as error:
            raise self._queue_full() from error
        finally:
            for lane in lanes:
                lane.release()

    async def tag(
        self,
        source: BinaryIO,
        lane: Lane,
        work: Work,
        *,
        start_s: float = 0.0,
        duration_s: float | None = None,
    ) -> Tagging:
        """Tag one clip on its lane, which is released with the clip's end.

        Raises AudioError for what is wrong with the clip, ProblemError for what is wrong with the service.
        """
        settings = self._settings

        def reader() -> AudioReader:
            return AudioReader(
                source,
                sample_rate_hz=self.tagger.bundle.sample_rate_hz,
                start_s=start_s,
                duration_s=duration_s,
                min_s=settings.min_audio_s,
                max_s=settings.max_audio_s,
            )

        decoder = Decoder(reader, self.tagger.segments)
        try:
            with self._failures_as_problems():
                await self._embed_all(decoder, lane, work)
                return await self._in_pool(lambda: self._finish(work.rows, decoder.info, start_s))
        finally:
            lane.release()
            self._close_later(decoder)

    async def embed(self, segment: Segment) -> Row:
        """One segment of a stream, in the batches that all clips share.

        It finds room in a full queue, too: streams are counted themselves, and each has one segment at most.
        Raises ProblemError.
        """
        lane = self.batcher.admit(1, counted_elsewhere=True)
        try:
            with self._failures_as_problems():
                return await asyncio.wrap_future(lane.submit(segment))
        finally:
            lane.release()

    @contextmanager
    def _failures_as_problems(self) -> Iterator[None]:
        try:
            yield
        except BatchFailedError as error:
            raise ProblemError("batch-failed") from error
        except QueueFullError as error:
            raise self._queue_full() from error
        except StoppedError as error:
            raise ProblemError("draining", retry_after_s=1) from error

    def _queue_full(self) -> ProblemError:
        return ProblemError("queue-full", retry_after_s=self.batcher.retry_after_s())

    async def _embed_all(self, decoder: Decoder, lane: Lane, work: Work) -> None:
        ended = False
        while not ended:
            segments = await self._decode_turn(decoder, work)
            ended = len(segments) < self._turn_segments
            for segment in segments:
                if len(work.pending) >= self._settings.clip_segments:
                    await self._collect(work)
                work.pending.append(lane.submit(segment))
        while work.pending:
            lane.resize(len(work.pending))
            await self._collect(work)

    @property
    def _turn_segments(self) -> int:
        return min(TURN_SEGMENTS, self._settings.clip_segments)

    @staticmethod
    async def _collect(work: Work) -> None:
        row = await asyncio.wrap_future(work.pending[0])
        work.pending.popleft()
        work.rows.append(row)

    async def _decode_turn(self, decoder: Decoder, work: Work) -> list[Segment]:
        asked = time.monotonic()

        def turn() -> list[Segment]:
            started = time.monotonic()
            work.decoding = True
            work.waited_for_decoder_s += started - asked
            try:
                return decoder.take(self._turn_segments)
            finally:
                work.decoding = False
                work.decode_s += time.monotonic() - started

        future = self._pool.submit(turn)
        self._turns[future] = asked
        future.add_done_callback(lambda done: self._turns.pop(done, None))
        return await asyncio.wrap_future(future)

    async def _in_pool(self, job: Callable[[], Tagging]) -> Tagging:
        return await asyncio.wrap_future(self._pool.submit(job))

    def _finish(self, rows: list[Row], info: AudioInfo, start_s: float = 0.0) -> Tagging:
        return self.tagger.finish(np.stack([row.embedding for row in rows]), info, start_s=start_s)

    def _close_later(self, decoder: Decoder) -> None:
        try:
            self._pool.submit(decoder.close)
        except RuntimeError:  # the pool is shut down, so no thread is in this decoder
            decoder.close()
