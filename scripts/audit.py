"""Ask whether the locked packages have known vulnerabilities (`make audit`): pip-audit over the locks.

pip-audit passes over a package of which its service knows nothing, and so finds nothing where a mirror
answers "not found" to every question. So the service is first asked for a package whose holes are known.

Exit codes: 0 nothing found, 1 something found, 2 no service was reached. With `--may-be-offline` the last is
said and passes, for a CI without the Internet.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from scripts.lock import LOCKS, pins

KNOWN_BAD: Final = "jinja2==2.4.1\n"
SERVICES: Final = ("pypi", "osv")
TIMEOUT_S: Final = 15
FOUND, NOT_REACHED = 1, 2


def main(arguments: list[str]) -> int:
    """Audit the locks with the first service that works. Returns the exit code."""
    service = next((name for name in SERVICES if _audit(name, KNOWN_BAD, quiet=True) == FOUND), None)
    if service is None:
        print("NOT AUDITED: no service of known vulnerabilities (PyPI, OSV) was reached", file=sys.stderr)
        return 0 if "--may-be-offline" in arguments else NOT_REACHED
    return _audit(service, requirements(), quiet=False)


def requirements() -> str:
    """All packages of the CUDA image, which has those of the CPU's and more, without hashes."""
    texts = [(LOCKS / name).read_text(encoding="utf-8") for name in ("requirements.lock", "torch-cuda.lock")]
    return "".join(f"{name}=={version}\n" for name, version in pins(texts).items())


def _audit(service: str, packages: str, *, quiet: bool) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "requirements.txt")
        file.write_text(packages, encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            "--requirement",
            str(file),
            "--no-deps",
            "--disable-pip",
        ]
        command += [
            "--vulnerability-service",
            service,
            "--timeout",
            str(TIMEOUT_S),
            "--progress-spinner",
            "off",
        ]
        done = subprocess.run(command, capture_output=quiet, text=True)
    said_so = not quiet or "jinja2" in done.stdout
    return done.returncode if said_so else NOT_REACHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
