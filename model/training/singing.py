"""Sung voices, made of spoken ones: few singers give their recordings away, and hardly a choir does.

The vocoder WORLD (Morise et al. 2016) takes speech apart into pitch, spectral envelope and aperiodicity. Put
together again on the notes of a melody, with held vowels, glides and vibrato, it is song (Saitou et al. 2007,
`Speech-To-Singing Synthesis`). Many such voices in a room are a choir; and so is one that sings, put together
again many times over, each time a little otherwise. Needs PyPI's `pyworld-prebuilt`, which is imported as
`pyworld`.
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
HELD: Final = 19
"""Frames over which a choir holds a note."""
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
PARTS: Final = (
    (0, -3, -8, -12), (0, -4, -9, -12), (0, -5, -8, -12), (0, 4, 7, -12), (0, 3, 7, -12), (0, -5, 4, -12),
    (0, -5, -12), (0, -12), (0, 12, -12), (0, 0),
)  # fmt: skip
"""Semitones by which the parts of a choir that was one voice lie above it."""
PITCHED: Final = 0.25
"""Share of a voice that must have a pitch for many to sing it."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """What WORLD hears, by frames of 5 ms.

    Attributes:
        hertz: [frames], 0 where there is no pitch.
        envelope: spectral envelope [frames, bins].
        aperiodicity: [frames, bins], in [0, 1].
    """

    hertz: Floats
    envelope: Floats
    aperiodicity: Floats

    @property
    def voiced(self) -> NDArray[np.bool_]:
        """[frames]: where there is a pitch."""
        return self.hertz > 0


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


def analyse(voice: Samples) -> Analysis:
    """Take a lone voice, mono at 16 kHz [T], apart."""
    loud = voice.astype(np.float64) / max(1e-3, float(np.abs(voice).max()))
    hertz, times = pyworld.dio(loud, SAMPLE_RATE_HZ, frame_period=1000 * FRAME_S)
    hertz = pyworld.stonemask(loud, hertz, times, SAMPLE_RATE_HZ)
    envelope = pyworld.cheaptrick(loud, hertz, times, SAMPLE_RATE_HZ)
    return Analysis(hertz, envelope, pyworld.d4c(loud, hertz, times, SAMPLE_RATE_HZ))


def syllables(speech: Samples) -> Iterator[Syllable]:
    """Cut speech, mono at 16 kHz [T], into what can be put on notes."""
    heard = analyse(speech)
    envelope, aperiodicity, voiced = heard.envelope, heard.aperiodicity, heard.voiced
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
    parts = (np.concatenate(part) for part in (pitches, envelopes, aperiodicities))
    return _synthesise(Analysis(*parts), voice.formants)


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


def many(heard: Analysis, seconds: float, rng: Generator) -> Samples:
    """A voice that sings, as a choir in a church or a hall, at its own pace or down to less than half of it.

    Two to four parts of two to four singers each: its copies in other pitches, with other formants, neither
    quite in step nor quite in tune. Its notes are held steadier than those of a lone singer.

    Raises:
        ValueError: less than `PITCHED` of the voice has a pitch.
    """
    if heard.voiced.mean() < PITCHED:
        raise ValueError(f"less than {PITCHED:.0%} of the voice has a pitch, so many cannot sing it")
    pace = 1 / rng.uniform(1.0, 2.2)
    frames = min(round(seconds / FRAME_S), int(len(heard.hertz) / pace))
    notes = _steadied(heard, rng.uniform(0.3, 0.9))
    singers = int(rng.integers(2, 5))
    total = np.zeros(int((frames * FRAME_S + 1) * SAMPLE_RATE_HZ), np.float32)
    for semitones in PARTS[rng.integers(len(PARTS))]:
        for _ in range(singers):
            sung = _one_of_many(heard, notes + semitones, pace, frames, _formants_at(semitones), rng)
            late = int(rng.uniform(0, 0.05) * SAMPLE_RATE_HZ)
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


def _steadied(heard: Analysis, strict: float) -> Floats:
    """MIDI numbers by frame, a share of the way towards what is held and the nearest semitone."""
    pitched = np.flatnonzero(heard.voiced)
    sung = 69 + 12 * np.log2(heard.hertz[pitched] / 440)
    notes = np.interp(np.arange(len(heard.hertz)), pitched, sung)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(notes, HELD // 2, "edge"), HELD)
    held = np.median(windows, 1)
    steady: Floats = (1 - strict) * notes + strict * (held + np.round(held)) / 2
    return steady


def _formants_at(semitones: int) -> float:
    """As a multiple of the voice's: low parts are sung by men, high ones by women or boys."""
    return 0.87 if semitones <= -7 else 1.1 if semitones >= 5 else 1.0


def _one_of_many(
    heard: Analysis, notes: Floats, pace: float, frames: int, formants: float, rng: Generator
) -> Samples:
    """A copy of a voice on MIDI numbers by frame, at another pace [frames]."""
    step = pace * np.arange(frames) + _wander(frames, 0.6, 6.0, rng)
    at = step.clip(0, len(notes) - 1).astype(int)
    turns = np.cumsum(FRAME_S * rng.uniform(4.8, 6.2) + rng.normal(0, 0.002, frames)) + rng.uniform()
    vibrato = rng.uniform(0.05, 0.5) * np.sin(2 * np.pi * turns)
    sung = notes[at] + vibrato + rng.normal(0, 0.07) + _wander(frames, 0.3, 0.12, rng)
    voiced = heard.voiced[at]
    hertz = np.where(voiced, 440.0 * 2 ** ((sung - 69) / 12), 0.0)
    # The consonants of many do not hiss together.
    envelope = heard.envelope[at] * np.where(voiced, 1.0, 0.3)[:, None]
    copy = Analysis(hertz, envelope, heard.aperiodicity[at])
    return _synthesise(copy, formants * rng.uniform(0.92, 1.08))


def _wander(frames: int, every_s: float, deviation: float, rng: Generator) -> Floats:
    """[frames]: normal deviates every so many seconds, joined by straight lines."""
    knots = np.arange(0, frames + every_s / FRAME_S, every_s / FRAME_S)
    wandering: Floats = np.interp(np.arange(frames), knots, rng.normal(0, deviation, len(knots)))
    return wandering


def _synthesise(heard: Analysis, formants: float) -> Samples:
    """[T] mono at 16 kHz, with the formants at a multiple of theirs."""
    shape, noise = (_shift_formants(part, formants) for part in (heard.envelope, heard.aperiodicity))
    sung = pyworld.synthesize(heard.hertz, shape, noise.clip(0, 1), SAMPLE_RATE_HZ, 1000 * FRAME_S)
    samples: Samples = sung.astype(np.float32)
    return samples


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
