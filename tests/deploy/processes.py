"""Processes below a process, as Linux tells them."""

import os
import signal
from contextlib import suppress
from pathlib import Path


def below(pid: int) -> dict[int, str]:
    """Every process below this one: its id and command line."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone again
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(stat[1])
            titles[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: titles[child] for child in found - {pid}}


def kill_tree(pid: int) -> None:
    """Kill a process and all below it."""
    for victim in [pid, *below(pid)]:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
