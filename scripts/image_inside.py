"""What is inside the image, as JSON; `scripts.image_check` runs this file in a container of it, as root."""

import json
import os
import re
import sys
from collections import Counter
from hashlib import sha256
from importlib.metadata import distributions
from pathlib import Path

COMPILERS = re.compile(
    r"(.+-)?(gcc|g\+\+|cc|c\+\+|clang|clang\+\+|cc1|ld|as|make|cmake|rustc|cargo|go)(-[\d.]+)?"
)
CACHES = re.compile(r"/root/\.cache/.|/var/cache/apt/archives/.+\.deb|/var/lib/apt/lists/.+_Packages")
SECRETS = re.compile(r"/run/secrets/.|.*/(\.netrc|\.pypirc|pip\.conf|id_rsa|id_ed25519|\.git|\.env)")
VENV = Path("/opt/venv")


def main(handed_over: dict[str, int]) -> None:
    """Print the findings.

    Args:
        handed_over: SHA-256 -> bytes of the files that the build had as secrets; none may be here.
    """
    files = [
        Path(folder, name) for folder, _, names in os.walk("/") if not is_virtual(folder) for name in names
    ]
    regular = [path for path in files if path.is_file() and not path.is_symlink()]
    sizes = {path: path.stat().st_size for path in regular}
    suspects = [path for path in regular if sizes[path] in handed_over.values()]
    print(
        json.dumps(
            {
                "compilers": [
                    str(path) for path in files if COMPILERS.fullmatch(path.name) and os.access(path, os.X_OK)
                ],
                "caches": [str(path) for path in files if CACHES.match(str(path))],
                "secrets": [str(path) for path in files if SECRETS.fullmatch(str(path))]
                + [str(path) for path in suspects if sha256(path.read_bytes()).hexdigest() in handed_over],
                "packages": {item.name.lower().replace("_", "-"): item.version for item in distributions()},
                "writable": [
                    str(path) for path in regular if path.is_relative_to(VENV) and path.stat().st_mode & 0o022
                ],
                "bytes": sum_by_part(sizes),
            }
        )
    )


def is_virtual(folder: str) -> bool:
    """Whether a folder is no part of the image, but of the kernel or the engine."""
    return folder.startswith(("/proc", "/sys", "/dev"))


def sum_by_part(sizes: dict[Path, int]) -> Counter[str]:
    """Bytes of the base image, and of each top folder of the environment's packages."""
    parts: Counter[str] = Counter()
    for path, size in sizes.items():
        inside = path.relative_to(VENV).parts if path.is_relative_to(VENV) else ()
        parts[inside[3] if len(inside) > 4 else "environment" if inside else "base image"] += size
    return parts


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
