"""The wheel, in an environment of its own and from any folder, tags a clip without a network."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from app import __version__
from scripts.distribution import DistributionError, build, check_contents

OFFLINE = ["unshare", "--net"]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist."""
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def environment(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where only the wheel is installed.

    The packages that it needs are seen where the tests have them, as PyTorch is several GB. This checkout is
    not seen: of the folder that a .pth file names, the .pth files are not read.
    """
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    command = [*pip, "--no-deps", "--no-index", str(distributions[0])]
    subprocess.run(command, cwd=folder, env=outside(), check=True)
    site_packages = next(folder.glob("lib/python3*/site-packages"))
    (site_packages / "needed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder


def outside() -> dict[str, str]:
    """The environment's variables without those that would bring this checkout in."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run(environment: Path, folder: Path, *command: str) -> str:
    """Standard output of a command of the environment, from a folder; offline where that can be had."""
    possible = shutil.which("unshare") and subprocess.run([*OFFLINE, "true"]).returncode == 0
    line = [*(OFFLINE if possible else []), str(environment / "bin" / command[0]), *command[1:]]
    done = subprocess.run(line, cwd=folder, env=outside(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_weights_and_page_are_in_and_tests_are_not(distributions: tuple[Path, Path]) -> None:
    check_contents(*distributions)


def test_a_stray_and_a_missing_file_are_found(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, sdist = Path(shutil.copy(distributions[0], tmp_path)), distributions[1]
    with zipfile.ZipFile(wheel, "a") as packed:
        packed.writestr("tests/clips/song.opus", b"music")
    with tarfile.open(tmp_path / "empty.tar.gz", "w:gz"):
        pass

    with pytest.raises(DistributionError, match="should not hold tests/clips/song"):
        check_contents(wheel, sdist)
    with pytest.raises(DistributionError, match=r"empty\.tar\.gz lacks .*safetensors"):
        check_contents(distributions[0], tmp_path / "empty.tar.gz")


def test_it_is_the_wheel_that_runs(environment: Path, tmp_path: Path) -> None:
    modules = run(
        environment, tmp_path, "python", "-c", "import app, model; print(app.__file__, model.__file__)"
    )

    assert all(Path(module).is_relative_to(environment) for module in modules.split())


def test_the_version_is_told(environment: Path, tmp_path: Path) -> None:
    assert run(environment, tmp_path, "music-tagger", "--version") == f"music-tagger {__version__}\n"


def test_a_clip_is_tagged(environment: Path, tmp_path: Path, clips: dict[str, Path]) -> None:
    outcome = json.loads(
        run(environment, tmp_path, "music-tagger", "tag", str(clips["sung_pop"]), "--format", "jsonl")
    )

    assert set(outcome["scores"]) == {"vocal", "dance", "soundtrack", "pop"}
