"""MTG-Jamendo: its files read as they lie in its repository, from a small copy of that layout."""

from pathlib import Path

import pytest

from model.tags import TAGS
from model.training.corpus import Clip, ManifestError, read_manifest, write_manifest
from model.training.mtg_jamendo import read_mtg_jamendo

HEADER = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"
ROWS = {
    "train": [
        "track_0000214\tartist_000014\talbum_000031\t14/214.mp3\t124.6\tgenre---punkrock",
        "track_1048592\tartist_424343\talbum_123552\t92/1048592.mp3\t238.2\tgenre---pop\tinstrument---bass"
        "\tinstrument---voice",
        "track_0000999\tartist_000014\talbum_000031\t99/999.mp3\t124.6\tgenre---dance",
    ],
    "validation": ["track_0000948\tartist_000087\talbum_000149\t48/948.mp3\t212.7\tmood/theme---film"],
    "test": [
        "track_1311368\tartist_006568\talbum_155755\t68/1311368.mp3\t148.7\tgenre---soundtrack\tgenre---dance"
        "\tinstrument---piano",
    ],
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    splits = tmp_path / "data" / "splits" / "split-0"
    splits.mkdir(parents=True)
    for name, rows in ROWS.items():
        (splits / f"autotagging-{name}.tsv").write_text("\n".join([HEADER, *rows]) + "\n")
    for name in ("14/214.mp3", "92/1048592.low.mp3", "48/948.mp3", "68/1311368.mp3"):
        path = tmp_path / "audio" / name
        path.parent.mkdir(parents=True)
        path.touch()
    return tmp_path


def by_id(clips: list[Clip]) -> dict[str, Clip]:
    return {clip.id: clip for clip in clips}


def test_a_tag_is_no_where_its_kind_was_tagged_and_unknown_where_not(clone: Path) -> None:
    clips = by_id(read_mtg_jamendo(clone, clone / "audio")[0])

    labels = {name: dict(zip(TAGS, clip.labels, strict=True)) for name, clip in clips.items()}
    assert labels == {
        "track_0000214": {"vocal": None, "dance": 0, "soundtrack": 0, "pop": 0},
        "track_1048592": {"vocal": 1, "dance": 0, "soundtrack": 0, "pop": 1},
        "track_0000948": {"vocal": None, "dance": None, "soundtrack": None, "pop": None},
        "track_1311368": {"vocal": 0, "dance": 1, "soundtrack": 1, "pop": 0},
    }
    assert clips["track_0000214"].evidence == ("", "metadata", "metadata", "metadata")


def test_splits_are_kept_and_an_artist_is_a_source(clone: Path) -> None:
    clips = by_id(read_mtg_jamendo(clone, clone / "audio")[0])

    assert {name: (clip.split, clip.source, clip.train_ok) for name, clip in clips.items()} == {
        "track_0000214": ("train", "artist_000014", False),
        "track_1048592": ("train", "artist_424343", False),
        "track_0000948": ("val", "artist_000087", False),
        "track_1311368": ("test", "artist_006568", False),
    }


def test_audio_of_either_download_is_found_and_what_is_missing_is_counted(clone: Path) -> None:
    clips, missing = read_mtg_jamendo(clone, clone / "audio")

    assert by_id(clips)["track_1048592"].path == clone / "audio" / "92" / "1048592.low.mp3"
    assert missing == 1


def test_what_is_written_as_a_manifest_is_read_again_from_anywhere(clone: Path) -> None:
    clips, _ = read_mtg_jamendo(clone, clone / "audio")
    path = clone / "elsewhere" / "clips.csv"

    write_manifest(path, clips, TAGS)

    assert read_manifest(path, TAGS) == clips


def test_blank_lines_are_passed_over_and_torn_rows_are_told(clone: Path) -> None:
    path = clone / "data" / "splits" / "split-0" / "autotagging-train.tsv"
    whole = path.read_text()
    expected = read_mtg_jamendo(clone, clone / "audio")

    path.write_text(whole.replace("\n", "\n\n"))
    assert read_mtg_jamendo(clone, clone / "audio") == expected

    path.write_text(whole + "track_1\tartist_2\n")
    with pytest.raises(ManifestError, match=r"less than 5 fields: \['track_1', 'artist_2'\]"):
        read_mtg_jamendo(clone, clone / "audio")


def test_what_is_not_utf_8_is_refused(clone: Path) -> None:
    path = clone / "data" / "splits" / "split-0" / "autotagging-train.tsv"
    path.write_bytes(path.read_bytes() + b"\xff")

    with pytest.raises(ManifestError, match="not UTF-8"):
        read_mtg_jamendo(clone, clone / "audio")


def test_what_is_not_there_is_named(clone: Path) -> None:
    with pytest.raises(ManifestError, match="nowhere: holds no clip"):
        read_mtg_jamendo(clone, clone / "nowhere")
    with pytest.raises(ManifestError, match=r"autotagging-train\.tsv: cannot be read"):
        read_mtg_jamendo(clone / "audio", clone / "audio")
