"""One stream's ear: a bounded pipe that messages go into, and a window's scores at every hop that come out.

Decoding blocks while the pipe is empty, so that each listener has a thread of its own, in the service's
process; uploads take turns in processes instead (see app.decoders). Embeddings are made in the batches that
all clips share.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, Final, TypeVar, cast

from app.pipeline import Pipeline
from app.settings import Settings
from model.audio import AudioInfo, AudioReader
from model.segments import Segment
from model.tagger import Rolling, Tagging, WindowScores

MOST_MESSAGE_BYTES: Final = 1_000_000
PIPE_BYTES: Final = 1 << 18
"""3 s of PCM at 44.1 kHz, 16 s of MP3 at 128 kbit/s: enough to keep the decoder busy."""
Result = TypeVar("Result")


class Pipe:
    """A file that is still being written: pieces put in by the event loop, read by a thread, held in memory.

    It holds at most `most_bytes` and one piece: whoever puts in more waits, so that the socket is not read
    and the sender slows down.
    """

    def __init__(self, most_bytes: int) -> None:
        self.arrived_at = 0.0
        """When the piece came of which bytes were read last, by `time.monotonic`."""
        self._most_bytes = most_bytes
        self._pieces: deque[tuple[bytes, float]] = deque()
        self._held = 0
        self._over = False
        self._changed = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._read = asyncio.Event()

    async def put(self, piece: bytes) -> None:
        """Put a piece in, and wait until there is room for another. What comes after the end is dropped."""
        if not piece:
            return
        with self._changed:
            if self._over:
                return
            self._pieces.append((piece, time.monotonic()))
            self._held += len(piece)
            self._changed.notify()
        while self._held > self._most_bytes and not self._over:
            self._read.clear()
            await self._read.wait()

    def end(self) -> None:
        """Nothing more will come: what is held can be read, then the file is at its end."""
        with self._changed:
            self._over = True
            self._changed.notify()
        self._read.set()

    def drop(self) -> None:
        """Nothing more will be listened to: the file is at its end at once."""
        with self._changed:
            self._pieces.clear()
            self._held = 0
        self.end()

    def read(self, size: int) -> bytes:
        """Wait for the next bytes, `size` and the rest of one piece at most; b"" at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._over)
            if not self._pieces:
                return b""
            piece, self.arrived_at = self._pieces.popleft()
            if len(piece) > size:
                self._pieces.appendleft((piece[size:], self.arrived_at))
            self._held -= min(size, len(piece))
        self._loop.call_soon_threadsafe(self._read.set)
        return piece[:size]

    def seekable(self) -> bool:
        """What was read is gone."""
        return False


class Listener:
    """Follows one stream, in the time and memory of its last window, until it ends or is closed."""

    def __init__(self, pipe: Pipe, pipeline: Pipeline, settings: Settings) -> None:
        self._pipe = pipe
        self._pipeline = pipeline
        self._settings = settings
        self._rolling = Rolling(pipeline.tagger)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="listen")
        self._reader: AudioReader | None = None
        self._segments: Iterator[Segment] = iter(())

    async def window(self) -> WindowScores | None:
        """The next window's scores as soon as it is complete; none at the end.

        Raises AudioError for what is wrong with the sound, ProblemError for what is wrong with the service.
        """
        segment = await self._in_thread(self._next_segment)
        if segment is None:
            return None
        row = await self._pipeline.embed(segment)
        heard_s = self._info.analysed_s
        return await self._in_thread(lambda: self._rolling.add(row.embedding, heard_s))

    async def finish(self) -> Tagging:
        """The whole stream's scores, after the last window."""
        return await self._in_thread(lambda: self._rolling.finish(self._info))

    def close(self) -> None:
        """Let everything go, in whatever state; the thread ends by itself."""
        self._pipe.drop()
        self._thread.submit(self._close)
        self._thread.shutdown(wait=False)

    @property
    def _info(self) -> AudioInfo:
        assert self._reader is not None  # noqa: S101 - asked for after the first segment
        return self._reader.info

    def _next_segment(self) -> Segment | None:
        tagger = self._pipeline.tagger
        if self._reader is None:  # opening reads from the pipe, so it belongs into the thread
            self._reader = AudioReader(
                cast(BinaryIO, self._pipe),
                sample_rate_hz=tagger.bundle.sample_rate_hz,
                min_s=self._settings.min_audio_s,
                max_s=self._settings.max_audio_s,
                live=True,
            )
            self._segments = tagger.segments(self._reader)
        return next(self._segments, None)

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    async def _in_thread(self, job: Callable[[], Result]) -> Result:
        return await asyncio.wrap_future(self._thread.submit(job))
