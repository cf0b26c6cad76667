"""Networks and proxies as they are: connections that break, servers that say nothing, answers of others."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import cast
from urllib.parse import urlsplit

RESET_AT_CLOSE = b"\1\0\0\0\0\0\0\0"


@dataclass
class Line:
    """A line to somewhere, and what happened on it."""

    url: str
    connections: int = 0
    received: bytearray = field(default_factory=bytearray)


@contextmanager
def breaking(target: str, times: int) -> Iterator[Line]:
    """A line to the server at `target` that breaks that many times in the middle of a request, then holds."""
    address = urlsplit(target).hostname, urlsplit(target).port

    def serve(client: socket.socket, line: Line) -> None:
        if line.connections <= times:
            client.recv(1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            return
        with socket.create_connection(cast(tuple[str, int], address)) as server:
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()

    with _listening(serve) as line:
        yield line


@contextmanager
def silent() -> Iterator[Line]:
    """A server that takes everything and says nothing."""

    def serve(client: socket.socket, line: Line) -> None:
        while data := client.recv(1 << 16):
            line.received += data

    with _listening(serve) as line:
        yield line


@contextmanager
def trickling(seconds: float) -> Iterator[Line]:
    """A server that answers a byte every tenth of a second, for so long."""

    def serve(client: socket.socket, line: Line) -> None:
        line.received += client.recv(1 << 16)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        for _ in range(round(seconds * 10)):
            client.sendall(b" ")
            time.sleep(0.1)

    with _listening(serve) as line:
        yield line


@contextmanager
def proxy_that_answers(status: int, body: str, headers: dict[str, str] | None = None) -> Iterator[Line]:
    """A proxy whose service is away: it answers every request itself."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            line.connections += 1
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        line = Line(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield line
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _listening(serve: Callable[[socket.socket, Line], None]) -> Iterator[Line]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        line = Line(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def attend(client: socket.socket) -> None:
            with closing(client), suppress(OSError):
                serve(client, line)

        def accept() -> None:
            with suppress(OSError):  # the listener was closed
                while True:
                    client, _ = listener.accept()
                    line.connections += 1
                    threading.Thread(target=attend, args=(client,), daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield line
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
