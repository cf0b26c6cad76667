"""The program of a decoder's process: `python -m app.decoder_process SOCKET`. It does not load PyTorch.

It answers one message after the other, and ends with the service, whose end closes the socket.
"""

import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import Connection
from typing import Final

import numpy as np

from model.audio import AudioInfo, AudioReader, UndecodableAudioError
from model.segments import Segment, cut_segments

MOST_LEFT_OUT: Final = 30
"""Seconds of one turn, where a clip's start must be decoded to be left out: no more than segments take."""
HANDED_OVER: Final = b"f"
"""Comes with a file."""
MOST_MEMORY_BYTES: Final = 2_000_000_000
"""Of address space: three times of what a decoder needs, so that a hostile clip cannot take the machine's."""


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """Which part of a clip is wanted, and how: as `AudioReader` takes them, and the samples of a segment."""

    sample_rate_hz: int
    start_s: float
    duration_s: float | None
    min_s: float
    max_s: float
    segment_samples: int


@dataclass(frozen=True, slots=True)
class Open:
    """Begin with clip `key`, whose file is handed over next; leave out its first `skip` segments."""

    key: int
    options: ReaderOptions
    skip: int


@dataclass(frozen=True, slots=True)
class Take:
    """Decode up to `count` more segments of clip `key`; the answer is a Turn, or the error."""

    key: int
    count: int


@dataclass(frozen=True, slots=True)
class Close:
    """Forget clip `key`."""

    key: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer, with nothing, that this process is there."""


@dataclass(frozen=True, slots=True)
class Turn:
    """So many segments follow, as bytes; whether they are the clip's last; and what is known of it so far.

    There may be none where the clip's start is still being left out, or what the service has.
    """

    segments: int
    ended: bool
    info: AudioInfo


class _Clip:
    """One clip's decoder, between its turns."""

    def __init__(self, file_descriptor: int, order: Open) -> None:
        self._files = ExitStack()
        self._file = self._files.enter_context(os.fdopen(file_descriptor, "rb", buffering=0))
        self._order = order
        self._reader: AudioReader | None = None
        self._segments: Iterator[Segment] | None = None
        self._ahead: list[Segment] = []
        self._skip = order.skip

    def take(self, count: int) -> tuple[Turn, list[Segment]]:
        """See Take. Raises AudioError.

        It looks one segment ahead, so that a clip's last turn is known as such and costs no other one.
        """
        if self._reader is None:
            self._reader = self._open()
        if self._segments is None:
            self._segments = self._from_start(self._reader)
        if self._segments is None or self._left_out(self._segments, count):
            return Turn(0, False, self._reader.info), []
        found = self._ahead + list(islice(self._segments, count + 1 - len(self._ahead)))
        now, self._ahead = found[:count], found[count:]
        return Turn(len(now), not self._ahead, self._reader.info), now

    def _open(self) -> AudioReader:
        how = self._order.options
        reader = AudioReader(
            self._file,
            sample_rate_hz=how.sample_rate_hz,
            start_s=how.start_s,
            duration_s=how.duration_s,
            min_s=how.min_s,
            max_s=how.max_s,
        )
        return self._files.enter_context(reader)

    def _from_start(self, reader: AudioReader) -> Iterator[Segment] | None:
        """The segments from where the wanted part starts; none if that is further on than a turn goes."""
        for chunk in islice(reader, MOST_LEFT_OUT):
            if len(chunk):
                return cut_segments(chain([chunk], reader), self._order.options.segment_samples)
        return None

    def _left_out(self, segments: Iterator[Segment], count: int) -> bool:
        """Leave out up to `count` segments that the service has; whether there were any."""
        skipped = sum(1 for _ in islice(segments, min(self._skip, count)))
        self._skip -= skipped
        return skipped > 0

    def close(self) -> None:
        """Let decoder and file go."""
        self._files.close()


def serve(connection: Connection) -> None:
    """Answer each Take and Ping; Open and Close have no answer."""
    clips: dict[int, _Clip] = {}
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if isinstance(message, Open):
            clips[message.key] = _Clip(_receive_file(connection), message)
        elif isinstance(message, Close):
            clips.pop(message.key).close()
        elif isinstance(message, Ping):
            connection.send(None)
        else:
            answer, segments = _turn(clips[message.key], message.count)
            connection.send(answer)
            for segment in segments:
                _write(connection.fileno(), segment)


def _receive_file(connection: Connection) -> int:
    with borrowed(connection) as channel:
        _, [file_descriptor], _, _ = socket.recv_fds(channel, len(HANDED_OVER), 1)
        return file_descriptor


@contextmanager
def borrowed(connection: Connection) -> Iterator[socket.socket]:
    """A connection's socket, which stays the connection's; no other file is needed."""
    channel = socket.socket(fileno=connection.fileno())
    try:
        yield channel
    finally:
        channel.detach()


def read_segment(file_descriptor: int, segment_samples: int) -> Segment:
    """Read a segment of a Turn, straight into its place. Raises EOFError if the decoder ended."""
    segment = np.empty(segment_samples, np.float32)
    left = segment.data.cast("B")
    while left:
        if not (count := os.readv(file_descriptor, [left])):
            raise EOFError
        left = left[count:]
    return segment


def _write(file_descriptor: int, segment: Segment) -> None:
    left = segment.data.cast("B")
    while left:
        left = left[os.write(file_descriptor, left) :]


def _turn(clip: _Clip, count: int) -> tuple[Turn | Exception, list[Segment]]:
    try:
        return clip.take(count)
    except MemoryError:
        problem = UndecodableAudioError(
            "Decoding this clip takes more memory than a decoder has.",
            "Export it with fewer channels or a lower sample rate.",
        )
        return problem, []
    except Exception as error:  # is raised in the service
        return error, []


def main(file_descriptor: int) -> None:
    """Serve the socket, bounded; whoever stops the service stops this by closing it."""
    for name in (signal.SIGINT, signal.SIGTERM):  # they may reach the whole group; admitted work finishes
        signal.signal(name, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    try:
        serve(Connection(file_descriptor))
    except OSError:  # the service went away in the middle of a message
        os._exit(0)


if __name__ == "__main__":
    # Not under the name __main__, so that both sides know the messages as the same classes.
    from app import decoder_process

    decoder_process.main(int(sys.argv[1]))
