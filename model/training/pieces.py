"""Pieces of 29 s to learn from: parts of music, mixes of it, voices, and what is no music.

Needs Debian's `mma`, `fluidsynth` and soundfont packages for accompaniments, and PyPI's `pyworld-prebuilt`
for what is sung.
"""

import random
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch

from model.audio import AudioError, read_audio
from model.frontend import SAMPLE_RATE_HZ
from model.tags import TAGS
from model.training import singing
from model.training.augmentation import Samples, change_speed, colour
from model.training.corpus import SEPARATOR, Clip
from model.training.packages import (
    AUDIO_SUFFIXES,
    DEBIAN,
    FIELD_RECORDINGS,
    MODULE_SUFFIXES,
    NOTHING,
    read_track,
    render_module,
    unpack,
)
from model.training.separation import Separator

PIECE_S = 29.0
PIECE = int(PIECE_S * SAMPLE_RATE_HZ)
PIECES_PER_TRACK = 4
SHORT_S = 8.0
"""Field recordings below this are joined: repeated for 29 s they would have a beat."""
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
    """A song's voice, sung by many, alone or -6 to 9 dB above a bed; none if it hardly has a pitch."""
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
