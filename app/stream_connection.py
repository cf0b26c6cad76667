"""One stream's connection, bounded in what it writes and in how long it closes: uvicorn bounds what is read.

An opening that cannot be read uvicorn neither answers nor closes, and it fails to stop while there is one.

uvicorn answers each ping at once. Of a client that takes no answer, the pongs would fill the memory, and the
transport would wait for ever to be rid of them before it closed.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Final, cast

from fastapi import FastAPI
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from app.connection import refuse_unreadable

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent

CLOSE_S: Final = 3.0
"""Seconds in which a client must take what was written when its stream ended."""
LOGGER: Final = logging.getLogger("uvicorn.error.streams")
LOGGER.addFilter(lambda record: record.levelno >= logging.WARNING)
"""Below a warning, uvicorn and websockets tell each client's address, query and headers, keys among them."""


class StreamConnection(WebSocketsSansIOProtocol):
    """Reads nothing from a client that does not take what it is told, and hangs up on one that never does."""

    _write_paused = False
    _hanging_up: asyncio.TimerHandle | None = None

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type] # uvicorn's own
        self.logger = self.conn.logger = LOGGER

    def data_received(self, data: bytes) -> None:
        """Refuse an opening that cannot be read."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.close_sent = True  # so that a stop only closes
            detail = "The stream's opening has too many headers, too long ones, or a body."
            refuse_unreadable(self.transport, cast(FastAPI, self.config.app), detail)

    async def send(self, message: "ASGISendEvent") -> None:
        """Send a message of the application's; an opening that it refuses is done with, too."""
        await super().send(message)
        if self.close_sent:  # else uvicorn logs an error, as if nothing had been answered
            self.handshake_complete = True

    def pause_writing(self) -> None:
        """Read no more, as pings are answered whether or not their answers are taken."""
        super().pause_writing()
        self._write_paused = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """Read on, unless the application has not taken what was read before."""
        super().resume_writing()
        self._write_paused = False
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    async def receive(self) -> "ASGIReceiveEvent":
        """Receive the next message; uvicorn reads on then, even where that must wait."""
        message = await super().receive()
        if self._write_paused and not self.transport.is_closing():
            self.transport.pause_reading()
        return message

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        if self._hanging_up:
            self._hanging_up.cancel()
        super().connection_lost(exc)

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Give the client a moment to take what it was told, and to answer the closing if it got one."""
        super().on_task_complete(task)
        if not self.disconnected:
            patience = CLOSE_S + (self.close_timeout if self.close_timer else 0)
            self._hanging_up = self.loop.call_later(patience, self.transport.abort)
