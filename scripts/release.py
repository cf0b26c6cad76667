"""The check-list of a release; the last step is the tag, which is not pushed (`make release`).

The version stands in `app/__init__.py` alone. Before: raise it, and date its section in CHANGELOG.md.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from app import __version__
from scripts.distribution import build, check_contents

ROOT: Final = Path(__file__).parents[1]
TAG: Final = f"v{__version__}"


class NotReadyError(ValueError):
    """A step of the list does not hold. The message says what to do."""


def main() -> int:
    """Go through the list. Returns the exit code: 0 if all of it holds."""
    parser = argparse.ArgumentParser(prog="python -m scripts.release", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="go on after a failure, and make no tag")
    parser.add_argument("--quick", action="store_true", help="with --dry-run: leave out tests and image")
    options = parser.parse_args()
    if options.quick and not options.dry_run:
        parser.error("--quick needs --dry-run: what is released is tested")
    steps = [
        check_tree,
        check_branch,
        check_version,
        check_changelog,
        check_distributions,
        check_audit,
        check_sbom,
    ]
    steps += [] if options.quick else [check_tests, check_image]
    failed = 0
    for step in steps:
        failed += not _holds(step)
        if failed and not options.dry_run:
            return 1
    if not options.dry_run:
        _git("tag", "--annotate", TAG, "--message", f"music-tagger {__version__}")
        print(f"tagged {TAG}; push it, and upload dist/ and artifacts/")
    return int(failed > 0)


def _holds(step: Callable[[], None]) -> bool:
    name = (step.__doc__ or "").removesuffix(".")
    try:
        step()
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"FAILED  {name}: {error}", flush=True)
        return False
    print(f"ok      {name}", flush=True)
    return True


def check_tree() -> None:
    """Everything is committed."""
    if changed := _git("status", "--porcelain"):
        raise NotReadyError(f"commit or remove:\n{changed}")


def check_branch() -> None:
    """The branch is main."""
    if (branch := _git("branch", "--show-current")) != "main":
        raise NotReadyError(f"this is {branch!r}: merge it first")


def check_version() -> None:
    """The version is new."""
    if _git("tag", "--list", TAG):
        raise NotReadyError(f"{TAG} is there: raise __version__ in app/__init__.py")


def check_changelog() -> None:
    """CHANGELOG.md has a dated section for the version, and nothing is left under Unreleased."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE):
        raise NotReadyError(f"there is no line '## [{__version__}] - YYYY-MM-DD'")
    unreleased = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## \[)", text, re.MULTILINE | re.DOTALL)
    if unreleased and unreleased[1].strip():
        raise NotReadyError("move what stands under [Unreleased] to the version")


def check_distributions() -> None:
    """Wheel and sdist, made anew in dist/, hold the weights and the page, and no tests."""
    out = ROOT / "dist"
    for old in out.glob("music_tagger-*"):
        old.unlink()
    check_contents(*build(out))


def check_audit() -> None:
    """No locked package has a known vulnerability."""
    _make("audit")


def check_sbom() -> None:
    """The bills of materials are in artifacts/."""
    _make("sbom")


def check_tests() -> None:
    """Lint and tests pass; the wheel tags a clip in an environment of its own."""
    _make("lint", "test")


def check_image() -> None:
    """The image is as it should be."""
    _make("image-check")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


def _make(*targets: str) -> None:
    subprocess.run(["make", *targets], cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main())
