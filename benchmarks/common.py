"""What the benchmarks share: clips, medians of interleaved rounds, tables, and what machine it was."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.conftest import CLIPS
from tests.encoding import decode, encode

RATE_HZ: Final = 44_100
"""Of the clips: the most common one, and dearer to resample than 48 kHz. The song's samples are taken as they
are, so it plays 8 % slower, which changes no time."""

console = Console(width=None if os.isatty(1) else 160)


def use_cores(count: int | None) -> None:
    """Keep this process and its children to so many cores; before PyTorch is imported, which counts them."""
    if count is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def make_clip(seconds: float, encoding: str) -> bytes:
    """The tests' sung song, repeated to that length, in stereo at `RATE_HZ`."""
    song = decode(Path(CLIPS, "sung_pop.opus"))
    samples = round(seconds * RATE_HZ)
    return encode(np.tile(song, -(-samples // song.shape[1]))[:, :samples], RATE_HZ, encoding)


def median_ms(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median wall-clock milliseconds of each job, warm."""
    return medians({name: partial(seconds_of, job) for name, job in jobs.items()}, rounds)


def medians(jobs: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """As `median_ms`, for jobs that tell their seconds themselves.

    Each round goes over all jobs, so that a slow moment of the machine does not fall on one of them alone.
    """
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(rounds + 1):
        for name, job in jobs.items():
            seconds = job()
            if round_:  # the first one warms up
                taken[name].append(1000 * seconds)
    return {name: statistics.median(times) for name, times in taken.items()}


def seconds_of(job: Callable[[], object]) -> float:
    """Wall-clock seconds of one run."""
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numbers of 100 and more without decimals."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(_text, row))
    console.print(table)


def show_machine() -> None:
    """Print on what it ran, and how busy that was."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "openvino", "av"))
    console.print(
        f"{_cpu()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} "
        f"at the end; Python {platform.python_version()}, {packages}"
    )


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU"
    )


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return str(value)
