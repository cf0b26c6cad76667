"""Build the wheel and the sdist, and see that they hold what they must and nothing else."""

import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
MUST_HOLD: Final = (
    "app/web/index.html",
    "app/web/samples/song.opus",
    "model/weights/tagger.json",
    "model/weights/tagger.safetensors",
    "app/py.typed",
    "model/py.typed",
)
MAY_HOLD: Final = re.compile(
    r"(app|model)/.+\.(py|typed|html|js|css|svg|opus|md|json|safetensors)"
    r"|music_tagger[^/]*(dist|egg)-info/.+|README\.md|MANIFEST\.in|LICENSE|NOTICE|PKG-INFO|pyproject\.toml|setup\.cfg"
)


class DistributionError(ValueError):
    """A distribution lacks something, or holds what is not for users. The message names it."""


def build(out: Path) -> tuple[Path, Path]:
    """Build into a folder; the wheel is made from the sdist, so this proves the sdist, too.

    Returns:
        The wheel and the sdist.
    """
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def check_contents(wheel: Path, sdist: Path) -> None:
    """Weights and page are in both, tests and music are not.

    Raises:
        DistributionError: it is not so.
    """
    with zipfile.ZipFile(wheel) as packed:
        _check(wheel.name, packed.namelist())
    with tarfile.open(sdist) as packed_source:
        _check(sdist.name, (item.name.partition("/")[2] for item in packed_source if item.isfile()))


def _check(name: str, files: Iterable[str]) -> None:
    held = set(files)
    if missing := sorted(set(MUST_HOLD) - held):
        raise DistributionError(f"{name} lacks {', '.join(missing)}")
    if strays := sorted(file for file in held if not MAY_HOLD.fullmatch(file)):
        raise DistributionError(f"{name} should not hold {', '.join(strays)}")
