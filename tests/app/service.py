"""Means of the tests under tests/app: clips, an application in this process, a server in another one."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast
from unittest.mock import patch

import httpx
import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from starlette.types import Message
from typer.testing import CliRunner, Result

import app.cli
from app.cli import cli
from app.main import create_app
from app.settings import Settings
from app.state import State
from model.tagger import Tagger

PATIENCE_S = 60.0
RATE = 16_000


@cache
def tune(seconds: float, pitch_hz: float = 220.0) -> bytes:
    """A WAV of chords over a beat, mono, 16 kHz."""
    time_s = np.arange(int(seconds * RATE)) / RATE
    chord = sum(np.sin(2 * np.pi * pitch_hz * ratio * time_s) for ratio in (1, 1.25, 1.5, 2))
    beat = np.exp(-8 * (time_s % 0.5)) * np.sin(2 * np.pi * 60 * time_s)
    return wav(0.1 * chord + 0.4 * beat)


def wav(samples: NDArray[np.float64]) -> bytes:
    """Samples in [-1, 1] as a 16-bit mono WAV."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def run(*arguments: object) -> Result:
    """The command line in this process, on a wide terminal without colours."""
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(cli, [str(item) for item in arguments])


_load_once = cache(app.cli._load)


def run_tag(*arguments: object) -> Result:
    """`music-tagger tag` on the CPU, but that the first call alone loads the tagger."""
    with patch("app.cli._load", _load_once):
        return run("tag", "--device", "cpu", *arguments)


def scores(response: httpx.Response) -> dict[str, float]:
    """The scores of an answer that must be good."""
    assert response.status_code == 200, response.text
    return {tag["tag"]: tag["score"] for tag in response.json()["tags"]}


def check_problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """An answer must be this problem, complete, with a hint; returns it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = cast(dict[str, Any], response.json())
    assert set(problem) == {"type", "title", "status", "detail", "instance", "hint"}
    assert problem["type"] == f"/problems/{slug}"
    assert problem["status"] == status
    assert problem["hint"]
    assert response.headers["x-request-id"] in problem["instance"]
    return problem


class HeldTagger:
    """The real tagger, whose network can be held, so that tests meet work in a known state."""

    def __init__(self, tagger: Tagger) -> None:
        self._tagger = tagger
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Semaphore(0)
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the tagger's own
        return getattr(self._tagger, name)

    def embed(self, segments: NDArray[np.float32]) -> NDArray[np.float32]:
        self.entered.release()
        while not self.free.is_set():
            time.sleep(0.001)  # in Python, so that an asynchronous exception can strike here
        if self.failure:
            raise self.failure
        return self._tagger.embed(segments)

    def hold(self) -> None:
        """From now on the network answers nothing."""
        while self.entered.acquire(blocking=False):
            pass
        self.free.clear()

    async def wait_until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=PATIENCE_S)


@dataclass
class Service:
    """A running application, its client, and a tagger that can be held."""

    app: FastAPI
    client: httpx.AsyncClient
    tagger: HeldTagger
    failed: threading.Event

    @property
    def state(self) -> State:
        return cast(State, self.app.state.tagger_service)

    @property
    def passes(self) -> float:
        """Forward passes so far."""
        return self.metric("music_tagger_batch_segments_count")

    async def tag(self, clip: bytes, **options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        return await self.client.post("/v1/tags", content=clip, **options)

    def metric(self, name: str, **labels: str) -> float:
        return self.state.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def serving(tagger: Tagger, **settings: Any) -> AsyncIterator[Service]:  # noqa: ANN401 - any setting
    """Run the application in this process, warm."""
    held, failed = HeldTagger(tagger), threading.Event()
    settings = {"batch_segments": 2, "decoders": 1, **settings}  # small, so that the start is quick
    app = create_app(Settings(**settings), tagger=cast(Tagger, held), on_failure=failed.set)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", timeout=PATIENCE_S
        ) as client:
            service = Service(app, client, held, failed)
            await until(lambda: service.state.warm)
            try:
                yield service
            finally:
                held.free.set()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what must come true soon."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class RawRequest:
    """One request spoken in ASGI itself: piece by piece, any headers, and a client that may vanish."""

    app: FastAPI
    headers: dict[str, str] = field(default_factory=dict)
    path: str = "/v1/tags"
    incoming: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    outgoing: list[Message] = field(default_factory=list)
    pieces_taken: int = 0

    def feed(self, body: bytes, *, more: bool) -> None:
        self.incoming.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def vanish(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def run(self) -> httpx.Response | None:
        """Answered: the response; not answered: none."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in self.headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
        }
        await self.app(scope, self._receive, self._send)
        return self.response()

    def response(self) -> httpx.Response | None:
        if not self.outgoing:
            return None
        start = self.outgoing[0]
        body = b"".join(message.get("body", b"") for message in self.outgoing[1:])
        return httpx.Response(start["status"], headers=start["headers"], content=body)

    async def _receive(self) -> Message:
        message = await self.incoming.get()
        self.pieces_taken += message["type"] == "http.request"
        return message

    async def _send(self, message: Message) -> None:
        self.outgoing.append(message)


@dataclass
class Process:
    """A real server process on a port of its own."""

    process: subprocess.Popen[str]
    url: str
    log: list[str]

    def post(self, clip: bytes | Iterable[bytes], **options: Any) -> httpx.Response:  # noqa: ANN401
        return httpx.post(f"{self.url}/v1/tags", content=clip, timeout=PATIENCE_S, **options)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=PATIENCE_S)

    def metric(self, name: str) -> float:
        line = next(line for line in self.get("/metrics").text.splitlines() if line.startswith(name))
        return float(line.rpartition(" ")[2])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log]


@contextmanager
def server_process(program: Sequence[str] = ("-m", "app.server"), **settings: object) -> Iterator[Process]:
    """Start the service as a process and wait until it is ready."""
    port = free_port()
    env = {**os.environ, "TAGGER_DEVICE": "cpu", "TAGGER_PORT": str(port)}
    env.update({f"TAGGER_{name.upper()}": str(value) for name, value in settings.items()})
    command = [sys.executable, *program]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    log: list[str] = []
    reader = threading.Thread(target=_collect, args=(process, log), daemon=True)
    reader.start()
    service = Process(process, f"http://127.0.0.1:{port}", log)
    try:
        _wait_until_ready(service)
        yield service
    finally:
        process.kill()
        process.wait()
        reader.join(PATIENCE_S)
        assert process.stderr is not None
        process.stderr.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return cast(int, probe.getsockname()[1])


def _collect(process: subprocess.Popen[str], log: list[str]) -> None:
    assert process.stderr is not None
    log.extend(line.rstrip("\n") for line in process.stderr)


def _wait_until_ready(service: Process) -> None:
    until_s = time.monotonic() + 2 * PATIENCE_S
    while time.monotonic() < until_s and service.process.poll() is None:
        try:
            if service.get("/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server did not get ready:\n" + "\n".join(service.log))
