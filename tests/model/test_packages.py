"""Debian packages: what of them is unpacked, and how it is read."""

import zipfile
from pathlib import Path

from model.training.packages import read_track, unzip_audio

CLIPS = Path(__file__).parents[1] / "clips"


def test_what_cannot_be_read_or_is_short_gives_no_samples(tmp_path: Path) -> None:
    (tmp_path / "text.ogg").write_text("no music")

    assert len(read_track(tmp_path / "text.ogg")) == 0
    assert len(read_track(CLIPS / "club_track.opus")) > 10 * 16_000


def test_only_audio_is_unpacked_from_an_archive_and_only_beside_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "mod.zip", "w") as archive:
        archive.writestr("audio/rain.ogg", b"rain")
        archive.writestr("art/tree.png", b"tree")
        archive.writestr("../../outside.ogg", b"out")

    unzip_audio(tmp_path / "mod.zip")

    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["mod.unpacked/audio/rain.ogg", "mod.unpacked/outside.ogg", "mod.zip"]
