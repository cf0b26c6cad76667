"""Half an hour of good and bad requests, mixed: `python -m benchmarks.soak`.

Clips of every format, long and short, cut off, empty, silent; text and a ZIP; a body that drips, uploads and
waits that are given up, bodies too large, batches, wrong keys and parameters. The server's memory, with its
decoders', threads and file descriptors are sampled into a CSV file, and their medians over the first tenth
after the warm-up are compared with those of the last. In the end every request that was sent must be in
/metrics. Exits with 1 if memory grew by more than 5 %, if threads grew, if descriptors grew by more than two,
if a request is missing, or if an answer was not one that the request may get.
"""

import argparse
import asyncio
import csv
import io
import random
import re
import statistics
import time
import zipfile
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from benchmarks.clips import ENCODINGS, make_clip, make_silence, make_song
from benchmarks.measuring import show, show_machine
from benchmarks.processes import Server, descriptors, serving, threads

KEY: Final = "soak"
KEYED: Final = {"Authorization": f"Bearer {KEY}"}
ENVIRONMENT: Final = {"TAGGER_API_KEYS": KEY, "TAGGER_MAX_UPLOAD_MB": 24, "TAGGER_UPLOAD_IDLE_S": 2}
TOO_MANY_BYTES: Final = 25_000_000
BUSY: Final = (429, 503)
GROWTH: Final = 0.05
IN_HAND: Final = {"threads": 0, "descriptors": 2}
"""What may be more at the end because more requests happen to be in hand."""
SETTLE_S: Final = 5.0
COUNTED: Final = re.compile(r'^music_tagger_requests_total\{operation="(.*?)",outcome="(.*?)"\} (.*)$', re.M)
NO_ANSWER: Final = 0
FIELDS: Final = ("seconds", "memory_mb", "threads", "descriptors")
Sample = tuple[float, float, int, int]


@dataclass(frozen=True)
class Kind:
    """One kind of request: how often it comes, what it may be answered, and how it is counted."""

    name: str
    weight: float
    send: Callable[["Soak"], Awaitable[int]]
    allowed: tuple[int, ...]
    operation: str = "POST /v1/tags"


class Soak:
    """The clients, and what they sent and got."""

    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session
        self.sent: Counter[str] = Counter()
        self.answers: Counter[tuple[str, int]] = Counter()
        self.samples: list[Sample] = []
        self._started = time.monotonic()

    async def run(self, kinds: list[Kind], clients: int, seconds: float) -> None:
        """Send for so long, and sample meanwhile."""
        until = self._started + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sample(until))
            for seed in range(clients):
                group.create_task(self._client(kinds, random.Random(seed), until))
        await asyncio.sleep(SETTLE_S)  # what was given up is counted once its work is dropped

    async def post(
        self, body: bytes, path: str = "/v1/tags", *, headers: dict[str, str] | None = None
    ) -> int:
        """Send a raw body; the answer's status."""
        url = self.server.url + path
        async with self.session.post(url, data=io.BytesIO(body), headers=headers or KEYED) as answer:
            await answer.read()
            return answer.status

    async def post_form(self, path: str, clips: list[bytes]) -> int:
        """Send a form; the answer's status."""
        form = aiohttp.FormData()
        for clip in clips:
            form.add_field("file", io.BytesIO(clip), filename="clip")
        async with self.session.post(self.server.url + path, data=form, headers=KEYED) as answer:
            await answer.read()
            return answer.status

    async def get(self, path: str) -> str:
        """Get a page, and count that."""
        self.sent[f"GET {path}"] += 1
        async with self.session.get(self.server.url + path, headers=KEYED) as answer:
            return await answer.text()

    async def give_up(self, clip: bytes, part: float, after_s: float, piece_s: float = 0.0) -> int:
        """Send a part of the body, half a kilobyte each `piece_s` if told, and hang up after a while.

        Returns the answer's status if one came before that.
        """
        host, port = self.server.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/tags HTTP/1.1\r\nHost: soak\r\nAuthorization: Bearer {KEY}\r\n"
        writer.write(f"{head}Content-Length: {len(clip)}\r\n\r\n".encode())
        body = clip[: int(part * len(clip))]
        try:
            for start in range(0, len(body), 512 if piece_s else len(body)):
                writer.write(body[start : start + 512] if piece_s else body)
                await writer.drain()
                await asyncio.sleep(piece_s)
            answer = await asyncio.wait_for(reader.readline(), after_s)
            return int(answer.split()[1]) if answer else NO_ANSWER
        except (TimeoutError, ConnectionError):
            return NO_ANSWER
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _client(self, kinds: list[Kind], chance: random.Random, until: float) -> None:
        weights = [kind.weight for kind in kinds]
        while time.monotonic() < until:
            [kind] = chance.choices(kinds, weights)
            self.sent[kind.operation] += 1
            try:
                status = await kind.send(self)
            except (aiohttp.ClientError, TimeoutError, ConnectionError):
                status = NO_ANSWER
            self.answers[kind.name, status] += 1
            await asyncio.sleep(chance.expovariate(20))

    async def _sample(self, until: float) -> None:
        pid = self.server.pid
        pause_s = max(0.5, min(5.0, (until - time.monotonic()) / 100))
        while time.monotonic() < until:
            await self.get("/metrics")
            seconds = round(time.monotonic() - self._started, 1)
            self.samples.append((seconds, self.server.memory_mb(), threads(pid), descriptors(pid)))
            await asyncio.sleep(pause_s)


def kinds_of() -> list[Kind]:
    """All kinds of requests."""
    mp3 = make_clip(30.0, "mp3")
    song = make_song(hours=0.35, kbit_s=128)
    text = b"This is not music. " * 1000
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("song.wav", make_clip(5.0, "wav"))
    silent = make_silence(10.0)
    cut = make_clip(10.0, "m4a")[:20_000]  # its index stood at the end
    hurried = KEYED | {"X-Request-Timeout": "0.2"}
    as_json = KEYED | {"Content-Type": "application/json"}
    good = [
        Kind(f"{name}, {seconds:g} s", 2, _posting(make_clip(seconds, name)), (200, *BUSY))
        for name in ENCODINGS
        for seconds in (5.0, 30.0)
    ]
    return [
        *good,
        Kind("20 minutes", 0.5, _posting(song), (200, *BUSY)),
        Kind("MP3 cut off", 2, _posting(mp3[: len(mp3) // 3]), (200, *BUSY)),
        Kind("M4A without its index", 2, _posting(cut), (422, *BUSY)),
        Kind("damaged Ogg", 2, _posting(_damage(make_clip(30.0, "ogg-vorbis"))), (200, 415, 422, *BUSY)),
        Kind("text", 2, _posting(text), (415, *BUSY)),
        Kind("ZIP", 2, _posting(archive.getvalue()), (415, *BUSY)),
        Kind("empty", 1, _posting(b""), (400, *BUSY)),
        Kind("silence", 1, _posting(silent), (422, *BUSY)),
        Kind("too many bytes", 1, _posting(bytes(TOO_MANY_BYTES)), (413, *BUSY)),
        Kind("wrong key", 1, _posting(mp3, headers={"Authorization": "Bearer wrong"}), (403,)),
        Kind("no key", 1, _posting(mp3, headers={"X-Nothing": "0"}), (401,)),
        Kind("bad threshold", 1, _posting(mp3, "/v1/tags?threshold=high"), (422, *BUSY)),
        Kind("little time", 1, _posting(song, headers=hurried), (408, 504, *BUSY)),
        Kind("drips", 0.5, lambda soak: soak.give_up(mp3, 0.02, 6.0, 0.1), (408, *BUSY)),
        Kind("stalls", 0.5, lambda soak: soak.give_up(mp3, 0.5, 6.0), (408, *BUSY)),
        Kind("gives up the upload", 2, lambda soak: soak.give_up(mp3, 0.5, 0.05), (NO_ANSWER, *BUSY)),
        Kind("gives up waiting", 2, lambda soak: soak.give_up(song, 1.0, 0.1), (NO_ANSWER, *BUSY)),
        Kind("form", 2, lambda soak: soak.post_form("/v1/tags", [mp3]), (200, *BUSY)),
        Kind(
            "batch",
            1,
            lambda soak: soak.post_form("/v1/tags/batch", [mp3, text, silent, cut]),
            (200, *BUSY),
            "POST /v1/tags/batch",
        ),
        Kind(
            "Hugging Face",
            1,
            _posting(mp3, "/hf/audio-classification"),
            (200, *BUSY),
            "POST /hf/audio-classification",
        ),
        Kind("JSON", 1, _posting(b"{}", headers=as_json), (415, *BUSY)),
        Kind("unknown path", 1, _posting(text, "/v1/tag"), (404, *BUSY), "POST unmatched"),
    ]  # fmt: skip


def _damage(clip: bytes) -> bytes:
    """A hole in the middle, and flipped bytes."""
    chance = random.Random(0)
    damaged = bytearray(clip[: len(clip) // 2] + clip[len(clip) // 2 + 5000 :])
    for _ in range(100):
        damaged[chance.randrange(1000, len(damaged))] ^= 0xFF
    return bytes(damaged)


def _posting(
    body: bytes, path: str = "/v1/tags", headers: dict[str, str] | None = None
) -> Callable[[Soak], Awaitable[int]]:
    return lambda soak: soak.post(body, path, headers=headers)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--warm-up", type=float, default=0.2, help="part of the time before the comparison")
    parser.add_argument("--csv", type=Path, default=Path("artifacts/soak.csv"))
    arguments = parser.parse_args()
    kinds = kinds_of()
    with serving(environment=ENVIRONMENT) as server:
        soak, counted = asyncio.run(drive(server, kinds, arguments.clients, 60 * arguments.minutes))
    write(arguments.csv, soak.samples)
    verdicts = [
        *show_growth(soak.samples, arguments.warm_up),
        show_account(soak.sent, counted),
        show_answers(kinds, soak.answers),
    ]
    print(f"Samples: {arguments.csv}. {'passed' if all(verdicts) else 'FAILED'}")
    show_machine("aiohttp")
    raise SystemExit(0 if all(verdicts) else 1)


async def drive(server: Server, kinds: list[Kind], clients: int, seconds: float) -> tuple[Soak, Counter[str]]:
    """Soak the server; what was sent, and what /metrics counted in the end."""
    timeout = aiohttp.ClientTimeout(total=180)
    # Closed after each, as else a broken connection might be tried twice.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        soak = Soak(server, session)
        before = counts_of(await soak.get("/metrics"))
        soak.sent.clear()
        soak.sent["GET /metrics"] = 1  # it counts itself when it has been answered
        await soak.run(kinds, clients, seconds)
        sent = soak.sent.copy()
        counted = counts_of(await soak.get("/metrics"))
        soak.sent = sent
        counted.subtract(before)
        return soak, counted


def counts_of(exposition: str) -> Counter[str]:
    """Requests by operation, from /metrics."""
    counts: Counter[str] = Counter()
    for operation, _, number in COUNTED.findall(exposition):
        counts[operation] += int(float(number))
    return counts


def show_growth(samples: list[Sample], warm_up: float) -> list[bool]:
    """Print the beginning beside the end; whether each stayed."""
    settled = samples[int(warm_up * len(samples)) :]
    tenth = max(1, len(settled) // 10)
    rows, verdicts = [], []
    for index, name in enumerate(FIELDS[1:], start=1):
        start = statistics.median(sample[index] for sample in settled[:tenth])
        end = statistics.median(sample[index] for sample in settled[-tenth:])
        most = max(sample[index] for sample in samples)
        rows.append([name, float(start), float(end), end / start, float(most)])
        verdicts.append(end <= start * (1 + GROWTH) if name == "memory_mb" else end <= start + IN_HAND[name])
    minutes = samples[-1][0] / 60
    show(f"The server over {minutes:.0f} minutes", ["", "start", "end", "end / start", "most"], rows)
    return verdicts


def show_account(sent: Counter[str], counted: Counter[str]) -> bool:
    """Print what was sent beside what was counted; whether all was counted.

    What is refused by its headers is counted as `POST unmatched`, as no route has seen it.
    """
    operations = sorted(sent | counted)
    rows = [[operation, sent[operation], counted[operation]] for operation in operations]
    rows.append(["all", sent.total(), counted.total()])
    show("Every request accounted for", ["operation", "sent", "in /metrics"], rows)
    return sent.total() == counted.total()


def show_answers(kinds: list[Kind], answers: Counter[tuple[str, int]]) -> bool:
    """Print each kind's answers; whether all were allowed."""
    rows, fine = [], True
    for kind in kinds:
        got = {status: number for (name, status), number in sorted(answers.items()) if name == kind.name}
        bad = {status: number for status, number in got.items() if status not in kind.allowed}
        fine &= not bad
        told = ", ".join(f"{status or 'none'}: {number}" for status, number in got.items())
        rows.append([kind.name, told, sum(bad.values())])
    show("Answers", ["request", "statuses", "not allowed"], rows)
    return fine


def write(path: Path, samples: list[Sample]) -> None:
    """Keep the samples as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([FIELDS, *samples])


if __name__ == "__main__":
    main()
