"""The clips of one request, in memory: a multipart field or the raw body, the same bytes either way.

Starlette's own form parser spools files to disk; here a clip is only ever held in memory, within what
`admission` lets in, and nothing of the other fields is kept.
"""

import io
from dataclasses import dataclass, field
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from app.problems import ProblemError

FIELD: Final = b"file"
FORM: Final = b"multipart/form-data"
RAW_TYPES: Final = ("audio/", "video/", "application/octet-stream", "application/ogg")


async def read_clip(request: Request) -> io.BytesIO:
    """Read the request's clip, whichever way it was sent. Raises ProblemError, ClientDisconnect."""
    header = request.headers.get("content-type", "")
    media_type, options = parse_options_header(header)
    if media_type == FORM:
        return _only(await _read_form(request, options.get(b"boundary", b"")))
    if media_type and not media_type.decode("latin-1").startswith(RAW_TYPES):
        raise ProblemError("media-type", f"Content-Type is {media_type.decode('latin-1')[:100]}.")
    return await read_raw(request)


async def read_clips(request: Request, most: int) -> list[io.BytesIO]:
    """Read the form's clips in their order, `most` at most. Raises ProblemError, ClientDisconnect."""
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    if media_type != FORM:
        raise ProblemError(
            "media-type",
            f"Content-Type is {media_type.decode('latin-1')[:100] or 'missing'}.",
            hint="Send multipart/form-data, a field `file` for each (curl -F file=@a.mp3 -F file=@b.mp3).",
        )
    return await _read_form(request, options.get(b"boundary", b""), most)


async def read_raw(request: Request) -> io.BytesIO:
    """Read the whole body, whatever it is. Raises ProblemError, ClientDisconnect."""
    clip = io.BytesIO()
    async for chunk in request.stream():
        clip.write(chunk)
    clip.seek(0)
    return clip


async def _read_form(request: Request, boundary: bytes, most: int | None = None) -> list[io.BytesIO]:
    if not boundary:
        raise ProblemError("malformed-multipart", "The Content-Type header names no boundary.")
    form = _Form(most)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        async for chunk in request.stream():
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise ProblemError("malformed-multipart", f"The form cannot be parsed: {error}.") from error
    return form.clips()


def _only(clips: list[io.BytesIO]) -> io.BytesIO:
    if len(clips) > 1:
        hint = "Send one clip, or send them all to /v1/tags/batch."
        raise ProblemError("bad-combination", "The form has several fields named `file`.", hint=hint)
    return clips[0]


@dataclass(slots=True)
class _Form:
    """Listens to the parser and keeps the parts named `file`, `most` at most."""

    most: int | None = None
    files: list[io.BytesIO] = field(default_factory=list)
    ended: bool = False
    _name: bytes = b""
    _value: bytes = b""
    _disposition: bytes = b""
    _sink: io.BytesIO | None = None

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

    def clips(self) -> list[io.BytesIO]:
        if not self.ended:
            raise ProblemError("malformed-multipart")
        if not self.files:
            raise ProblemError("no-clip")
        for file in self.files:
            file.seek(0)
        return self.files

    def _begin(self) -> None:
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
        if parse_options_header(self._disposition)[1].get(b"name") == FIELD:
            if len(self.files) == self.most:
                raise ProblemError(
                    "too-many-clips", f"The form has more than {self.most} fields named `file`."
                )
            self._sink = io.BytesIO()
            self.files.append(self._sink)

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._sink is not None:
            self._sink.write(memoryview(data)[start:end])

    def _end(self) -> None:
        self.ended = True
