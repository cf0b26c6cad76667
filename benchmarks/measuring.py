"""Medians of interleaved rounds, Markdown tables, and on what machine they were taken."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from loky import cpu_count

PACKAGES = ("torch", "openvino", "av", "numpy", "fastapi", "uvicorn")


def use_cores(count: int) -> None:
    """Keep this process and its children to so many cores; before PyTorch is imported, which counts them."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def medians_ms(jobs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each job, warm; a job returns the seconds that it took.

    Each round goes over all jobs, so that a slow moment of the machine does not fall on one of them alone.
    """
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(rounds + 1):
        for name, job in jobs.items():
            seconds = job()
            if round_:  # the first one warms up
                taken[name].append(1000 * seconds)
    return {name: statistics.median(times) for name, times in taken.items()}


def timed(job: Callable[..., object], *arguments: object) -> Callable[[], float]:
    """A job for `medians_ms`: the wall-clock seconds of a call."""

    def run() -> float:
        started = time.perf_counter()
        job(*arguments)
        return time.perf_counter() - started

    return run


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table; the first column is text, the others are figures."""
    print(f"\n**{title}**\n")
    print(f"| {' | '.join(columns)} |")
    print(f"|---|{'---:|' * (len(columns) - 1)}")
    for row in rows:
        print(f"| {' | '.join(map(_text, row))} |")
    print(flush=True)


def show_machine(*packages: str) -> None:
    """Print on what it ran, how busy that was, and the versions of what was measured."""
    versions = ", ".join(f"{name} {found}" for name in (*PACKAGES, *packages) if (found := _version(name)))
    print(
        f"{_cpu()}, {cpu_count()} of {os.cpu_count()} cores, "
        f"load average {os.getloadavg()[0]:.1f} at the end; "
        f"Linux {platform.release()}, Python {platform.python_version()}, {versions}.",
        flush=True,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of 100 do not exceed (nearest rank); NaN of none."""
    ranked = sorted(values)
    return ranked[max(0, -int(-percent * len(ranked) // 100) - 1)] if ranked else float("nan")


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
