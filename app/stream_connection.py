"""One stream's connection, bounded in what it writes and in how long it closes: uvicorn bounds what is read.

An opening that cannot be read uvicorn neither answers nor closes, and it fails to stop while there is one.

uvicorn answers each ping at once. Of a client that takes no answer, the pongs would fill the memory, and the
transport would wait for ever to be rid of them before it closed.
"""

import asyncio
import logging
from copy import copy
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

from fastapi import FastAPI
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from app.connection import SEND_S, refuse_unreadable

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent

MOST_TOLD: Final = 200
"""Characters of what is wrong with an opening: it may quote a header."""
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
            self._refuse_opening("The stream's opening has too many headers, too long ones, or a body.")
        if self.transport.is_closing() and self._hanging_up is None:
            self._hang_up_in(CLOSE_S)

    def handle_connect(self, event: Request) -> None:
        """Begin the stream, or refuse an opening that is none."""
        answer = copy(self.conn).accept(event)
        if answer.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            super().handle_connect(event)
        else:
            self._refuse_opening((answer.body or b"").decode(errors="replace").strip()[:MOST_TOLD])

    def _refuse_opening(self, detail: str) -> None:
        self.handshake_initiated = self.close_sent = True  # so that a stop only closes
        refuse_unreadable(self.transport, cast(FastAPI, self.config.app), detail)

    async def send(self, message: "ASGISendEvent") -> None:
        """Send a message of the application's; an opening that it refuses is done with, too."""
        await super().send(message)
        if self.close_sent:  # else uvicorn logs an error, as if nothing had been answered
            self.handshake_complete = True

    def pause_writing(self) -> None:
        """Read no more, as pings are answered whether or not their answers are taken; hang up in time."""
        super().pause_writing()
        self._write_paused = True
        self.transport.pause_reading()
        if self._hanging_up is None:
            self._hang_up_in(SEND_S)

    def resume_writing(self) -> None:
        """Read on, unless the application has not taken what was read before."""
        super().resume_writing()
        self._write_paused = False
        if self.transport.is_closing():
            return
        if not self.close_sent:  # else it must be gone in time, whatever it takes
            self._stop_hanging_up()
        if not self.read_paused:
            self.transport.resume_reading()

    async def receive(self) -> "ASGIReceiveEvent":
        """Receive the next message; uvicorn reads on then, even where that must wait."""
        message = await super().receive()
        if self._write_paused and not self.transport.is_closing():
            self.transport.pause_reading()
        return message

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._stop_hanging_up()
        super().connection_lost(exc)

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Give the client a moment to take what it was told, and to answer the closing if it got one."""
        super().on_task_complete(task)
        if not self.disconnected:
            patience = CLOSE_S + (self.close_timeout if self.close_timer else 0)
            self._hang_up_in(patience)

    def _hang_up_in(self, seconds: float) -> None:
        self._stop_hanging_up()
        self._hanging_up = self.loop.call_later(seconds, self.transport.abort)

    def _stop_hanging_up(self) -> None:
        if self._hanging_up is not None:
            self._hanging_up.cancel()
            self._hanging_up = None
