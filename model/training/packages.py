"""Music in Debian packages: fetched, unpacked and read.

Needs Debian's `apt-get download`, `dpkg-deb` and, for tracker modules, `openmpt123`.
"""

import subprocess
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from model.audio import AudioError, read_audio
from model.training.augmentation import Samples

DEBIAN = "Debian package "
"""What stands before a package's name in a source."""
AUDIO_SUFFIXES = {".ogg", ".oga", ".mp3", ".opus", ".flac", ".wav", ".m4a"}
MODULE_SUFFIXES = {".mod", ".xm", ".s3m", ".it"}
ARCHIVE_SUFFIXES = {".zip", ".pk3"}
"""Of games' ZIP archives."""
FIELD_RECORDINGS = {
    "0ad-data": r"audio/ambient/",
    "ardentryst": r"Sounds/.*_loop",
    "btanks-data": r"sounds/ambient/",
    "caveexpress-data": r"sounds/(cave|water)",
    "circuslinux-data": r"applause|cheering",
    "csoundqt-examples": r"Seashore",
    "flare-game": r"environment/",
    "flightgear-data-base": r"Sounds/[^/]*(engine|prop|rain|rotor|thunder|tires|turb|water|wave|wind)",
    "krank": r"menu/water",
    "lincity-ng-data": r"sounds/(Farm|Fire|Market|Organic|Rail|Sports|Water|WindMill)",
    "lugaru-data": r"Sounds/(DesertAmbient|Fire|Wind)",
    "megaglest-data": r"tilesets/.*/(day|desertday|night|nightime|rain|sunny_day|wind)",
    "minetest-data": r"env_sounds|fire",
    "plee-the-bear-data": r"weather/",
    "redeclipse-data": r"(ambience|morph)/.*(cave|cricket|fire|forest|lava|machine|rain|river|water|wind)",
    "scorched3d-data": r"misc/(birds|city|cheering|factory|frogs|jet|lava|ocean|rain|thunder)",
    "searchandrescue-data": r"engine|rotor|thunder",
    "simutrans-pak64": r"(Water|desert|forest|seagulls)",
    "supertuxkart-data": r"sfx/.*(birds|engine|fireworks|machine|rain|river|static|waterfall)",
    "tuxfootball": r"crowd",
    "ufoai-sound": r"(arcticwind|city|cricket|fire|machine|pump|smallfire|steam|thunder|turbine|water|wind)",
    "unknown-horizons": r"audio/sounds/",
    "wesnoth-1.16-data": r"ambient/(bird|camp|morning|night|ship)",
}  # fmt: skip
"""Packages that hold recordings of the world, and by what their paths are known."""
NOTHING = r"(?!)"
"""Matches no path."""
SPEECH_PACKAGES = [f"asterisk-core-sounds-{language}-g722" for language in ("en", "es", "fr", "it", "ru")]
"""A speaker each, at 16 kHz."""


def unpack(package: str, work: Path) -> Path:
    """Unpack a Debian package into `work/package`, once; the folder is empty where it cannot be had."""
    folder = work / package
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            subprocess.run(["apt-get", "download", package], cwd=scratch, check=False, capture_output=True)  # noqa: S603, S607
            whole = Path(scratch) / "whole"
            whole.mkdir()
            for archive in Path(scratch).glob("*.deb"):
                subprocess.run(["dpkg-deb", "-x", archive, whole], check=True)  # noqa: S603, S607
            for archive in [f for f in whole.rglob("*") if f.suffix in ARCHIVE_SUFFIXES and f.is_file()]:
                unzip_audio(archive)
            whole.rename(folder)
    return folder


def unzip_audio(archive: Path) -> None:
    """Unpack what is audio in a ZIP archive into a folder beside it."""
    with zipfile.ZipFile(archive) as content:
        names = [name for name in content.namelist() if Path(name).suffix.lower() in AUDIO_SUFFIXES]
        content.extractall(archive.with_suffix(".unpacked"), names)


def read_track(path: Path, min_s: float = 10.0) -> Samples:
    """Up to 20 minutes of a file as [T]; [0] where it cannot be read or is shorter than `min_s` seconds."""
    try:
        return read_audio(path, min_s=min_s, duration_s=1200.0)[0]
    except AudioError:
        return np.zeros(0, np.float32)


def render_module(path: Path) -> Samples:
    """Up to 3 minutes of a tracker module as [T]; [0] where it cannot be played."""
    with tempfile.TemporaryDirectory() as scratch:
        wav = Path(scratch) / "module.wav"
        command: list[str | Path] = [
            "openmpt123", "--quiet", "--batch", "--end-time", "180", "--output", wav, "--", path,
        ]  # fmt: skip
        with suppress(subprocess.TimeoutExpired):  # what there is by then may be enough
            subprocess.run(command, capture_output=True, check=False, timeout=120)  # noqa: S603
        return read_track(wav) if wav.exists() else np.zeros(0, np.float32)
