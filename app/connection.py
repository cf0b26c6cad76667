"""One client's connection, bounded before and behind a request: what admission cannot see.

uvicorn's fast parser takes headers of any size, and waits for their end for ever. It parses and buffers
the body of a request that was refused long ago, which costs an overloaded service more than the refusal. It
waits for ever until an answer is taken, too. And it ends a request where the client offers another protocol.
"""

import asyncio
import uuid
from contextlib import suppress
from typing import Final, cast

import httptools
from fastapi import FastAPI
from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.context import request_id_of
from app.logs import logger
from app.problems import MEDIA_TYPE, PROBLEMS, problem_of

MOST_HEAD_BYTES: Final = 64 * 1024
HEAD_S: Final = 10.0
SEND_S: Final = 30.0
SLOWEST_BYTES_S: Final = 50_000
"""A client has SEND_S to take what is written to it, and the longer the more that is."""
DISCARD: Final = "music_tagger.discard"
"""The scope's extension that throws a body away: await it with the bytes declared and the most seconds."""


class Connection(HttpToolsProtocol):
    """Gives up a client whose request line and headers are too long, or not complete in time.

    A request that comes before the last one was answered is not served: the connection closes behind the
    answer, and the client may send it again (RFC 9112, 9.3.2). To wait for its turn, it would have to stay
    unread, and that the client left would stay unseen.
    """

    _in_head = True
    _begun = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _body_bytes = 0
    _idle_bytes = 0  # since the last of the body: trailers, extensions of chunks
    _declared = 0
    _enough: asyncio.Event | None = None
    _deaf = False  # what comes is thrown away, until the answer under way is out
    _running: RequestResponseCycle | None = None
    _hanging_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Await the first request."""
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._end_head()
        self._stop_hanging_up()
        if self._enough:
            self._enough.set()
        self._leave_running()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head that is not complete; throw away what nobody will read."""
        if self._enough:
            self._body_bytes += len(data)
            if self._has_all_declared():
                self._enough.set()
            return
        if self._deaf:
            return
        self._head_bytes += len(data)
        self._idle_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        self._await_head()
        if not self._deaf and (self._head_bytes if self._in_head else self._idle_bytes) > MOST_HEAD_BYTES:
            self._give_up()

    def _parse(self, data: bytes) -> None:
        """Parse what came; take offers of other protocols than WebSocket as if they were not there.

        The parser ends a request at such an offer. So another one begins, with the same head less the offer.
        """
        pieces: list[bytes | memoryview] = [data]
        while pieces:
            piece = pieces.pop()
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                if self._offers_else():
                    pieces = [memoryview(piece)[upgrade.args[0] :], self._head_without_offer()]
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                elif not self._deaf and self._unanswered():
                    self._hear_no_more()  # the answer under way would never learn what becomes of the client
                elif not self._deaf and self._should_upgrade():
                    self.handle_websocket_upgrade()
            except httptools.HttpParserError:
                if self._running and self._running.response_started and not self._running.response_complete:
                    self._hear_no_more()
                elif not self._deaf:
                    self.send_400_response(PROBLEMS["bad-request"].detail)
                return

    def _offers_else(self) -> bool:
        """Whether the request offers a protocol that is ignored (RFC 9110, 7.8), as Java's and curl's do."""
        offers = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        return offers and not self._deaf and not self._should_upgrade()

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)
        kept = [(name, value) for name, value in self.headers if name != b"upgrade"]
        lines = [b"%s: %s" % (n, _without_upgrade(v) if n == b"connection" else v) for n, v in kept]
        return b"\r\n".join([line, *lines, b"", b""])

    def _await_head(self) -> None:
        """Bound the wait for the next request: empty lines stop uvicorn's timer, and begin none."""
        idle = self.cycle is not None and self.cycle.response_complete and not self.transport.is_closing()
        if idle and self._timer is None and self.transport.get_protocol() is self:
            self._begin_head()

    def on_message_begin(self) -> None:
        """Await the headers of this request, unless the last one is still to be answered."""
        if self._unanswered() and not self.cycle.response_started:
            self._hear_no_more()
        if self._deaf:
            return
        self._begin_head()
        self._begun = True
        self._body_bytes = self._idle_bytes = 0
        super().on_message_begin()
        self.scope["extensions"] = cast("dict[str, dict[object, object]]", {DISCARD: self._discard})

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; leave out what stands behind a chunked body, which nobody reads."""
        if self._in_head and not self._deaf:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """From here on, admission sees to it."""
        if self._deaf:
            return
        self._end_head()
        if not self._offers_else():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Count what of the body was parsed."""
        if self._deaf:
            return
        self._body_bytes += len(body)
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Tell who waits for the body."""
        if not self._deaf and not self._offers_else():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Close in time, if the connection closes."""
        super().on_response_complete()
        self._close_in_time()

    def timeout_keep_alive_handler(self) -> None:
        """Close in time."""
        super().timeout_keep_alive_handler()
        self._close_in_time()

    def pause_writing(self) -> None:
        """Hang up on a client that does not take its answer."""
        super().pause_writing()
        self._hang_up_later()

    def resume_writing(self) -> None:
        """Go on with the answer."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_hanging_up()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed; what is under way is refused with it, and counted by itself."""
        counted_as = None
        if self._running is not None and self._unanswered():
            state = self._running.scope["state"]
            counted_as = state.setdefault("request_id", request_id_of(cast(Scope, self._running.scope)))
            state["outcome"] = "bad-request"
        self._leave_running()
        refuse_unreadable(self.transport, cast(FastAPI, self.config.app), msg, counted_as)
        self._close_in_time()

    def handle_websocket_upgrade(self) -> None:
        """Hand over to the stream's protocol; tell it where the transport already has too much to write."""
        self._stop_hanging_up()
        super().handle_websocket_upgrade()
        if self.flow.write_paused:
            cast("asyncio.Protocol", self.transport.get_protocol()).pause_writing()

    async def _discard(self, declared: int, seconds: float) -> None:
        """Take what still comes, unread, until it is as much as was declared, or the client hangs up.

        Where nothing was declared, no number of bytes is enough, only the end: to close while one is on its
        way would reset the connection, and the client would lose its answer.
        """
        self._enough, self._declared = asyncio.Event(), declared
        self.flow.resume_reading()
        if self.cycle.more_body and not self._has_all_declared():
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._enough.wait()

    def _has_all_declared(self) -> bool:
        return 0 < self._declared <= self._body_bytes

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _leave_running(self) -> None:
        """Tell the request under way that nobody waits for its answer; uvicorn tells the last one only."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _unanswered(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _hear_no_more(self) -> None:
        """Take what comes, so that it is seen when the client leaves, and throw it away."""
        self._deaf = True
        self._end_head()
        for cycle in (self._running, self.cycle):
            if cycle is not None:
                cycle.keep_alive = False

    def _close_in_time(self) -> None:
        if self.transport.is_closing() and self._hanging_up is None:
            self._hang_up_later()

    def _hang_up_later(self) -> None:
        self._stop_hanging_up()
        patience = SEND_S + self.transport.get_write_buffer_size() / SLOWEST_BYTES_S
        self._hanging_up = self.loop.call_later(patience, self.transport.abort)

    def _stop_hanging_up(self) -> None:
        if self._hanging_up is not None:
            self._hanging_up.cancel()
            self._hanging_up = None

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
        if begun and self._unanswered():
            self._hear_no_more()
        elif begun:
            self.send_400_response("The request's headers are too long or arrive too slowly.")
        else:
            self.transport.close()
            self._close_in_time()


def refuse_unreadable(
    transport: asyncio.Transport, app: FastAPI, detail: str, counted_as: str | None = None
) -> None:
    """Answer what no application sees with a problem, log and count it, and close.

    `counted_as`: the id of a request that an application has begun to see, and logs and counts.
    """
    request_id = counted_as or uuid.uuid4().hex
    problem = problem_of("bad-request", detail, PROBLEMS["bad-request"].hint, f"#{request_id}")
    body = problem.model_dump_json().encode()
    head = b"content-type: %s\r\nx-request-id: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    head %= (MEDIA_TYPE.encode(), request_id.encode(), len(body))
    transport.write(STATUS_LINE[400] + head + body)
    transport.close()
    if counted_as:
        return
    app.state.tagger_service.metrics.requests.labels("unmatched", "bad-request").inc()
    line = {"operation": "unmatched", "status": 400, "outcome": "bad-request"}
    logger.info("request", extra={"request_id": request_id, **line})


def _without_upgrade(connection: bytes) -> bytes:
    tokens = [token.strip() for token in connection.split(b",")]
    return b", ".join(token for token in tokens if token.lower() != b"upgrade")
