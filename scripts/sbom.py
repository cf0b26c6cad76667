"""Write what the images are made of, CycloneDX in `artifacts/`, from the locks (`make sbom`)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from app import __version__
from scripts.lock import LOCKS

ROOT: Final = Path(__file__).parents[1]
OUT: Final = ROOT / "artifacts"
BUILDS: Final = ("cpu", "cuda")


def main() -> None:
    """One bill for each build of PyTorch."""
    OUT.mkdir(exist_ok=True)
    for build in BUILDS:
        bill = complete(_read_locks(build))
        path = OUT / f"sbom-{build}.cdx.json"
        path.write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(bill['components'])} packages")


def complete(bill: dict[str, Any]) -> dict[str, Any]:
    """Add what cyclonedx-py does not read: our version, which is dynamic, and that we need all the rest."""
    root = bill["metadata"]["component"]
    root |= {"version": __version__, "purl": f"pkg:pypi/{root['name']}@{__version__}"}
    needed = [component["bom-ref"] for component in bill["components"]]
    others = [entry for entry in bill["dependencies"] if entry["ref"] != root["bom-ref"]]
    return {**bill, "dependencies": [{"ref": root["bom-ref"], "dependsOn": needed}, *others]}


def _read_locks(build: str) -> dict[str, Any]:
    names = ("requirements.lock", f"torch-{build}.lock")
    locks = "".join((LOCKS / name).read_text(encoding="utf-8") for name in names)
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", "--validate"]
    command += ["--output-reproducible", "--pyproject", str(ROOT / "pyproject.toml"), "-"]
    done = subprocess.run(command, input=locks, stdout=subprocess.PIPE, text=True, check=True)
    bill: dict[str, Any] = json.loads(done.stdout)
    return bill


if __name__ == "__main__":
    main()
