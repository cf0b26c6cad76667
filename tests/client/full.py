"""A real server without room: another client has announced an upload that takes it all."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx

from tests.app.service import PATIENCE_S, Process

KEY = "the-key"
ANNOUNCED_BYTES = 990_000


@contextmanager
def filled(server: Process) -> Iterator[socket.socket]:
    """Take all room for uploads (1 MB), and send nothing, until the socket is closed."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname or "", address.port or 0)) as other:
        other.sendall(
            f"POST /v1/tags HTTP/1.1\r\nHost: other\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Length: {ANNOUNCED_BYTES}\r\n\r\n".encode()
        )
        wait_until(lambda: metric(server, "music_tagger_inflight_bytes") == ANNOUNCED_BYTES)
        yield other
    wait_until(lambda: metric(server, "music_tagger_inflight_bytes") == 0)


@contextmanager
def hang_up_after_a_refusal(server: Process, other: socket.socket) -> Iterator[None]:
    """Close the other client's socket as soon as an upload was refused for lack of room."""
    before = refusals(server)

    def wait_and_close() -> None:
        wait_until(lambda: refusals(server) > before)
        other.close()

    waiting = threading.Thread(target=wait_and_close)
    waiting.start()
    yield
    waiting.join()


def refusals(server: Process) -> int:
    """How many uploads met a full server so far."""
    return round(metric(server, "music_tagger_requests_total", 'outcome="bytes-full"'))


def metric(server: Process, name: str, label: str = "") -> float:
    """The sum of a metric's values over all label sets that have this label."""
    told = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=PATIENCE_S)
    lines = [line for line in told.text.splitlines() if line.startswith(name) and label in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what must come true soon."""
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.02)
