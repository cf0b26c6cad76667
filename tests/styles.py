"""A collection of one's own, made of sound: what tests train on, and what docs/training.md was tried with.

`python -m tests.styles FOLDER` writes 72 clips of 12 albums (WAV, 12 s), each album with a tempo, a key and
sounds of its own, and `my.csv` with three tags that do not exclude each other: house, breakbeat, ambient.
"""

import csv
import sys
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
TAGS = ("house", "breakbeat", "ambient")
ALBUM = (("house",), ("house",), ("breakbeat",), ("breakbeat",), ("ambient",), ("house", "ambient"))
"""The tags of an album's six clips."""
BREAK = ((0, "kick"), (1, "snare"), (1.75, "snare"), (2.25, "snare"), (2.5, "kick"), (3, "snare"))
"""What a bar of a breakbeat has on which beat."""
SPLITS = ("train",) * 8 + ("val",) * 2 + ("test",) * 2

Samples = NDArray[np.float64]


class Album:
    """One source: its clips differ in notes, not in sounds."""

    def __init__(self, number: int) -> None:
        self.rng = np.random.default_rng(number)
        self.root_hz = 55 * 2 ** (self.rng.integers(0, 12) / 12)
        self.kick_hz = self.rng.uniform(45, 65)
        self.tempo = {"house": self.rng.uniform(118, 128), "breakbeat": self.rng.uniform(130, 170)}
        self.bright = self.rng.uniform(0.2, 0.8)

    def clip(self, tags: tuple[str, ...], seconds: float) -> Samples:
        """All layers of a clip, at a loudness of its own."""
        layers = {"house": self._house, "breakbeat": self._breakbeat, "ambient": self._ambient}
        mix: Samples = np.sum([layers[tag](seconds) for tag in tags], 0)
        mix *= self.rng.uniform(0.3, 0.9) / np.abs(mix).max()
        return mix

    def _house(self, seconds: float) -> Samples:
        beats = np.arange(0, seconds * self.tempo["house"] / 60)
        beat_s = 60 / self.tempo["house"]
        bass = [self._note(self.root_hz * self._step(), 0.25, 4) for _ in range(16)]
        return (
            self._place([self._kick()] * len(beats), beats * beat_s, seconds)
            + self._place([self._hat()] * len(beats), (beats + 0.5) * beat_s, seconds)
            + self._place([bass[i % 16] for i in range(len(beats))], (beats + 0.5) * beat_s, seconds)
        )

    def _breakbeat(self, seconds: float) -> Samples:
        beat_s = 60 / self.tempo["breakbeat"]
        bars = np.arange(0, seconds / beat_s, 4)
        drums = {"kick": self._kick(), "snare": self._snare()}
        hits = [(bar + beat, drums[drum]) for bar in bars for beat, drum in BREAK]
        hats = np.arange(0, seconds / beat_s, 0.5)
        return self._place(
            [sound for _, sound in hits], np.array([at for at, _ in hits]) * beat_s, seconds
        ) + self._place([self._hat()] * len(hats), hats * beat_s, seconds)

    def _ambient(self, seconds: float) -> Samples:
        time = np.arange(int(seconds * RATE)) / RATE
        pad = np.zeros(len(time))
        for ratio in (2, 2.5, 3, 4, 5):
            slow = 0.6 + 0.4 * np.sin(2 * np.pi * self.rng.uniform(0.03, 0.15) * time + ratio)
            detuned = self.root_hz * ratio * self.rng.uniform(0.997, 1.003)
            pad += slow * np.sin(2 * np.pi * detuned * time + np.sin(2 * np.pi * 0.2 * time))
        return 0.25 * pad

    def _step(self) -> float:
        return float(2 ** (self.rng.choice([0, 3, 5, 7, 10]) / 12))

    def _kick(self) -> Samples:
        time = np.arange(int(0.3 * RATE)) / RATE
        return np.sin(2 * np.pi * self.kick_hz * (time + 0.03 * (1 - np.exp(-time * 40)))) * np.exp(
            -time * 14
        )

    def _hat(self) -> Samples:
        noise = np.diff(self.rng.normal(0, 1, int(0.06 * RATE) + 1))
        return 0.2 * self.bright * noise * np.exp(-np.arange(len(noise)) / RATE * 60)

    def _snare(self) -> Samples:
        time = np.arange(int(0.18 * RATE)) / RATE
        body = np.sin(2 * np.pi * 190 * time) + self.bright * self.rng.normal(0, 1, len(time))
        return 0.6 * body * np.exp(-time * 22)

    def _note(self, pitch_hz: float, seconds: float, overtones: int) -> Samples:
        time = np.arange(int(seconds * RATE)) / RATE
        tone = sum(np.sin(2 * np.pi * k * pitch_hz * time) / k for k in range(1, overtones + 1))
        return np.asarray(0.4 * tone * np.exp(-time * 6))

    def _place(self, sounds: list[Samples], at_s: Samples, seconds: float) -> Samples:
        line = np.zeros(int((seconds + 4) * RATE))  # the last bar rings out, and is cut
        for sound, start_s in zip(sounds, at_s, strict=True):
            start = int(start_s * RATE)
            line[start : start + len(sound)] += sound
        return line[: int(seconds * RATE)]


def write_collection(folder: Path, splits: tuple[str, ...] = SPLITS, seconds: float = 12.0) -> Path:
    """Write an album for each of `splits`, and the manifest; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "my.csv"
    with manifest.open("w", newline="", encoding="utf-8") as handle:
        rows = csv.writer(handle)
        rows.writerow(["id", "file", "source", "split", *TAGS])
        for number, split in enumerate(splits):
            album, source = Album(number), f"album-{number:02}"
            (folder / source).mkdir(exist_ok=True)
            for index, tags in enumerate(ALBUM):
                name = f"{source}/{index}-{'-'.join(tags)}"
                _write_wav(folder / f"{name}.wav", album.clip(tags, seconds))
                rows.writerow([name, f"{name}.wav", source, split, *(int(tag in tags) for tag in TAGS)])
    return manifest


def _write_wav(path: Path, samples: Samples) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


if __name__ == "__main__":
    print(write_collection(Path(sys.argv[1])))  # noqa: T201
