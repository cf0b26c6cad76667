"""One client's connection, bounded before and behind a request: what admission cannot see.

uvicorn's fast parser takes headers of any size, and waits for their end for ever. And it parses and buffers
the body of a request that was refused long ago, which costs an overloaded service more than the refusal.
"""

import asyncio
from contextlib import suppress
from typing import Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD_BYTES: Final = 64 * 1024
HEAD_S: Final = 10.0
DISCARD: Final = "music_tagger.discard"
"""The scope's extension that throws a body away: await it with the bytes declared and the most seconds."""


class Connection(HttpToolsProtocol):
    """Gives up a client whose request line and headers are too long, or not complete in time."""

    _in_head = True
    _begun = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _body_bytes = 0
    _idle_bytes = 0  # since the last of the body: trailers, extensions of chunks
    _declared = 0
    _enough: asyncio.Event | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Await the first request."""
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._end_head()
        if self._enough:
            self._enough.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head that is not complete; throw away what nobody will read."""
        if self._enough:
            self._body_bytes += len(data)
            if self._has_all_declared():
                self._enough.set()
            return
        self._head_bytes += len(data)
        self._idle_bytes += len(data)
        super().data_received(data)
        if (self._head_bytes if self._in_head else self._idle_bytes) > MOST_HEAD_BYTES:
            self._give_up()

    def on_message_begin(self) -> None:
        """Await the headers of this request."""
        self._begin_head()
        self._begun = True
        self._body_bytes = self._idle_bytes = 0
        super().on_message_begin()
        self.scope["extensions"] = cast("dict[str, dict[object, object]]", {DISCARD: self._discard})

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; leave out what stands behind a chunked body, which nobody reads."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """From here on, admission sees to it."""
        self._end_head()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Count what of the body was parsed."""
        self._body_bytes += len(body)
        self._idle_bytes = 0
        super().on_body(body)

    def handle_websocket_upgrade(self) -> None:
        """Hand over to the stream's protocol; tell it where the transport already has too much to write."""
        super().handle_websocket_upgrade()
        if self.flow.write_paused:
            cast("asyncio.Protocol", self.transport.get_protocol()).pause_writing()

    async def _discard(self, declared: int, seconds: float) -> None:
        """Take what still comes, unread, until it is as much as was declared, or the client hangs up.

        Where nothing was declared, no number of bytes is enough: to close while one is on its way would reset
        the connection, and the client would lose its answer.
        """
        self._enough, self._declared = asyncio.Event(), declared
        self.flow.resume_reading()
        if not self._has_all_declared():
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._enough.wait()

    def _has_all_declared(self) -> bool:
        return 0 < self._declared <= self._body_bytes

    def _begin_head(self) -> None:
        self._end_head()
        self._in_head, self._head_bytes = True, 0
        self._timer = self.loop.call_later(HEAD_S, self._give_up)

    def _end_head(self) -> None:
        self._in_head = self._begun = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        begun = self._begun
        self._end_head()
        if self.transport.is_closing():
            return
        if begun:
            self.send_400_response("The request's headers are too long or arrive too slowly.")
        else:
            self.transport.close()
