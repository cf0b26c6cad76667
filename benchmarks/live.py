"""One hour of music through WS /v1/stream at 20 times its pace: latency of the scores, memory of the server.

    python -m benchmarks.live

starts a server of its own (set by TAGGER_* as usual), plays the clips to it over and over as 16-bit samples
in pieces of 0.25 s, and prints latencies and the server's memory, its decoders' included. A window's latency
is the time from the moment at which the piece with its last sample was handed to the socket until its scores
are here.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.processes import Server, serving

ROOT = Path(__file__).parents[1]
RATE_HZ = 44_100
PIECE_S = 0.25


def samples(path: Path) -> bytes:
    """Decode a clip to mono samples of 16 bits at RATE_HZ."""
    resampler = av.AudioResampler("s16", "mono", RATE_HZ)
    with av.open(str(path)) as container:
        frames = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
    return b"".join(frame.to_ndarray().tobytes() for frame in [*frames, *resampler.resample(None)])


class Live:
    """One stream: sends at its pace, notes when each piece was sent, and how long scores took."""

    def __init__(self, loop_of_sound: bytes, seconds: float, speed: float) -> None:
        self._sound = loop_of_sound
        self._pieces = round(seconds / PIECE_S)
        self._speed = speed
        self._sent_at: list[float] = []
        self.latencies_s: list[float] = []
        self.behind_s = 0.0
        """How far the sender was behind its pace at worst: held back by the socket, or by a busy machine."""
        self.final: dict[str, Any] = {}

    @property
    def progress(self) -> float:
        """The part that has been sent, from 0 to 1."""
        return len(self._sent_at) / self._pieces

    async def run(self, url: str) -> None:
        """Play it all and hear what is told."""
        async with connect(url, proxy=None, max_queue=None) as stream:
            await stream.send(json.dumps({"encoding": "pcm_s16le", "sample_rate_hz": RATE_HZ}))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(stream))
                tasks.create_task(self._hear(stream))

    async def _send(self, stream: ClientConnection) -> None:
        size = round(PIECE_S * RATE_HZ) * 2
        doubled = self._sound + self._sound[:size]  # so that no piece is cut at the loop's seam
        started = time.monotonic()
        for index in range(self._pieces):
            due = started + (index + 1) * PIECE_S / self._speed
            await asyncio.sleep(due - time.monotonic())
            self.behind_s = max(self.behind_s, time.monotonic() - due)
            at = index * size % len(self._sound)
            self._sent_at.append(time.monotonic())
            await stream.send(doubled[at : at + size])
        await stream.send(json.dumps({"end": True}))

    async def _hear(self, stream: ClientConnection) -> None:
        async for text in stream:
            heard = time.monotonic()
            message = json.loads(text)
            if message["event"] == "window":
                last = min(int((message["end_s"] - 0.001) / PIECE_S), len(self._sent_at) - 1)
                self.latencies_s.append(heard - self._sent_at[last])
            elif message["event"] == "final":
                self.final = message
            else:
                raise SystemExit(f"{message['title']}: {message['detail']}")


async def measure(live: Live, server: Server) -> list[float]:
    """Run a stream. Returns the server's memory in MB at its beginning, middle and end."""
    running = asyncio.create_task(live.run(f"ws{server.url.removeprefix('http')}/v1/stream"))
    memory_mb = []
    for part in (0.02, 0.5, 1.0):  # the first after a few windows: what is loaded at first use is loaded
        while live.progress < part and not running.done():
            await asyncio.sleep(0.05)
        memory_mb.append(server.memory_mb())
    await running
    return memory_mb


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("clips", type=Path, nargs="*", help="played in turn, again and again (tests/clips)")
    parser.add_argument("--seconds", type=float, default=3600, help="of sound (3600)")
    parser.add_argument("--speed", type=float, default=20, help="times as fast as it plays (20)")
    options = parser.parse_args()
    clips = options.clips or sorted((ROOT / "tests" / "clips").glob("*.opus"))
    live = Live(b"".join(samples(path) for path in clips), options.seconds, options.speed)
    with serving() as server:
        memory_mb = asyncio.run(measure(live, server))
    p50, p95, p99 = np.percentile(live.latencies_s, [50, 95, 99]) * 1000
    start, middle, end = memory_mb
    print(
        f"sound      {live.final['audio']['analysed_s']:.0f} s at {options.speed:g} times its pace, "
        f"at worst {live.behind_s * 1000:.0f} ms behind it\n"
        f"windows    {len(live.latencies_s)}\n"
        f"latency    p50 {p50:.0f} ms   p95 {p95:.0f} ms   p99 {p99:.0f} ms   "
        f"most {max(live.latencies_s) * 1000:.0f} ms\n"
        f"server     {start:.0f} MB at the beginning, {middle:.0f} MB half-way, {end:.0f} MB at the end"
    )


if __name__ == "__main__":
    main()
