"""Write the locks of the image: every package that it installs, by version and SHA-256 (`make lock`).

PyTorch is apart, as its CPU build and its CUDA build are other files under other hashes, from other indexes:

- `requirements.lock`: all but PyTorch's two packages and what only their CUDA build needs; from PyPI.
- `torch-cuda.lock`: these; from PyPI.
- `torch-cpu.lock`: the same versions from PyTorch's CPU index. Where that index cannot be reached, they are
  pinned without hashes, which this command says; pip checks hashes as soon as the file has some.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
LOCKS: Final = ROOT / "deploy" / "image"
CPU_INDEX: Final = os.environ.get("TORCH_INDEX_URL", "https://download.pytorch.org/whl/cpu")
TORCH: Final = {"torch", "torchaudio"}
ONLY_CUDA: Final = re.compile(r"triton|cuda-.+|nvidia-.+")
PIN: Final = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^ ;\\]+)", re.MULTILINE)
HEADER: Final = "# Made by `make lock`; not to be edited by hand.\n"


def main() -> None:
    """Resolve anew, and write the three files."""
    entries = split(_compile(["pyproject.toml"]))
    torch = {name: entry for name, entry in entries.items() if name in TORCH or ONLY_CUDA.fullmatch(name)}
    rest = {name: entry for name, entry in entries.items() if name not in torch}
    _write("requirements.lock", "".join(rest.values()))
    _write("torch-cuda.lock", "".join(torch.values()))
    _write("torch-cpu.lock", _lock_cpu(pins(torch[name] for name in sorted(TORCH))))


def split(lock: str) -> dict[str, str]:
    """A lock's text -> each package's entry, by its name."""
    starts = [match.start() for match in PIN.finditer(lock)] + [len(lock)]
    entries = [lock[start:end] for start, end in pairwise(starts)]
    return {entry.partition("==")[0]: entry for entry in entries}


def pins(entries: Iterable[str]) -> dict[str, str]:
    """Entries of a lock -> version by name."""
    return {match[1]: match[2] for entry in entries for match in PIN.finditer(entry)}


def _lock_cpu(versions: dict[str, str]) -> str:
    wanted = "".join(f"{name}=={version}+cpu\n" for name, version in versions.items())
    try:
        return _compile(["-", "--no-deps", "--index-url", CPU_INDEX], wanted)
    except subprocess.CalledProcessError:
        before = (LOCKS / "torch-cpu.lock").read_text(encoding="utf-8").removeprefix(HEADER)
        if all(line in before for line in wanted.splitlines()):
            return before
        print(f"{CPU_INDEX} gave no hashes: torch-cpu.lock has versions only", file=sys.stderr)
        return f"# Without hashes, as the CPU index gave none where this was made.\n{wanted}"


def _compile(arguments: list[str], given: str | None = None) -> str:
    platform = ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
    command = [sys.executable, "-m", "uv", "--no-config", "pip", "compile", "--quiet", "--generate-hashes"]
    command += ["--upgrade", "--no-annotate", "--no-header", *platform, *arguments]
    return subprocess.run(
        command, cwd=ROOT, input=given, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def _write(name: str, lock: str) -> None:
    (LOCKS / name).write_text(HEADER + lock, encoding="utf-8")


if __name__ == "__main__":
    main()
