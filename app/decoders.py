"""Decoders in processes of their own: FFmpeg cannot fight for the interpreter's lock, nor end the service.

In a thread FFmpeg lets go of the lock for each frame, 40 times a second of sound, and whenever another thread
waits for it, taking it back costs more than the frame (benchmarks/README.md). A clip stays with one process,
in turns, as its decoder does. A process that dies, or does not answer, is replaced; a clip that it held is
begun again, without the segments that were taken, but the one in hand only once. A clip is handed over as a
file descriptor, which needs Unix.
"""

import itertools
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO, Final, cast

from app.decoder_process import (
    HANDED_OVER,
    Close,
    Open,
    Ping,
    ReaderOptions,
    Take,
    Turn,
    borrowed,
    read_segment,
)
from app.logs import logger
from app.problems import refused_if_no_file_is_left
from model.audio import AudioInfo, UndecodableAudioError
from model.segments import Segment

ATTEMPTS: Final = 2
"""How often a clip is begun whose decoder dies of it."""
TURN_LIMIT_S: Final = 20.0
"""A turn takes 50 ms: one that takes so much longer will never end. Two of them are less than the age of work
from which the service is not ready, as other decoders go on."""

NOT_ITS_OWN: Final = ("TAGGER_", "OTEL_", "CLIENT_KEYS", "METRICS_KEY")
"""Beginnings of variables' names: the settings, traces' tokens, and what keys are made of in deploy/."""


class DecoderDiedError(RuntimeError):
    """The process ended, or was killed as it did not answer."""


class _Process:
    """A decoder's process, restarted when it dies, and the one thread that talks to it."""

    def __init__(self, on_death: Callable[[], None]) -> None:
        self.clips: set[int] = set()
        """Keys of those that it has in hand."""
        self.life = 0
        """Which process this is, by number: clips of an earlier one must be begun again."""
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._on_death = on_death
        self._stopped = False
        self._start()

    def send(self, message: Open | Take | Close | Ping, descriptor: int | None = None) -> None:
        """Send a message, and a file's descriptor. Raises DecoderDiedError."""
        try:
            self._connection.send(message)
            if descriptor is not None:
                with borrowed(self._connection) as channel:
                    socket.send_fds(channel, [HANDED_OVER], [descriptor])
        except OSError as error:
            raise self._bury(error) from error

    def answer(self) -> Turn | None:
        """Await the answer: nothing to a Ping. Raises DecoderDiedError, and whatever the decoder raised."""
        try:
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._bury(error) from error
        if isinstance(answer, Exception):
            raise answer
        return cast("Turn | None", answer)

    def segments(self, turn: Turn, segment_samples: int) -> list[Segment]:
        """Await the segments of a turn. Raises DecoderDiedError."""
        try:
            return [read_segment(self._connection.fileno(), segment_samples) for _ in range(turn.segments)]
        except (EOFError, OSError) as error:
            raise self._bury(error) from error

    def ping(self) -> None:
        """Await that the process is there, or one that replaces it. Raises DecoderDiedError."""
        with suppress(DecoderDiedError):  # the system may be slow at first
            self._ping()
            return
        self._ping()

    def _ping(self) -> None:
        self.send(Ping())
        self.answer()

    def memory_bytes(self) -> int:
        """What it shares with no other process; 0 where /proc does not tell."""
        try:
            told = Path(f"/proc/{self._child.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            return 0
        found = (int(line.split()[1]) * 1024 for line in told.splitlines() if "Private_Dirty" in line)
        return next(found, 0)

    def stop(self) -> None:
        """End it, whatever it does; what waits for it is dropped."""
        self._stopped = True
        self._child.kill()
        self.thread.shutdown(wait=True, cancel_futures=True)
        self._child.kill()  # one that was started in that moment
        self._end()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs, _closed_if_it_fails(ours):
            self._child = subprocess.Popen(  # noqa: S603 - this very program
                # -P: a folder `app` where the service is started is another's.
                [sys.executable, "-P", "-m", "app.decoder_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=_environment(),
            )
        # Beyond it, whatever reads from the socket raises an OSError.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(TURN_LIMIT_S), 0))
        self._connection = Connection(ours.detach())
        self.life += 1

    def _bury(self, why: Exception) -> DecoderDiedError:
        """Replace the process. Raises ProblemError if no file is left for it: the next clip tries again."""
        died_now = not self._connection.closed
        self._child.kill()
        self._end()
        if not self._stopped:
            if died_now:
                extra = {"why": repr(why), "exit_code": self._child.returncode}
                logger.error("a decoder died and is replaced", extra=extra)
                self._on_death()
            with refused_if_no_file_is_left():
                self._start()
        return DecoderDiedError()

    def _end(self) -> None:
        self._child.wait()
        self._connection.close()


@contextmanager
def _closed_if_it_fails(opened: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        opened.close()
        raise


def _environment() -> dict[str, str]:
    """This process's without the settings, keys among them: a decoder meets hostile bytes, and needs none."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(NOT_ITS_OWN)}
    return kept | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}


class Decoding:
    """One clip on its way through a decoder's process, a turn at a time."""

    def __init__(self, process: _Process, key: int, clip: BinaryIO, options: ReaderOptions) -> None:
        self.info: AudioInfo | None = None
        """What was found in the clip; complete after the last segment."""
        self.ended = False
        """Whether all segments were taken."""
        self._process = process
        self._key = key
        with refused_if_no_file_is_left():
            # One of its own, as a request that is given up closes its file in any moment.
            self._descriptor = os.dup(clip.fileno())
        self.options = options
        self._life = 0
        self._taken = 0
        self._turn: Future[list[Segment]] | None = None
        process.clips.add(key)

    def take(self, count: int, began: Callable[[], None]) -> Future[list[Segment]]:
        """Decode up to `count` more segments. The future raises AudioError.

        `began` is called, in a thread, when the clip's turn has come.
        """
        self._turn = self._process.thread.submit(self._take, count, began)
        return self._turn

    def close(self) -> None:
        """Let the decoder go, after a turn that is running: until then it has the clip in hand."""
        if self._turn is None:
            self._leave()
        else:
            self._turn.add_done_callback(self._leave)
        try:
            closing = self._process.thread.submit(self._close)
        except RuntimeError:  # the process is stopped, and with it this clip
            os.close(self._descriptor)
        else:
            closing.add_done_callback(lambda _: os.close(self._descriptor))

    def _leave(self, _: object = None) -> None:
        self._process.clips.discard(self._key)

    def _take(self, count: int, began: Callable[[], None]) -> list[Segment]:
        began()
        for _ in range(ATTEMPTS):
            try:
                self._begin_unless_begun()
                self._process.send(Take(self._key, count))
                turn = cast(Turn, self._process.answer())
                segments = self._process.segments(turn, self.options.segment_samples)
            except DecoderDiedError:
                continue
            self.info, self.ended = turn.info, turn.ended
            self._taken += len(segments)
            return segments
        raise UndecodableAudioError(
            "The decoder broke down on this clip, twice.", "Export it again, or send it in another format."
        )

    def _begin_unless_begun(self) -> None:
        if self._life != self._process.life:
            self._process.send(Open(self._key, self.options, self._taken), self._descriptor)
            self._life = self._process.life

    def _close(self) -> None:
        if self._life == self._process.life:
            self._process.send(Close(self._key))


class Decoders:
    """So many decoders' processes; a clip goes to the one with the fewest.

    Args:
        number: of processes.
        on_death: told of each that died.
    """

    def __init__(self, number: int, on_death: Callable[[], None] = lambda: None) -> None:
        self._processes = [_Process(on_death) for _ in range(number)]
        self._keys = itertools.count()

    def open(self, clip: BinaryIO, options: ReaderOptions) -> Decoding:
        """Give a clip, a file with a descriptor, to a process; nothing is read before the first turn.

        Raises ProblemError if the process may open no more files.
        """
        process = min(self._processes, key=lambda process: len(process.clips))
        return Decoding(process, next(self._keys), clip, options)

    def ping(self) -> list[Future[None]]:
        """Ask each process whether it is there."""
        return [process.thread.submit(process.ping) for process in self._processes]

    def memory_bytes(self) -> int:
        """Memory of all processes that they share with no other; 0 where /proc does not tell."""
        return sum(process.memory_bytes() for process in self._processes)

    def stop(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.stop()
