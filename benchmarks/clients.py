"""Clients of load.py: a closed loop of so many, or arrivals at a fixed rate whether or not answers come."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from benchmarks.measuring import percentile

BOUNDARY: Final = "benchmark"
OK: Final = 200
REFUSALS: Final = (429, 503)
GAVE_UP: Final = -1
"""In place of a status: the connection failed, or no answer came in time."""


@dataclass
class Outcome:
    """What came of a run: seconds of each good answer, and how often each status came."""

    seconds: float = 0.0
    wall_s: float = 0.0
    """With what came before and, of arrivals, until the last answer."""
    client_cpu_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    without_retry_after: int = 0

    @property
    def goodput(self) -> float:
        """Good answers a second."""
        return len(self.latencies_s) / self.seconds

    def latency_ms(self, percent: float) -> float:
        """That percentile of the good answers."""
        return 1000 * percentile(self.latencies_s, percent)

    @property
    def client_share(self) -> float:
        """How much of one core the clients took."""
        return self.client_cpu_s / self.seconds

    def told(self) -> str:
        """Statuses and counts, for a table."""
        names = {GAVE_UP: "no answer"}
        return ", ".join(f"{names.get(status, status)}: {n}" for status, n in sorted(self.statuses.items()))


@dataclass(frozen=True)
class Load:
    """Where clips are sent, which, and for how long; what is done before `warm_s` does not count."""

    url: str
    clip: bytes
    seconds: float
    warm_s: float
    deadline_s: float
    patience_s: float = 60.0

    def closed(self, clients: int) -> Outcome:
        """Each client sends its next clip when the last was answered, or after Retry-After."""
        return asyncio.run(self._run(lambda send: self._loop(clients, send)))

    def open(self, rate: float) -> Outcome:
        """So many arrivals a second, evenly spaced."""
        return asyncio.run(self._run(lambda send: self._arrivals(rate, send)))

    async def _run(self, drive: Callable[["_Sender"], Awaitable[None]]) -> Outcome:
        timeout = aiohttp.ClientTimeout(total=self.patience_s)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            sender = _Sender(self, session)
            begun, cpu = time.perf_counter(), time.process_time()
            await drive(sender)
            outcome = sender.outcome
            outcome.wall_s = time.perf_counter() - begun
            outcome.client_cpu_s = (time.process_time() - cpu) * self.seconds / outcome.wall_s
            outcome.seconds = self.seconds
            return outcome

    async def _loop(self, clients: int, sender: "_Sender") -> None:
        until = sender.begun + self.warm_s + self.seconds

        async def client() -> None:
            while time.perf_counter() < until:
                await asyncio.sleep(await sender.send())

        tasks = [asyncio.create_task(client()) for _ in range(clients)]
        await asyncio.sleep(until - time.perf_counter())
        for task in tasks:
            task.cancel()  # what is answered after the end does not count
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _arrivals(self, rate: float, sender: "_Sender") -> None:
        tasks = []
        for arrival in range(round(rate * (self.warm_s + self.seconds))):
            await asyncio.sleep(max(0.0, sender.begun + arrival / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(sender.send()))
        await asyncio.gather(*tasks)


class _Sender:
    """Sends one clip at a time and notes what came of it."""

    def __init__(self, load: Load, session: aiohttp.ClientSession) -> None:
        self._load = load
        self._session = session
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="clip"\r\n\r\n'
        self._body = head.encode() + load.clip + f"\r\n--{BOUNDARY}--\r\n".encode()
        self._headers = {
            "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
            "X-Request-Timeout": f"{load.deadline_s:g}",
        }
        self.outcome = Outcome()
        self.begun = time.perf_counter()

    async def send(self) -> float:
        """Send the clip; the seconds to wait before another, as the answer asks."""
        started = time.perf_counter()
        wait_s, status, told = 0.0, GAVE_UP, True
        try:
            async with self._session.post(
                f"{self._load.url}/v1/tags", data=aiohttp.BytesPayload(self._body), headers=self._headers
            ) as answer:
                await answer.read()
                status = answer.status
                if status in REFUSALS:
                    told = "Retry-After" in answer.headers
                    wait_s = float(answer.headers.get("Retry-After", 0))
        except (aiohttp.ClientError, TimeoutError):
            wait_s = 0.1
        self._note(started, status, told=told)
        return wait_s

    def _note(self, started: float, status: int, *, told: bool) -> None:
        """Count by the moment of the answer, so that goodput is what came out in these seconds."""
        now = time.perf_counter() - self.begun
        if not self._load.warm_s <= now <= self._load.warm_s + self._load.seconds:
            return
        self.outcome.statuses[status] += 1
        self.outcome.without_retry_after += not told
        if status == OK:
            self.outcome.latencies_s.append(time.perf_counter() - started)
