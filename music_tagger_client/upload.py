"""The bodies of requests: clips in pieces, so that none is ever held whole."""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, Final, cast

import httpx

Clip = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | io.BufferedIOBase | io.RawIOBase
"""A path, a file's bytes, or a file opened for reading bytes, which is sent from where it stands."""

PIECE_BYTES: Final = 1 << 16
MEDIA_TYPE: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Body:
    """What a request sends: its headers, and its pieces, from the beginning at every call."""

    headers: dict[str, str] = field(default_factory=dict)
    pieces: Callable[[], Iterable[bytes]] = tuple
    rewindable: bool = True
    """Whether it can be sent again."""


class _Source(io.RawIOBase):
    """A file from where it stands, as a file of its own, without name.

    One that can be rewound is as long as it was at first, whatever is added to it meanwhile; where it became
    shorter, reading raises OSError.
    """

    def __init__(self, file: IO[bytes]) -> None:
        if isinstance(file, io.TextIOBase):
            raise TypeError("The file is opened as text: open it in binary mode, 'rb'.")
        self._file = file
        self._start = file.tell() if file.seekable() else None
        if self._start is not None:
            self._size = file.seek(0, os.SEEK_END) - self._start
            file.seek(self._start)

    def read(self, size: int = -1, /) -> bytes:
        if self._start is None:
            return self._file.read(size)
        left = max(self._size - self.tell(), 0)
        found = self._file.read(left if size < 0 else min(size, left))
        if not found and left and size:
            raise OSError("The file became shorter while it was sent.")
        return found

    def seekable(self) -> bool:
        return self._start is not None

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if self._start is None:
            raise io.UnsupportedOperation("this file cannot be rewound")
        from_where = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._size}[whence]
        return self._file.seek(self._start + from_where + offset) - self._start

    def tell(self) -> int:
        if self._start is None:
            raise io.UnsupportedOperation("this file cannot be rewound")
        return self._file.tell() - self._start


@contextmanager
def raw_body(clip: Clip) -> Iterator[Body]:
    """One clip as the body itself. Raises OSError, TypeError."""
    with ExitStack() as opened:
        source = _open(clip, opened)
        headers = {"Content-Type": MEDIA_TYPE}
        if source.seekable():
            headers["Content-Length"] = str(source.seek(0, os.SEEK_END))
        yield Body(headers, partial(_pieces, source), source.seekable())


@contextmanager
def form_body(clips: Sequence[Clip]) -> Iterator[Body]:
    """Several clips, each a form's field `file`. Raises OSError, TypeError, ValueError."""
    if isinstance(clips, str | bytes):
        raise TypeError("Several clips are a list of them; a single one is for `tag`.")
    if not clips:
        raise ValueError("There is no clip to send.")
    with ExitStack() as opened:
        sources = [_open(clip, opened) for clip in clips]
        # httpx rewinds each part before it is sent. Only parts with a file name are files; any will do.
        parts = [("file", ("clip", cast(BinaryIO, source), MEDIA_TYPE)) for source in sources]
        form = httpx.Request("POST", "http://form", files=parts)
        names = ("Content-Type", "Content-Length")
        headers = {name: form.headers[name] for name in names if name in form.headers}
        pieces = cast(httpx.SyncByteStream, form.stream)
        yield Body(headers, lambda: pieces, all(source.seekable() for source in sources))


def _open(clip: Clip, opened: ExitStack) -> _Source:
    if isinstance(clip, bytes | bytearray | memoryview):
        return _Source(io.BytesIO(clip))
    if isinstance(clip, str | os.PathLike):
        return _Source(opened.enter_context(Path(clip).open("rb")))
    if not hasattr(clip, "read"):
        raise TypeError(f"A clip is a path, bytes or a file opened for reading bytes, not {type(clip)}.")
    return _Source(cast("IO[bytes]", clip))


def _pieces(source: _Source) -> Iterator[bytes]:
    if source.seekable():
        source.seek(0)
    yield from iter(partial(source.read, PIECE_BYTES), b"")
