"""Programs under test: started, awaited, watched and stopped, with all processes that they start."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PATIENCE_S: Final = 180.0
STOP_S: Final = 15.0
POLL_S: Final = 0.02
TICKS: Final = os.sysconf("SC_CLK_TCK")
SERVICE: Final = ("-m", "app.server")


@dataclass(frozen=True)
class Server:
    """A running server and what it costs."""

    process: "subprocess.Popen[bytes]"
    url: str
    ready_s: float

    @property
    def pid(self) -> int:
        """The main process."""
        return self.process.pid

    def freeze(self) -> None:
        """Stop all its processes, so that it costs nothing while another is measured."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far."""
        return sum(_cpu_s(pid) for pid in family(self.pid))

    def memory_mb(self) -> float:
        """Resident memory in MB of the main process, and of the others what is theirs alone."""
        main, *others = family(self.pid)
        return _memory_mb(main, "Rss") + sum(_memory_mb(pid, "Private_Dirty") for pid in others)


@contextmanager
def serving(
    program: tuple[str, ...] = SERVICE,
    *,
    environment: Mapping[str, object] | None = None,
) -> Iterator[Server]:
    """Run a Python program that listens on TAGGER_PORT, from its readiness on.

    Raises RuntimeError if it ends or does not get ready.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the end of this one ends the server
    port = free_port()
    given = {"PORT": port, "DEVICE": "cpu", "LOG_LEVEL": "error"}
    variables = {f"TAGGER_{name}": str(value) for name, value in given.items()}
    variables |= {name: str(value) for name, value in (environment or {}).items()}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *program],
        env=os.environ | variables,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, f"{url}/health/ready")
        yield Server(process, url, time.perf_counter() - started)
    finally:
        _stop(process)


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def family(pid: int) -> list[int]:
    """A process and all that it started, the living ones."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = {int(child) for task in tasks for child in (task / "children").read_text().split()}
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(member for child in children for member in family(child))]


def _memory_mb(pid: int, field: str) -> float:
    """A field of /proc/PID/smaps_rollup in MB of 1,000,000 bytes; 0 of an ended process."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = re.search(rf"^{field}:\s+(\d+)", text, re.MULTILINE)
    return 1.024e-3 * int(found[1]) if found else 0.0


def threads(pid: int) -> int:
    """Threads of a process."""
    return _status(pid, "Threads")


def descriptors(pid: int) -> int:
    """Open file descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _status(pid: int, field: str) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0
    found = re.search(rf"^{field}:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS  # utime and stime, behind the name in parentheses


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str) -> None:
    until = time.perf_counter() + PATIENCE_S
    while time.perf_counter() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - a URL of this machine
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(POLL_S)  # it does not listen yet, or says that it is not ready
    raise RuntimeError(f"the server did not become ready at {url}; what it wrote says why")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGCONT)
        process.terminate()
        process.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it left behind, too
    process.wait()
