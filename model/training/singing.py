"""Sung voices, made of spoken ones: few singers give their recordings away, and hardly a choir does.

The vocoder WORLD (Morise et al. 2016) takes speech apart into pitch, spectral envelope and aperiodicity. Put
together again on the notes of a melody, with held vowels, glides and vibrato, it is song (Saitou et al. 2007,
`Speech-To-Singing Synthesis`). Many such voices in a room are a choir. Needs PyPI's `pyworld-prebuilt`,
which is imported as `pyworld`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyworld
from numpy.typing import NDArray

from model.frontend import SAMPLE_RATE_HZ
from model.training.augmentation import Generator, Samples, decaying_noise, reverberate

Floats = NDArray[np.float64]
Notes = Sequence[tuple[int | None, float]]
"""MIDI numbers, None a rest, and their seconds."""
Register = tuple[int, int]
"""The lowest and the highest MIDI number that is sung."""

FRAME_S: Final = 0.005
SHORTEST: Final = 16
"""Voiced frames that make a syllable; fewer are a stray."""
SILENT: Final = 1e-9
"""Power of a rest, as WORLD takes the logarithm."""
ONSET: Final = 12
"""Frames before it that belong to it: its consonant."""
SCALES: Final = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), (0, 3, 5, 7, 10))
"""Major, minor and the two pentatonic scales, in semitones above the tonic."""
BEATS: Final = (0.5, 0.5, 1.0, 1.0, 1.0, 1.5, 2.0, 2.0, 4.0)
"""How long a note may be, by how often it is."""
STEPS: Final = (-4, -2, -1, -1, 0, 0, 1, 1, 2, 4)
"""Degrees of the scale from one note to the next."""
CHORDS: Final = ((0, 2, 4, 7), (0, 2, 5, 7), (0, 3, 5, 7), (0, 7), (0, 0, 0))
"""Degrees by which a choir's parts lie below its first: three chords, octaves, and all in unison."""


@dataclass(frozen=True, slots=True)
class Syllable:
    """Frames of 5 ms of one voiced run of speech: spectral envelope and aperiodicity [frames, bins]."""

    envelope: Floats
    aperiodicity: Floats
    voiced: NDArray[np.bool_]
    loudest: int


@dataclass(frozen=True, slots=True)
class Voice:
    """What a singer is like: formants, as a multiple of those spoken, and vibrato."""

    formants: float
    vibrato_hz: float
    vibrato_semitones: float


def draw_voice(rng: Generator, *, trained: bool = False) -> tuple[Voice, Register]:
    """A man, woman or child; a trained one with much vibrato, and higher notes."""
    lowest, highest, least, most = ((42, 64, 0.84, 0.95), (57, 77, 0.98, 1.12), (62, 82, 1.18, 1.28))[
        rng.choice(3, p=(0.4, 0.45, 0.15))
    ]
    depth = rng.uniform(0.6, 1.2) if trained else rng.uniform(0.05, 0.5)
    return Voice(rng.uniform(least, most), rng.uniform(4.8, 6.5), depth), (lowest, highest + 5 * trained)


def syllables(speech: Samples) -> Iterator[Syllable]:
    """Cut speech, mono at 16 kHz [T], into what can be put on notes."""
    loud = speech.astype(np.float64) / max(1e-3, float(np.abs(speech).max()))
    pitch, times = pyworld.dio(loud, SAMPLE_RATE_HZ, frame_period=1000 * FRAME_S)
    pitch = pyworld.stonemask(loud, pitch, times, SAMPLE_RATE_HZ)
    envelope = pyworld.cheaptrick(loud, pitch, times, SAMPLE_RATE_HZ)
    aperiodicity = pyworld.d4c(loud, pitch, times, SAMPLE_RATE_HZ)
    voiced = pitch > 0
    edges = np.flatnonzero(np.diff(voiced.astype(int), prepend=0, append=0)).tolist()
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        if stop - start >= SHORTEST:
            first = max(0, start - ONSET)
            loudest = start - first + int(envelope[start:stop].sum(1).argmax())
            yield Syllable(envelope[first:stop], aperiodicity[first:stop], voiced[first:stop], loudest)


def sing(
    heard: Sequence[Syllable], notes: Notes, voice: Voice, rng: Generator, words: Sequence[int] | None = None
) -> Samples:
    """Put syllables on notes, in the order of `words` or any: [T] mono at 16 kHz.

    Raises:
        ValueError: no syllable, or no note.
    """
    if not heard or not notes:
        raise ValueError("nothing to sing: give at least one syllable and one note")
    order = rng.integers(len(heard), size=len(notes)) if words is None else words
    before: int | None = None
    pitches, envelopes, aperiodicities = [], [], []
    for (note, seconds), word in zip(notes, order, strict=True):
        syllable = heard[int(word) % len(heard)]
        frames = max(1, round(seconds / FRAME_S))
        chosen = _hold(syllable, frames)
        level = 0.02 / max(1e-9, float(np.median(syllable.envelope.sum(1))))
        power = level * _fade(frames) ** 2 if note is not None else np.full(frames, SILENT)
        envelopes.append(syllable.envelope[chosen] * power[:, None])
        aperiodicities.append(syllable.aperiodicity[chosen])
        hertz = _contour(note, before, frames, voice, rng) if note is not None else np.zeros(frames)
        pitches.append(np.where(syllable.voiced[chosen], hertz, 0.0))
        before = note
    shape, noise = (
        _shift_formants(np.concatenate(part), voice.formants) for part in (envelopes, aperiodicities)
    )
    sung = pyworld.synthesize(
        np.concatenate(pitches), shape, noise.clip(0, 1), SAMPLE_RATE_HZ, 1000 * FRAME_S
    )
    samples: Samples = sung.astype(np.float32)
    return samples


def solo(heard: Sequence[Syllable], seconds: float, rng: Generator) -> Samples:
    """One voice, at times a trained one, in a room."""
    trained = rng.random() < 0.35
    voice, register = draw_voice(rng, trained=trained)
    beat_s = 60 / rng.uniform(40, 80) if trained else 60 / rng.uniform(70, 130)
    notes = melody(seconds, beat_s, register, rng, rests=0.12)
    return _in_a_room(sing(heard, notes, voice, rng), rng.uniform(0.3, 2.0), rng.uniform(0.1, 0.5), rng)


def choir(singers: Sequence[Sequence[Syllable]], seconds: float, rng: Generator) -> Samples:
    """All singers in each of two to four parts, on the same words, in a church or a hall."""
    register = (60, 74) if rng.random() < 0.7 else (50, 62)
    scale = scale_notes(rng)
    lead = melody(seconds, 60 / rng.uniform(35, 75), register, rng, rests=0.08, scale=scale)
    words = rng.integers(1000, size=len(lead)).tolist()
    total = np.zeros(int((seconds + 1) * SAMPLE_RATE_HZ), np.float32)
    for part, below in enumerate(CHORDS[rng.integers(len(CHORDS))]):
        line = [(None if note is None else scale[scale.index(note) - below], length) for note, length in lead]
        formants = 0.87 if part > 1 else 1.05
        for heard in singers:
            voice = Voice(formants * rng.uniform(0.94, 1.06), rng.uniform(4.8, 6.2), rng.uniform(0.1, 0.5))
            late = int(rng.uniform(0, 0.05) * SAMPLE_RATE_HZ)
            sung = sing(heard, line, voice, rng, words)[: len(total) - late]
            total[late : late + len(sung)] += rng.uniform(0.6, 1.0) * sung
    return _in_a_room(total, rng.uniform(1.0, 4.0), rng.uniform(0.4, 1.5), rng)


def hook(heard: Sequence[Syllable], seconds: float, rng: Generator) -> Samples:
    """Two bars of a few chopped syllables, again and again, as in dance music."""
    voice, (lowest, highest) = draw_voice(rng)
    length = 60 / rng.uniform(116, 134) / 2
    tonic = int(rng.integers(lowest, highest - 12))
    few = rng.integers(len(heard), size=3)
    bars = [(tonic + int(rng.choice((0, 0, 3, 5, 7, 12))), int(rng.choice(few))) for _ in range(16)]
    silent = rng.random(16) < 0.5
    number = int(seconds / length)
    notes = [(None if silent[at % 16] else bars[at % 16][0], length) for at in range(number)]
    sung = sing(heard, notes, voice, rng, [bars[at % 16][1] for at in range(number)])
    return _in_a_room(sung, rng.uniform(0.3, 1.5), rng.uniform(0.05, 0.4), rng)


def melody(
    seconds: float,
    beat_s: float,
    register: Register,
    rng: Generator,
    *,
    rests: float,
    scale: Sequence[int] = (),
) -> list[tuple[int | None, float]]:
    """A walk over a scale within a register, of at least so many seconds; rests are a share of its notes."""
    within = [note for note in scale or scale_notes(rng) if register[0] <= note <= register[1]]
    at, total = int(rng.integers(len(within))), 0.0
    notes: list[tuple[int | None, float]] = []
    while total < seconds:
        length = float(rng.choice(BEATS)) * beat_s
        notes.append((None if rng.random() < rests else within[at], length))
        at = int(np.clip(at + rng.choice(STEPS), 0, len(within) - 1))
        total += length
    return notes


def scale_notes(rng: Generator) -> list[int]:
    """All MIDI numbers of a scale in some key."""
    tonic, degrees = int(rng.integers(12)), SCALES[rng.integers(len(SCALES))]
    return [note for note in range(24, 100) if (note - tonic) % 12 in degrees]


def _hold(syllable: Syllable, frames: int) -> NDArray[np.int64]:
    """Which frame of a syllable stands at each of a note's: its loudest is held, or it is hurried."""
    length = len(syllable.envelope)
    if frames < length:
        return np.linspace(0, length - 1, frames).astype(np.int64)
    held = syllable.loudest + np.round(3 * np.sin(np.arange(frames - length) / 20)).astype(np.int64)
    parts = (np.arange(syllable.loudest), held, np.arange(syllable.loudest, length))
    return np.concatenate(parts).clip(0, length - 1)


def _fade(frames: int) -> Floats:
    """Amplitude by frame of a note that does not crackle."""
    at = np.arange(frames)
    faded: Floats = np.minimum(1.0, np.minimum(at / 6 + 0.2, at[::-1] / 12 + 0.05))
    return faded


def _contour(note: int, before: int | None, frames: int, voice: Voice, rng: Generator) -> Floats:
    """Hertz by frame: a glide from the note before, vibrato that comes late, and an unsteady hand."""
    time = np.arange(frames) * FRAME_S
    glide = (before - note) * np.exp(-time / 0.03) if before is not None else -np.exp(-time / 0.05)
    depth = voice.vibrato_semitones * ((time - 0.25) / 0.4).clip(0, 1)
    vibrato = depth * np.sin(2 * np.pi * voice.vibrato_hz * time + rng.uniform(0, 2 * np.pi))
    unsteady = rng.normal(0, 0.08) + np.cumsum(rng.normal(0, 0.003, frames))
    hertz: Floats = 440.0 * 2 ** ((note + glide + vibrato + unsteady - 69) / 12)
    return hertz


def _shift_formants(frames: Floats, factor: float) -> Floats:
    """[frames, bins] with the frequency axis stretched."""
    bins = frames.shape[1]
    at = (np.arange(bins) / factor).clip(0, bins - 1)
    low = at.astype(int).clip(0, bins - 2)
    share = at - low
    shifted: Floats = frames[:, low] * (1 - share) + frames[:, low + 1] * share
    return np.ascontiguousarray(shifted)


def _in_a_room(dry: Samples, seconds: float, wet: float, rng: Generator) -> Samples:
    heard = reverberate(dry, decaying_noise(seconds, rng), wet)
    return heard * np.float32(0.8 / max(1e-4, float(np.abs(heard).max())))
