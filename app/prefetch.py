"""Files in, outcomes out, in the same order: threads decode ahead, the network takes one file at a time.

Memory is bounded by `AHEAD` files of `BATCHES` batches, whatever the length of a file: 160 MB with four
decoders.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import Full, Queue
from threading import Event
from typing import BinaryIO, Final

import numpy as np
from loky import cpu_count
from numpy.typing import NDArray

from app.files import Stamp, stamp_of
from app.output import Failed, Outcome, Tagged
from app.problems import from_audio
from model.audio import AudioError, AudioInfo, AudioReader
from model.tagger import BATCH, Tagger

DECODERS: Final = min(4, cpu_count())
AHEAD: Final = 2 * DECODERS
"""Files in hand at once: those that are decoded, and as many that wait for the network."""
BATCHES: Final = 8
"""Batches of 40 s and 2.6 MB that a decoder may be ahead of the network: most songs are shorter."""
STOP_S: Final = 0.1
"""How soon a decoder that waits for the network notices that nobody wants its file any more."""

Part = NDArray[np.float32] | AudioInfo | Exception
"""What a decoder hands over: batches, and at last what was found in the file, or why it failed."""
Opener = Callable[[str], AbstractContextManager[tuple[Stamp, Path | BinaryIO]]]
"""Opens the file of a path or URL, with its stamp; raises OSError."""


@dataclass(frozen=True, slots=True)
class Listening:
    """How to listen: which part of each file, and from which score on a tag is present."""

    thresholds: Mapping[str, float]
    start_s: float = 0.0
    duration_s: float | None = None


class _StoppedError(Exception):
    """Nobody waits for this file any more."""


class _Decoding:
    """One file, decoded in a thread of its own, ahead of the network."""

    def __init__(self, tagger: Tagger, path: str, how: Listening, stopped: Event, open_file: Opener) -> None:
        self.path = path
        self.stamp: Stamp | None = None
        self._tagger, self._how, self._stopped = tagger, how, stopped
        self._open_file = open_file
        self._parts: Queue[Part] = Queue(BATCHES)

    def run(self) -> None:
        """Decode the file; every way ends with a last part, so that nobody waits for it in vain."""
        try:
            self._decode()
        except _StoppedError:
            return
        except Exception as error:
            self._hand_over(error)

    def parts(self) -> Iterator[Part]:
        """Batches as they come; the last part is no array."""
        while True:
            part = self._parts.get()
            yield part
            if not isinstance(part, np.ndarray):
                return

    def _decode(self) -> None:
        with self._open_file(self.path) as (self.stamp, source):
            self._decode_from(source)

    def _decode_from(self, source: Path | BinaryIO) -> None:
        with AudioReader(
            source,
            sample_rate_hz=self._tagger.bundle.sample_rate_hz,
            start_s=self._how.start_s,
            duration_s=self._how.duration_s,
        ) as reader:
            segments = self._tagger.segments(reader)
            for batch in iter(lambda: list(islice(segments, BATCH)), []):
                self._hand_over(np.stack(batch))
            self._hand_over(reader.info)

    def _hand_over(self, part: Part) -> None:
        while not self._stopped.is_set():
            try:
                return self._parts.put(part, timeout=STOP_S)
            except Full:
                continue
        raise _StoppedError


@contextmanager
def open_local(path: str) -> Iterator[tuple[Stamp, Path]]:
    """See Opener. The stamp is taken before reading: a change on the way must be noticed next time."""
    yield stamp_of(Path(path)), Path(path)


def listen(
    tagger: Tagger, paths: Iterable[Path | str], how: Listening, open_file: Opener = open_local
) -> Generator[Outcome]:
    """Tag every file, in order; one that fails is an outcome, too. Close it to stop in the middle."""
    stopped = Event()
    ahead: deque[_Decoding] = deque()
    pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
    try:
        for path in paths:
            ahead.append(_Decoding(tagger, str(path), how, stopped, open_file))
            pool.submit(ahead[-1].run)
            if len(ahead) == AHEAD:
                yield _outcome(tagger, ahead.popleft(), how)
        while ahead:
            yield _outcome(tagger, ahead.popleft(), how)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def _outcome(tagger: Tagger, decoding: _Decoding, how: Listening) -> Outcome:
    path = decoding.path
    embeddings: list[NDArray[np.float32]] = []
    for part in decoding.parts():
        if isinstance(part, np.ndarray):
            embeddings.append(tagger.embed(part))
        elif isinstance(part, AudioError):
            problem = from_audio(part)
            return Failed(path, problem.slug, problem.detail, problem.hint, decoding.stamp)
        elif isinstance(part, OSError):
            return Failed(path, "unreadable", f"{part.strerror or part}.", _hint_for(part))
        elif isinstance(part, Exception):
            raise part
        else:
            tagging = tagger.finish(np.concatenate(embeddings), part, start_s=how.start_s)
    present = tuple(name for name, score in tagging.scores.items() if score >= how.thresholds[name])
    assert decoding.stamp is not None  # noqa: S101 - taken before the first part
    return Tagged(path, tagging, present, decoding.stamp)


def _hint_for(error: OSError) -> str:
    if isinstance(error, IsADirectoryError):
        return "The folder holds no file to tag: name another one."
    return "Check the path, and that you may read the file."
