"""Fuzz the decoder: real clips of every format, damaged on purpose, each read as the service reads a clip.

    python -m tests.fuzz --inputs 20000 --seed 0

Every input follows from the seed and its number. It is read in a child process, which is replaced when it
dies, so that a crash in native code, a hang and a greedy allocation are found like any other failure; such
inputs are kept in `artifacts/fuzz`. Exit code 1 if there was one.
"""

import ctypes
import multiprocessing
import random
import resource
import signal
import struct
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, BinaryIO, Final, cast

import numpy as np
import typer

from model.audio import AudioError, AudioReader
from tests.encoding import ALL_ENCODINGS, Pipe, decode, encode

MOST_CPU_S: Final = 2.0
MOST_WALL_S: Final = 60.0  # a child that neither works nor answers; far from what a busy machine does to it
MOST_MEMORY: Final = 2 << 30  # bytes of address space; an idle child has 0.7 GB
MOST_BYTES: Final = 1 << 20
SONG: Final = Path(__file__).parent / "clips" / "sung_pop.opus"
FOOTPRINT_EVERY: Final = 20
KEPT: Final = Path("artifacts/fuzz")
AudioRead = Callable[[bytes, random.Random], None]


def read(data: bytes, rng: random.Random) -> None:
    """Read a clip to its end as the service does: mostly whole, else a part of it, or live from a stream."""
    way = rng.choice(["whole"] * 4 + ["part", "part behind a seek", "live"])
    source = cast(BinaryIO, Pipe(data, len(data))) if way == "live" else data
    start_s = {"part": 0.5, "part behind a seek": 11.0}.get(way, 0.0)
    duration_s = 0.7 if way == "part" else None
    with AudioReader(source, start_s=start_s, duration_s=duration_s, live=way == "live") as reader:
        for chunk in reader:
            assert np.isfinite(chunk).all()


@cache
def sources() -> Mapping[str, bytes]:
    """Real clips of 1.2 s in every format that can be written, and of the codecs that can only be read."""
    song = decode(SONG)[:, 48_000 : 48_000 + 57_600]
    noise = random.Random(0).randbytes(20_000)
    frames = b"".join(b"\xff\xff\x40\x00" + noise[start : start + 132] for start in range(0, 15_000, 132))
    speex = b"Speex   1.2".ljust(28, b"\0") + struct.pack(
        "<13i", 1, 80, 16_000, 1, 4, 1, -1, 320, 0, 1, 0, 0, 0
    )
    written = {name: encode(song, 48_000, name, {"title": "A song"}) for name in ALL_ENCODINGS}
    return {
        **written,
        "mp1": frames,
        "wav-gsm": _wav(0x31, 65, b"\x40\x01", noise),
        "wav-speex": _wav(0xA109, 70, speex, noise),
    }


def _wav(codec: int, block: int, extra: bytes, data: bytes) -> bytes:
    layout = struct.pack("<HHIIHHH", codec, 1, 8000, 1625, block, 0, len(extra)) + extra
    body = (
        b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", len(data)) + data
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


# Mutations: a clip in, a damaged clip out.


def _span(clip: bytearray, rng: random.Random) -> tuple[int, int]:
    """A stretch of the clip, often in its header, where damage hurts most."""
    reach = rng.choice([64, 512, len(clip), len(clip), len(clip)])
    start = rng.randrange(min(reach, len(clip)))
    return start, min(len(clip), start + rng.choice([1, 2, 4, 8, 64, 1024, 16_384]))


def flip_bits(clip: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 4, 64])):
        place, _ = _span(clip, rng)
        clip[place] ^= 1 << rng.randrange(8)


def overwrite(clip: bytearray, rng: random.Random) -> None:
    start, end = _span(clip, rng)
    clip[start:end] = rng.choice([rng.randbytes(end - start), bytes(end - start), b"\xff" * (end - start)])


def set_number(clip: bytearray, rng: random.Random) -> None:
    start, _ = _span(clip, rng)
    _put(clip, start, rng)


def set_length(clip: bytearray, rng: random.Random) -> None:
    """Edit a field beside a name of four letters, where RIFF, AIFF, MP4, CAF and FLAC keep their lengths."""
    names = [place for place in range(len(clip) - 8) if clip[place : place + 4].isalpha()][:64]
    if names:
        _put(clip, max(0, rng.choice(names) + rng.choice([-4, 4])), rng)


def _put(clip: bytearray, place: int, rng: random.Random) -> None:
    size = rng.choice([1, 2, 4, 8])
    edge = 1 << 8 * size
    number = rng.choice([0, 1, edge - 1, edge // 2, edge // 2 - 1, len(clip), rng.randrange(edge)]) % edge
    clip[place : place + size] = number.to_bytes(size, rng.choice(["big", "little"]))


def truncate(clip: bytearray, rng: random.Random) -> None:
    del clip[_span(clip, rng)[0] + 1 :]


def cut_out(clip: bytearray, rng: random.Random) -> None:
    start, end = _span(clip, rng)
    del clip[start:end]


def insert(clip: bytearray, rng: random.Random) -> None:
    start, end = _span(clip, rng)
    clip[start:start] = rng.randbytes(end - start)


def repeat(clip: bytearray, rng: random.Random) -> None:
    start, end = _span(clip, rng)
    clip[start:start] = clip[start:end] * rng.choice([1, 2, 100])


def splice(clip: bytearray, rng: random.Random) -> None:
    """Go on with the tail of another format."""
    other = rng.choice([*sources().values()])
    clip[_span(clip, rng)[0] :] = other[rng.randrange(len(other)) :]


def swap(clip: bytearray, rng: random.Random) -> None:
    (start, end), (place, _) = _span(clip, rng), _span(clip, rng)
    moved = clip[start:end]
    del clip[start:end]
    clip[place:place] = moved


def replace_all(clip: bytearray, rng: random.Random) -> None:
    """Keep what tells the format, and nothing else."""
    clip[rng.choice([4, 12, 40]) :] = rng.randbytes(rng.choice([10, 1000, 20_000]))


MUTATIONS: Final = (
    *(flip_bits, overwrite, set_number, set_length, set_length, truncate, cut_out),
    *(insert, repeat, splice, swap, replace_all),
)


def input_of(seed: int, number: int) -> tuple[str, bytes, random.Random]:
    """The input of that number: the format it was made of, its bytes, and the dice to go on with."""
    rng = random.Random(f"{seed}:{number}")
    name = rng.choice([*sources()])
    clip = bytearray(sources()[name])
    for _ in range(rng.choice([1, 1, 2, 4])):
        rng.choice(MUTATIONS)(clip, rng)
        clip = clip[:MOST_BYTES] or bytearray(b"\0")
    return name, bytes(clip), rng


# The child, and the parent that watches it.


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds."""

    rss_mb: float
    threads: int
    files: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one input ended; `failure` tells what must never happen."""

    number: int
    name: str
    kind: str
    cpu_s: float = 0.0
    footprint: Footprint | None = None
    failure: str = ""


@dataclass(slots=True)
class Report:
    """How all inputs ended; footprints are of the child after a tenth of its inputs, and at its end."""

    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)
    slowest: Outcome | None = None
    before: Footprint | None = None
    after: Footprint | None = None


def footprint() -> Footprint:
    """Of this process, without memory that is free but that the allocator keeps: it is no leak."""
    ctypes.CDLL(None).malloc_trim(0)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    files = len(list(Path("/proc/self/fd").iterdir()))
    return Footprint(int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), files)


def work(numbers: range, seed: int, read: AudioRead, parent: Connection) -> None:
    """In the child: read one input after the other and tell each outcome."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sources()
    for number in numbers:
        name, data, rng = input_of(seed, number)
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)  # SIGPROF ends the process, wherever it hangs
        kind, failure = "decoded", ""
        try:
            read(data, rng)
        except AudioError as error:
            kind = type(error).__name__
        except BaseException as error:
            kind, failure = type(error).__name__, traceback.format_exc()
        signal.setitimer(signal.ITIMER_PROF, 0)
        cpu_s = time.process_time() - started
        seen = footprint() if number % FOOTPRINT_EVERY == 0 or number == numbers[-1] else None
        parent.send(Outcome(number, name, kind, cpu_s, seen, failure))


def outcomes(numbers: range, seed: int, read: AudioRead) -> Iterator[Outcome]:
    """Of all inputs in their order, from as many children as it takes."""
    context = multiprocessing.get_context("spawn")
    while numbers:
        mine, theirs = context.Pipe(duplex=False)
        child = context.Process(target=work, args=(numbers, seed, read, theirs), daemon=True)
        child.start()
        theirs.close()
        try:
            while numbers and mine.poll(MOST_WALL_S):
                outcome: Outcome = mine.recv()
                numbers = numbers[1:]
                yield outcome
        except EOFError:
            pass
        child.kill() if numbers and child.is_alive() else child.join()
        child.join()
        if numbers:
            yield _death(numbers[0], seed, child.exitcode)
            numbers = numbers[1:]


def _death(number: int, seed: int, exit_code: int | None) -> Outcome:
    hung = exit_code in (-signal.SIGPROF, -signal.SIGKILL)
    kind = "hang" if hung else "crash"
    return Outcome(number, input_of(seed, number)[0], kind, MOST_CPU_S * hung, None, f"exit code {exit_code}")


def fuzz(numbers: range, seed: int, read: AudioRead = read) -> Report:
    """Read all inputs and gather how they ended; those that failed are kept."""
    report = Report()
    for outcome in outcomes(numbers, seed, read):
        report.kinds[outcome.kind] += 1
        if report.slowest is None or outcome.cpu_s > report.slowest.cpu_s:
            report.slowest = outcome
        if outcome.number >= numbers[len(numbers) // 10]:
            report.before = report.before or outcome.footprint
        report.after = outcome.footprint or report.after
        if outcome.failure:
            report.failures.append(outcome)
            KEPT.mkdir(parents=True, exist_ok=True)
            Path(KEPT, f"{seed}-{outcome.number}.bin").write_bytes(input_of(seed, outcome.number)[1])
    return report


def main(
    inputs: Annotated[int, typer.Option(help="How many inputs to read.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Inputs follow from it and their number.")] = 0,
    first: Annotated[int, typer.Option(help="Number of the first input, to repeat a failure.")] = 0,
) -> None:
    """Fuzz the decoder, and tell what was found."""
    report = fuzz(range(first, first + inputs), seed)
    for kind, count in report.kinds.most_common():
        typer.echo(f"{count:7} {kind}")
    typer.echo(f"slowest: {report.slowest}")
    typer.echo(f"after a tenth of the inputs: {report.before}")
    typer.echo(f"at the end:                  {report.after}")
    for failure in report.failures:
        typer.echo(f"FAILED: --seed {seed} --first {failure.number} --inputs 1: {failure}")
    raise typer.Exit(bool(report.failures))


if __name__ == "__main__":
    typer.run(main)
