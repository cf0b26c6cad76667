"""Feed a file to WS /v1/stream as a radio would, a piece at a time, and print the scores as they come.

    python docs/examples/stream_file.py song.mp3 --speed 20

It needs `websockets` alone, which `uvicorn[standard]` brings.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PIECES_PER_S = 4


async def send(socket: ClientConnection, path: Path, bytes_per_s: float) -> None:
    """Send the file at that pace, then say that it has ended; the service may end the stream before."""
    size = max(1, round(bytes_per_s / PIECES_PER_S))
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, size):
            await socket.send(piece)
            await asyncio.sleep(1 / PIECES_PER_S)
    await socket.send(json.dumps({"end": True}))


def line(message: dict[str, Any]) -> str:
    """Write one of the service's messages for people; `*` marks the tags that are present."""
    if message["event"] == "problem":
        return f"{message['title']}: {message['detail']} {message['hint']}"
    if message["event"] == "final":
        found = [(tag["tag"], tag["score"], tag["present"]) for tag in message["tags"]]
        when = f"all {message['audio']['analysed_s']:7.1f} s"
    else:
        found = [(tag, score, message["present"][tag]) for tag, score in message["scores"].items()]
        when = f"{message['start_s']:6.1f}-{message['end_s']:6.1f} s"
    scores = "  ".join(f"{tag} {score:.2f}{'*' if present else ' '}" for tag, score, present in found)
    late = f"  {message['latency_ms']:.0f} ms" if "latency_ms" in message else ""
    return f"{when:<16} {scores}{late}"


async def listen(url: str, path: Path, bytes_per_s: float) -> int:
    """Stream the file and print what is told. Returns the program's exit code."""
    start = {"encoding": "container"}
    if key := os.environ.get("MUSIC_TAGGER_KEY"):
        start["key"] = key
    message: dict[str, Any] = {}
    async with connect(url) as socket:
        await socket.send(json.dumps(start))
        sending = asyncio.create_task(send(socket, path, bytes_per_s))
        try:
            async for text in socket:
                message = json.loads(text)
                print(line(message), flush=True)
        except ConnectionClosed as closed:
            print(closed, file=sys.stderr)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    return 0 if message.get("event") == "final" else 1


def main() -> int:
    """Read the command line and stream."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    service = os.environ.get("MUSIC_TAGGER_URL", "http://127.0.0.1:8000")
    parser.add_argument("--url", default=f"{service.replace('http', 'ws', 1)}/v1/stream")
    parser.add_argument("--kbit-s", type=float, default=128.0, help="bit rate of the file (128)")
    parser.add_argument("--speed", type=float, default=1.0, help="times as fast as it plays (1)")
    options = parser.parse_args()
    return asyncio.run(listen(options.url, options.file, options.kbit_s * 125 * options.speed))


if __name__ == "__main__":
    raise SystemExit(main())
