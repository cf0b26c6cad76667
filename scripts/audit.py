"""Ask whether the locked packages have known vulnerabilities (`make audit`): pip-audit over the locks.

pip-audit passes over a package of which its service knows nothing, and so finds nothing where a mirror
answers "not found" to every question. So the service is first asked for a package whose holes are known.

Some mirrors answer for each package's newest release only. Behind such a one, the packages that are locked at
their newest release are audited, and the others are named.

Exit codes: 0 nothing found, 1 something found, 2 not all packages were audited. With `--may-be-offline` the
last is said and passes, for a CI without the Internet.
"""

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx
from pip._internal.models.index import PyPI

from scripts.lock import LOCKS, pins

KNOWN_BAD: Final = "jinja2==2.4.1\n"
KNOWN_BAD_NEWEST: Final = "pycrypto"
"""Given up in 2013, its newest release has holes for good."""
SERVICES: Final = ("pypi", "osv")
NEWEST_URL: Final = f"{PyPI.pypi_url}/{{}}/json"
"""A project's page, by PyPI's JSON API: it tells of the newest release."""
TIMEOUT_S: Final = 15
NONE, FOUND, NOT_AUDITED = 0, 1, 2


def main(arguments: list[str]) -> int:
    """Audit the locks with the first service that works. Returns the exit code."""
    service = next((name for name in SERVICES if _audit(name, KNOWN_BAD, quiet=True) == FOUND), None)
    code = _audit(service, _requirements(), quiet=False) if service else audit_newest(_pins())
    return NONE if code == NOT_AUDITED and "--may-be-offline" in arguments else code


def audit_newest(locked: Mapping[str, str], url: str = NEWEST_URL) -> int:
    """Audit the packages that are locked at their newest release, by the page of each. Returns the exit code.

    Args:
        locked: Version by package.
        url: A package's page, with `{}` for its name.
    """
    with httpx.Client(timeout=TIMEOUT_S) as client, ThreadPoolExecutor() as asking:

        def ask(name: str) -> tuple[str, list[str]]:
            page = client.get(url.format(name)).raise_for_status().json()
            return page["info"]["version"], [hole["id"] for hole in page["vulnerabilities"]]

        try:
            if not ask(KNOWN_BAD_NEWEST)[1]:
                raise ValueError
            newest = dict(zip(locked, asking.map(ask, locked), strict=True))
        except (httpx.HTTPError, LookupError, ValueError):
            print("NOT AUDITED: no service of known vulnerabilities (PyPI, OSV) was reached", file=sys.stderr)
            return NOT_AUDITED
    audited = {name: holes for name, (version, holes) in newest.items() if version == locked[name]}
    found = {name: holes for name, holes in audited.items() if holes}
    for name, holes in found.items():
        print(f"{name} {locked[name]}: {', '.join(holes)}")
    print(f"{len(audited)} of {len(locked)} packages audited: {len(found)} have known vulnerabilities")
    if others := [f"{name} {version}" for name, version in locked.items() if name not in audited]:
        print("NOT AUDITED, as there is a newer release:", ", ".join(others), file=sys.stderr)
    return FOUND if found else NOT_AUDITED if others else NONE


def _pins() -> dict[str, str]:
    """All packages of the CUDA image, which has those of the CPU's and more: version by name."""
    return pins(
        (LOCKS / name).read_text(encoding="utf-8") for name in ("requirements.lock", "torch-cuda.lock")
    )


def _requirements() -> str:
    return "".join(f"{name}=={version}\n" for name, version in _pins().items())


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
    return done.returncode if said_so else NOT_AUDITED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
