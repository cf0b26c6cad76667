"""The clips of one request, in memory: a multipart field or the raw body, the same bytes either way.

Starlette's own form parser spools files to disk; here a clip is only ever held in memory, within what
`admission` lets in, and nothing of the other fields is kept. That memory is a file without a name, so that a
decoder's process can read it, too.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, Final, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from app.problems import ProblemError, refused_if_no_file_is_left

FIELD: Final = b"file"
FORM: Final = b"multipart/form-data"
MOST_OTHER_PARTS: Final = 100
"""Of a form, beside clips: each costs the event loop some microseconds, and 128 MB hold millions of them."""
MOST_TYPE: Final = 1000
"""Characters of a Content-Type: the time to parse one grows with their square."""
PIECE: Final = 64 * 1024
"""Bytes of a form that are parsed in a row: what looks much like its boundary takes long."""
MOST_TEXT: Final = 200
"""Bytes of a field that may be a name typed in place of a file; no clip is as short."""
RAW_TYPES: Final = ("audio/", "video/", "application/octet-stream", "application/ogg")


@contextmanager
def memory_file() -> Iterator[BinaryIO]:
    """An empty file in memory, or without a name on disk where the system has no such files (macOS).

    At the end of the block its memory is given back, although a decoder may still be reading.
    Raises ProblemError if the process may open no more files.
    """
    with refused_if_no_file_is_left():
        opened = _nameless_file()
    with opened as file:
        try:
            yield file
        finally:
            file.truncate(0)


def _nameless_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return cast(BinaryIO, os.fdopen(os.memfd_create("clip"), "w+b", buffering=0))
    return cast(BinaryIO, tempfile.TemporaryFile(buffering=0))


@asynccontextmanager
async def clip_of(request: Request) -> AsyncIterator[BinaryIO]:
    """The request's clip, whichever way it was sent, until the block ends.

    Raises ProblemError, ClientDisconnect.
    """
    media_type, options = type_of(request)
    with ExitStack() as files:
        if media_type == FORM:
            hint = "Send one clip, or send them all to /v1/tags/batch."
            several = ProblemError("bad-combination", "The form has several fields named `file`.", hint=hint)
            [clip] = await _read_form(request, options.get(b"boundary", b""), files, 1, several)
            yield clip
        elif media_type and not media_type.decode("latin-1").startswith(RAW_TYPES):
            raise ProblemError("media-type", f"Content-Type is {media_type.decode('latin-1')[:100]}.")
        else:
            yield await read_raw(request, files)


@asynccontextmanager
async def clips_of(request: Request, most: int) -> AsyncIterator[list[BinaryIO]]:
    """The form's clips in their order, `most` at most, until the block ends.

    Raises ProblemError, ClientDisconnect.
    """
    media_type, options = type_of(request)
    if media_type != FORM:
        raise ProblemError(
            "media-type",
            f"Content-Type is {media_type.decode('latin-1')[:100] or 'missing'}.",
            hint="Send multipart/form-data, a field `file` for each (curl -F file=@a.mp3 -F file=@b.mp3).",
        )
    with ExitStack() as files:
        too_many = ProblemError("too-many-clips", f"The form has more than {most} fields named `file`.")
        yield await _read_form(request, options.get(b"boundary", b""), files, most, too_many)


def type_of(request: Request) -> tuple[bytes, dict[bytes, bytes]]:
    """The body's media type in lower case, and its options. Raises ProblemError."""
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        detail = f"Content-Encoding is {coding[:100]}, which is not undone here."
        raise ProblemError("media-type", detail, hint="Send the clip as it is, without Content-Encoding.")
    content_type = request.headers.get("content-type", "")
    if len(content_type) > MOST_TYPE:
        raise ProblemError("media-type", f"Content-Type has {len(content_type)} characters.")
    return parse_options_header(content_type)


async def read_raw(request: Request, files: ExitStack) -> BinaryIO:
    """The whole body, whatever it is, until `files` closes. Raises ProblemError, ClientDisconnect."""
    clip = files.enter_context(memory_file())
    async for chunk in request.stream():
        clip.write(chunk)
    return clip


async def _read_form(
    request: Request, boundary: bytes, files: ExitStack, most: int, too_many: ProblemError
) -> list[BinaryIO]:
    if not boundary:
        raise ProblemError("malformed-multipart", "The Content-Type header names no boundary.")
    form = _Form(files, most, too_many)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        async for chunk in request.stream():
            for start in range(0, len(chunk), PIECE):
                parser.write(chunk[start : start + PIECE])
                await asyncio.sleep(0)  # others have their turn
        parser.finalize()
    except FormParserError as error:
        raise ProblemError("malformed-multipart", f"The form cannot be parsed: {error}.") from error
    return form.all_clips()


@dataclass(slots=True)
class _Form:
    """Listens to the parser and keeps the parts named `file`, `most` at most, until `files` closes."""

    files: ExitStack
    most: int
    too_many: ProblemError
    clips: list[BinaryIO] = field(default_factory=list)
    unnamed: list[BinaryIO] = field(default_factory=list)
    parts: int = 0
    ended: bool = False
    _name: bytes = b""
    _value: bytes = b""
    _disposition: bytes = b""
    _sink: BinaryIO | None = None

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_name,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_end": self._end,
        }

    def all_clips(self) -> list[BinaryIO]:
        if not self.ended:
            raise ProblemError("malformed-multipart")
        if not self.clips:
            raise ProblemError("no-clip")
        for clip in self.unnamed:
            if text := _as_text(clip):
                raise ProblemError("no-clip", f"The field `file` holds a text, not a file: {text!r}.")
        return self.clips

    def _begin(self) -> None:
        self.parts += 1
        if self.parts > self.most + MOST_OTHER_PARTS:
            raise ProblemError("malformed-multipart", f"The form has more than {self.parts - 1} parts.")
        self._disposition, self._sink = b"", None

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _on_headers(self) -> None:
        options = parse_options_header(self._disposition)[1]
        if options.get(b"name") == FIELD:
            if len(self.clips) == self.most:
                raise self.too_many
            self._sink = self.files.enter_context(memory_file())
            self.clips.append(self._sink)
            if b"filename" not in options:
                self.unnamed.append(self._sink)

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._sink is not None:
            self._sink.write(memoryview(data)[start:end])

    def _end(self) -> None:
        self.ended = True


def _as_text(clip: BinaryIO) -> str:
    """What a clip says if it is but some letters, the name of the file that was meant, say; else nothing."""
    if clip.tell() > MOST_TEXT:
        return ""
    clip.seek(0)
    text = clip.read().decode("utf-8", "replace")
    return text if text.isprintable() and "\ufffd" not in text else ""
