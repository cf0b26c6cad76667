"""The server from its start to ready, and its memory at rest: `python -m benchmarks.startup`."""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx

from benchmarks.common import show, show_machine

ENGINES = ["torch", "openvino-fp32", "openvino"]
PATIENCE_S = 120.0
SETTLE_S = 2.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    for engine in arguments.engines:
        runs = [start(engine) for _ in range(arguments.rounds)]
        ready_s, idle_mb = (statistics.median(figures) for figures in zip(*runs, strict=True))
        rows.append([engine, ready_s, idle_mb])
    show(f"Server, median of {arguments.rounds} starts", ["engine", "ready after s", "idle MB (RSS)"], rows)
    show_machine()


def start(engine: str) -> tuple[float, float]:
    """Seconds until /health/ready is 200, and resident megabytes a moment later."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"TAGGER_PORT": str(port), "TAGGER_ENGINE": engine, "TAGGER_DEVICE": "cpu"}
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "app.server"],
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            wait_until_ready(process, f"http://127.0.0.1:{port}/health/ready")
            ready_s = time.perf_counter() - started
            time.sleep(SETTLE_S)
            return ready_s, resident_mb(process.pid)
        finally:
            process.terminate()


def wait_until_ready(process: "subprocess.Popen[bytes]", url: str) -> None:
    """Ask until the answer is 200. Raises RuntimeError if the server ends or takes too long."""
    until = time.perf_counter() + PATIENCE_S
    with httpx.Client(trust_env=False) as client:
        while time.perf_counter() < until and process.poll() is None:
            try:
                if client.get(url).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass  # it does not listen yet
            time.sleep(0.02)
    raise RuntimeError("the server did not become ready; run `python -m app.server` to see why")


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB of 1,000,000 bytes."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return kib * 1024 / 1e6


if __name__ == "__main__":
    main()
