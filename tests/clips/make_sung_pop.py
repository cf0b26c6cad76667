#!/usr/bin/env python3
"""Make `sung_pop.opus`: a synthetic voice that sings over a pop band, all of it from free parts.

Flite's voice slt speaks the words, the WORLD vocoder puts each syllable on its note, and fluidsynth plays the
band from a General MIDI soundfont. Needs what no test needs: the Debian packages flite, fluidsynth,
fluid-soundfont-gm and ffmpeg; from PyPI pyworld, numpy and scipy.

    make_sung_pop.py OUT.opus
"""

import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyworld
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.signal import fftconvolve, resample_poly

RATE = 48000
BEAT_S = 60 / 112
Samples = NDArray[np.float64]
SOUNDFONT = "/usr/share/sounds/sf2/FluidR3_GM.sf2"

# A verse and a hook in C major over C G Am F: (syllable as flite shall say it, MIDI note, beats).
SONG = [
    ("run", 64, 1.0), ("ning", 67, 0.5), ("in", 67, 0.5), ("the", 67, 0.5), ("morn", 69, 1.0),
    ("ning", 67, 0.5), ("sun", 67, 2.0), ("we", 64, 0.5), ("are", 64, 0.5), ("nev", 65, 0.5),
    ("er", 64, 0.5), ("a", 62, 0.5), ("lone", 64, 2.5), ("all", 67, 0.5), ("the", 67, 0.5),
    ("way", 72, 2.0), ("oh", 71, 1.0), ("oh", 69, 1.0), ("oh", 67, 2.0), ("I", 69, 0.5),
    ("love", 69, 1.0), ("you", 67, 0.5), ("now", 65, 1.0), ("and", 64, 0.5), ("day", 67, 1.5),
    ("by", 65, 0.5), ("day", 64, 2.0),
]  # fmt: skip
CHORDS = [(48, (60, 64, 67)), (43, (59, 62, 67)), (45, (60, 64, 69)), (41, (60, 65, 69))]


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)


def spoken(syllable: str) -> tuple[Samples, int]:
    """One syllable as flite says it [samples], without the silence around it, and its rate."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as out:
        _run(["flite", "-voice", "slt", "-t", syllable, "-o", out.name])
        rate, samples = wavfile.read(out.name)
    voice = samples.astype(np.float64) / 32768
    loud = np.flatnonzero(np.abs(voice) > 0.02 * np.abs(voice).max())
    return voice[max(0, loud[0] - rate // 50) : loud[-1] + rate // 50], rate


def sung(syllable: str, note: int, seconds: float, before: int) -> Samples:
    """The syllable on `note` [samples at RATE], `seconds` long: its middle, the vowel, is stretched."""
    voice, rate = spoken(syllable)
    pitch, times = pyworld.harvest(voice, rate, f0_floor=90, f0_ceil=400)
    envelope = pyworld.cheaptrick(voice, pitch, times, rate)
    noise = pyworld.d4c(voice, pitch, times, rate)
    frames = round(seconds / 0.005)
    # Onset and end keep their speed, so that consonants stay crisp.
    edge = min(len(pitch) // 3, 14, frames // 3)
    middle = np.linspace(edge, len(pitch) - edge - 1, frames - 2 * edge)
    where = (
        np.concatenate([np.arange(edge), middle, np.arange(len(pitch) - edge, len(pitch))])
        .round()
        .astype(int)
    )
    moment = np.arange(len(where)) * 0.005
    vibrato = 0.25 * np.sin(2 * np.pi * 5.6 * moment) * np.clip((moment - 0.25) / 0.3, 0, 1)
    glide = (before - note) * np.exp(-moment / 0.035)
    target = 440 * 2 ** ((note - 69 + vibrato + glide) / 12)
    voiced = pitch[where] > 0
    sound = pyworld.synthesize(np.where(voiced, target, 0.0), envelope[where], noise[where], rate)
    fade = np.minimum(1, np.minimum(np.arange(len(sound)), np.arange(len(sound))[::-1]) / (0.01 * rate))
    resampled: Samples = resample_poly(sound * fade, RATE, rate)
    return resampled


def melody(transpose: int = 0) -> Samples:
    """The whole line [samples at RATE]."""
    line = np.zeros(round(sum(beats for _, _, beats in SONG) * BEAT_S * RATE) + RATE)
    at, before = 0.0, SONG[0][1]
    for syllable, note, beats in SONG:
        sound = sung(syllable, note + transpose, beats * BEAT_S, before + transpose)
        start = round(at * RATE)
        sound = sound[: len(line) - start] / max(1e-9, np.sqrt(np.mean(sound**2)))
        line[start : start + len(sound)] += sound
        at, before = at + beats * BEAT_S, note
    return line


def band(bars: int) -> bytes:
    """A Standard MIDI file (format 0, 480 ticks a beat): drums, bass, piano, guitar and strings."""
    events: list[tuple[int, bytes]] = []

    def play(channel: int, note: int, velocity: int, beat: float, beats: float) -> None:
        events.append((round(beat * 480), bytes([0x90 | channel, note, velocity])))
        events.append((round((beat + beats) * 480) - 1, bytes([0x80 | channel, note, 0])))

    for channel, program in ((0, 0), (1, 33), (2, 25), (3, 50)):
        events.append((0, bytes([0xC0 | channel, program])))
    for bar in range(bars):
        start = bar * 4
        root, chord = CHORDS[bar % 4]
        for eighth in range(8):
            play(9, 42, 70 if eighth % 2 else 90, start + eighth / 2, 0.25)
            play(1, root, 100, start + eighth / 2, 0.45)
        for kick in (0, 1.5, 2):
            play(9, 36, 115, start + kick, 0.25)
        for snare in (1, 3):
            play(9, 38, 110, start + snare, 0.25)
        for note in chord:
            play(3, note, 55, start, 4)
            for strum in (0, 1, 1.5, 2.5, 3):
                play(2, note, 75, start + strum, 0.5)
            for hit in (0, 2):
                play(0, note, 80, start + hit, 1.5)
    track = b"\x00\xff\x51\x03" + round(BEAT_S * 1e6).to_bytes(3, "big")
    now = 0
    for tick, message in sorted(events):
        track += _variable_length(tick - now) + message
        now = tick
    track += b"\x00\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 480) + b"MTrk" + struct.pack(">I", len(track)) + track


def _variable_length(value: int) -> bytes:
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.append(0x80 | (value & 0x7F))
    return bytes(reversed(parts))


def accompaniment(bars: int) -> Samples:
    """The band as fluidsynth plays it: [samples, 2] at RATE."""
    with tempfile.TemporaryDirectory() as folder:
        midi, wave = Path(folder, "band.mid"), Path(folder, "band.wav")
        midi.write_bytes(band(bars))
        _run(["fluidsynth", "-ni", "-q", "-r", str(RATE), "-g", "0.5", "-F", str(wave), SOUNDFONT, str(midi)])
        _, samples = wavfile.read(wave)
    played: Samples = samples.astype(np.float64) / 32768
    return played


def main(out: str) -> None:
    lead, harmony = melody(), melody(transpose=-12)
    voice = lead + 0.25 * harmony
    rng = np.random.default_rng(0)
    room = rng.standard_normal((RATE, 2)) * np.exp(-np.arange(RATE) / (0.25 * RATE))[:, None]
    room /= np.sqrt((room**2).sum(axis=0))
    wet = np.stack([fftconvolve(voice, room[:, side])[: len(voice)] for side in range(2)], axis=1)
    voices = voice[:, None] + 0.25 * wet
    backing = accompaniment(bars=7)
    length = min(len(voices), len(backing))
    voices, backing = voices[:length], backing[:length]
    mix = backing / np.sqrt(np.mean(backing**2)) + 1.3 * voices / np.sqrt(np.mean(voices**2))
    mix = mix[: round(15 * RATE)]
    mix *= 0.9 / np.abs(mix).max()
    with tempfile.NamedTemporaryFile(suffix=".wav") as wave:
        wavfile.write(wave.name, RATE, (mix * 32767).astype(np.int16))
        _run(
            [
                "ffmpeg",
                "-v",
                "error",
                "-y",
                "-i",
                wave.name,
                "-fflags",
                "+bitexact",
                "-c:a",
                "libopus",
                "-b:a",
                "64k",
                out,
            ]
        )


if __name__ == "__main__":
    main(sys.argv[1])
