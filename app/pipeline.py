"""One clip's way through the service: decoded in turns by a decoder's process, embedded in shared batches.

A clip is decoded a few segments at a time, and only while its lane has room. So a two-hour song is never held
whole, and a decoder serves its clips in rotation.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import numpy as np

from app.batcher import Batcher, BatchFailedError, Lane, QueueFullError, Row, StoppedError
from app.decoder_process import ReaderOptions
from app.decoders import Decoders, Decoding
from app.metrics import Metrics
from app.problems import ProblemError
from app.settings import Settings
from model.audio import AudioInfo
from model.segments import Segment
from model.tagger import Tagger, Tagging

TURN_SEGMENTS: Final = 6
"""30 s of audio, some 50 ms of decoding: short enough to take turns, long enough to be cheap."""


@dataclass(slots=True)
class Work:
    """How far one clip has come, and where its time went (seconds)."""

    decode_s: float = 0.0
    waited_for_decoder_s: float = 0.0
    turn_began: float | None = None
    """Since when a decoder has this clip in hand."""
    rows: list[Row] = field(default_factory=list)
    pending: deque[Future[Row]] = field(default_factory=deque)

    @property
    def at_work(self) -> bool:
        """Whether a decoder or the device has this clip in hand, or the device has had a part of it."""
        return (
            self.turn_began is not None
            or bool(self.rows)
            or any(future.running() or (future.done() and not future.cancelled()) for future in self.pending)
        )

    def begin_turn(self) -> None:
        """A decoder takes this clip in hand."""
        self.turn_began = time.monotonic()

    def end_turn(self, asked: float) -> None:
        """The decoder that was asked at that moment is done with this clip, for now."""
        now = time.monotonic()
        began, self.turn_began = self.turn_began or now, None
        self.waited_for_decoder_s += began - asked
        self.decode_s += now - began

    @property
    def queue_s(self) -> float:
        """The wait for a decoder, and the longest wait of a segment for the device."""
        return self.waited_for_decoder_s + max((row.queued_s for row in self.rows), default=0.0)

    @property
    def inference_s(self) -> float:
        """The clip's share of its forward passes."""
        return sum(row.inference_s for row in self.rows)


class Pipeline:
    """The tagger, the processes that decode for it and the batcher in front of it."""

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
        self._decoders = Decoders(settings.decoders, metrics.decoder_deaths.inc)
        self._finishing = ThreadPoolExecutor(1, thread_name_prefix="finish")
        self._turns: dict[Future[list[Segment]], float] = {}

    async def warm_up(self) -> None:
        """Await the decoders, answer one full batch and one clip of silence, so that no real clip pays."""
        for there in self._decoders.ping():
            await asyncio.wrap_future(there)
        lane = self.batcher.admit(self._settings.batch_segments)
        try:
            silence = np.zeros(self.tagger.segment_samples, np.float32)
            pending = [lane.submit(silence) for _ in range(self._settings.batch_segments)]
            rows = [await asyncio.wrap_future(future) for future in pending]
        finally:
            lane.release()
        seconds = len(rows) * self.tagger.bundle.hop_s
        info = AudioInfo("warm-up", "none", self.tagger.bundle.sample_rate_hz, 1, seconds, seconds)
        await self._finish(rows, info)

    def has_room(self) -> bool:
        """Whether a new clip would be admitted now."""
        return self.batcher.has_room(self._settings.clip_segments)

    def oldest_wait_s(self) -> float:
        """Age in seconds of the oldest work that waits for the device or is in a decoder's hands or queue."""
        turns = [time.monotonic() - since for since in tuple(self._turns.values())]
        return max([self.batcher.oldest_wait_s(), *turns])

    def decoder_memory_bytes(self) -> int:
        """Memory that the decoders' processes have for themselves; 0 where /proc does not tell."""
        return self._decoders.memory_bytes()

    def close(self) -> None:
        """Stop: what still waits is refused."""
        self.batcher.stop()
        self._decoders.stop()
        self._finishing.shutdown(wait=True, cancel_futures=True)

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
        clip: BinaryIO,
        lane: Lane,
        work: Work,
        *,
        start_s: float = 0.0,
        duration_s: float | None = None,
    ) -> Tagging:
        """Tag one clip, a file with a descriptor, on its lane, which is released with the clip's end.

        Raises AudioError for what is wrong with the clip, ProblemError for what is wrong with the service.
        """
        settings = self._settings
        options = ReaderOptions(
            sample_rate_hz=self.tagger.bundle.sample_rate_hz,
            start_s=start_s,
            duration_s=duration_s,
            min_s=settings.min_audio_s,
            max_s=settings.max_audio_s,
            segment_samples=self.tagger.segment_samples,
        )
        decoding = self._decoders.open(clip, options)
        try:
            with self._failures_as_problems():
                info = await self._embed_all(decoding, lane, work)
                return await self._finish(work.rows, info, start_s)
        finally:
            lane.release()
            decoding.close()

    async def embed(self, segment: Segment) -> Row:
        """One segment of a stream, in the batches that all clips share.

        It finds room in a full queue, too, and comes first: streams are counted themselves, and each has one
        segment at most. Raises ProblemError.
        """
        lane = self.batcher.admit(1, live=True)
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

    async def _embed_all(self, decoding: Decoding, lane: Lane, work: Work) -> AudioInfo:
        while not decoding.ended:
            segments = await self._decode_turn(decoding, work)
            lane.expect(max(self._segments_of(decoding) - len(work.rows), len(work.pending) + len(segments)))
            for segment in segments:
                if len(work.pending) >= self._settings.clip_segments:
                    await self._collect(work)
                work.pending.append(lane.submit(segment))
        while work.pending:
            lane.resize(len(work.pending))
            lane.expect(len(work.pending))
            await self._collect(work)
        assert decoding.info is not None  # noqa: S101 - known since the first turn
        return decoding.info

    def _segments_of(self, decoding: Decoding) -> int:
        """About how many segments the clip has, or the part that is wanted: by what its header says."""
        how, info = decoding.options, decoding.info
        assert info is not None  # noqa: S101 - known since the first turn
        seconds = min(info.duration_s - how.start_s, how.duration_s or how.max_s, how.max_s)
        return max(0, math.ceil(seconds / self.tagger.bundle.hop_s))

    @staticmethod
    async def _collect(work: Work) -> None:
        row = await asyncio.wrap_future(work.pending[0])
        work.pending.popleft()
        work.rows.append(row)

    async def _decode_turn(self, decoding: Decoding, work: Work) -> list[Segment]:
        asked = time.monotonic()
        count = min(TURN_SEGMENTS, self._settings.clip_segments)
        future = decoding.take(count, began=work.begin_turn)
        self._turns[future] = asked
        future.add_done_callback(lambda done: self._turns.pop(done, None))
        segments = await asyncio.wrap_future(future)
        work.end_turn(asked)
        return segments

    async def _finish(self, rows: list[Row], info: AudioInfo, start_s: float = 0.0) -> Tagging:
        """Whatever takes milliseconds belongs into a thread."""

        def finish() -> Tagging:
            return self.tagger.finish(np.stack([row.embedding for row in rows]), info, start_s=start_s)

        return await asyncio.wrap_future(self._finishing.submit(finish))
