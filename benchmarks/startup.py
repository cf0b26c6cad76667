"""The server from start to ready, at rest, and with a song of two hours: `python -m benchmarks.startup`."""

import argparse
import statistics
import threading
import time
from typing import Final

import httpx

from benchmarks.clips import make_song
from benchmarks.measuring import show, show_machine
from benchmarks.processes import Server, serving

SETTLE_S: Final = 2.0
HOURS: Final = 2.0
KBIT_S: Final = 128  # 115 MB; the service takes up to 128 MB


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--songs", type=int, default=2, help="of the starts, how many also get the long song")
    arguments = parser.parse_args()
    if arguments.songs < 1:
        parser.error("--songs must be 1 or more")
    song = make_song(HOURS, KBIT_S)
    runs = [start(song if round_ < arguments.songs else None) for round_ in range(arguments.rounds)]
    ready_s, idle_mb, song_s, above_mb = (
        statistics.median([value for value in figures if value is not None])
        for figures in zip(*runs, strict=True)
    )
    show(
        f"The server: medians of {arguments.rounds} starts",
        ["figure", "measured", "target"],
        [
            ["seconds to ready", ready_s, "8"],
            ["MB resident at rest", idle_mb, "850"],
            [f"MB above rest, most, in a {HOURS:g} h MP3 of {len(song) / 1e6:.0f} MB", above_mb, "150"],
            [f"seconds for that MP3 of {HOURS:g} h", song_s, ""],
        ],
    )
    show_machine()


def start(song: bytes | None) -> tuple[float, float, float | None, float | None]:
    """Seconds to ready; MB resident a moment later; with a song, its seconds, and its most MB above that."""
    with serving() as server:
        time.sleep(SETTLE_S)
        idle_mb = server.memory_mb()
        if song is None:
            return server.ready_s, idle_mb, None, None
        started = time.perf_counter()
        watched = Watch(server)
        watched.start()
        answer = httpx.post(
            f"{server.url}/v1/tags",
            content=song,
            headers={"X-Request-Timeout": "600"},
            timeout=600,
            trust_env=False,
        )
        answer.raise_for_status()
        song_s = time.perf_counter() - started
        held_mb = len(song) / 1e6  # the body is a file in memory, which is part of no process
        return server.ready_s, idle_mb, song_s, watched.most_mb() - idle_mb + held_mb


class Watch(threading.Thread):
    """Looks at a server's memory ten times a second."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._most_mb = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        """Look until asked for the result."""
        while not self._over.wait(0.1):
            self._most_mb = max(self._most_mb, self._server.memory_mb())

    def most_mb(self) -> float:
        """The most MB that were seen."""
        self._over.set()
        self.join()
        return self._most_mb


if __name__ == "__main__":
    main()
