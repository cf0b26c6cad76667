"""MTG-Jamendo (Bogdanov et al. 2019) as clips of this project: its split 0, and what its tags say of ours.

A tag that its uploader did not set counts as 0 only where the uploader set another of the same kind: genres
for dance, pop and soundtrack, instruments for vocal; else it is unknown. What holds of a track's licence is
told by the data set itself (`audio_licenses.txt`; many forbid commercial use), so `train_ok` is 0.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from model.tags import TAGS
from model.training.corpus import Clip, ManifestError

SPLITS: Final = {"train": "train", "validation": "val", "test": "test"}
LEAST_FIELDS: Final = 5
TAG_OF: Final = {
    "vocal": "instrument---voice",
    "dance": "genre---dance",
    "soundtrack": "genre---soundtrack",
    "pop": "genre---pop",
}


def read_mtg_jamendo(folder: Path, audio: Path) -> tuple[list[Clip], int]:
    """Read the clips whose audio is there, and count those whose audio is not.

    Args:
        folder: a clone of https://github.com/MTG/mtg-jamendo-dataset.
        audio: holds `NN/ID.mp3`, or `NN/ID.low.mp3` as the smaller download has it.

    Raises:
        ManifestError: a split is missing, or no clip has audio.
    """
    rows = [(split, row) for name, split in SPLITS.items() for row in _rows(folder, name)]
    clips = [_clip(row, split, path) for split, row in rows if (path := _audio_of(audio / row[3]))]
    if not clips:
        raise ManifestError(f"{audio}: holds no clip of MTG-Jamendo; they are looked for as NN/ID.mp3")
    return clips, len(rows) - len(clips)


def _rows(folder: Path, split: str) -> list[list[str]]:
    """Rows of TRACK_ID, ARTIST_ID, ALBUM_ID, PATH, DURATION, and as many tags as there are."""
    path = folder / "data" / "splits" / "split-0" / f"autotagging-{split}.tsv"
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            rows = [row for row in csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE) if row][1:]
    except OSError as error:
        raise ManifestError(
            f"{path}: cannot be read ({error.strerror}); give a clone of MTG/mtg-jamendo-dataset"
        ) from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: is not UTF-8 ({error.reason}); get it anew") from error
    if cut_off := [row for row in rows if len(row) < LEAST_FIELDS]:
        raise ManifestError(f"{path}: a row has less than {LEAST_FIELDS} fields: {cut_off[0]}; get it anew")
    return rows


def _audio_of(path: Path) -> Path | None:
    return next((found for found in (path, path.with_suffix(".low.mp3")) if found.is_file()), None)


def _clip(row: Sequence[str], split: str, path: Path) -> Clip:
    track, artist, tags = row[0], row[1], row[5:]
    labels = tuple(_label(TAG_OF[tag], tags) for tag in TAGS)
    evidence = tuple("" if label is None else "metadata" for label in labels)
    return Clip(track, path, split, train_ok=False, source=artist, labels=labels, evidence=evidence)


def _label(wanted: str, tags: Sequence[str]) -> float | None:
    if wanted in tags:
        return 1.0
    kind = wanted.partition("---")[0]
    return 0.0 if any(tag.startswith(f"{kind}---") for tag in tags) else None
