"""Scores of what is no music, where all of them should be low: speech, sounds, noise, tones, silence."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from model.audio import AudioError
from model.evaluation.metrics import Floats
from model.evaluation.report import markdown_table
from model.evaluation.robustness import store
from model.frontend import SAMPLE_RATE_HZ
from model.tagger import Tagger
from model.training.augmentation import Generator, Samples, colour
from model.training.corpus import Clip

SYNTHETIC: Final = 30
"""Sounds made a kind."""
SECONDS: Final = 10
HIGH: Final = 0.3
"""From this score on a tag looks present enough to trouble a user."""
FLOOR_DB: Final = -60.0
"""Peak of near-silence against full scale; below -70 dB the tagger refuses a clip as silent."""


def noise_floor(rng: Generator) -> Samples:
    """Near-silence: the hiss of a recorder, [SECONDS at 16 kHz], its peak at -60 dB."""
    return steady_noise(rng) * np.float32(2 * 10 ** (FLOOR_DB / 20))


def steady_noise(rng: Generator) -> Samples:
    """White to brown noise, its peak at one half."""
    hiss = colour(rng.standard_normal(SECONDS * SAMPLE_RATE_HZ, np.float32), rng.uniform(0.0, 1.0))
    half: Samples = (0.5 * hiss / np.abs(hiss).max()).astype(np.float32)
    return half


def steady_tones(rng: Generator) -> Samples:
    """One to four sine tones of 60 to 4000 Hz, their peak at most one half."""
    hertz = rng.uniform(60.0, 4000.0, rng.integers(1, 5))
    time = np.arange(SECONDS * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    tones: Samples = (0.5 * np.sin(2 * np.pi * hertz[:, None] * time).mean(axis=0)).astype(np.float32)
    return tones


KINDS: Final = {
    "near-silence (made here)": noise_floor,
    "noise (made here)": steady_noise,
    "tones (made here)": steady_tones,
}


def not_music(clips: Sequence[Clip], seed: int = 0) -> list[tuple[str, Path | bytes]]:
    """The clips, each under its first source, and behind them what is made here: (kind, file) each."""
    rng = np.random.default_rng(seed)
    made = [(kind, store(make(rng))) for kind, make in KINDS.items() for _ in range(SYNTHETIC)]
    return [*((clip.sources[0], clip.path) for clip in clips), *made]


def score_kinds(tagger: Tagger, sounds: Iterable[tuple[str, Path | bytes]]) -> dict[str, Floats]:
    """The scores [n, T] of each kind of sound; one that the tagger refuses is left out."""
    rows: dict[str, list[list[float]]] = {}
    for kind, sound in sounds:
        try:
            scores = list(tagger.tag(sound).scores.values())
        except (AudioError, OSError):
            continue
        rows.setdefault(kind, []).append(scores)
    return {kind: np.array(scores) for kind, scores in rows.items()}


def not_music_section(tags: Sequence[str], scores: dict[str, Floats]) -> list[str]:
    """Write the lines of the report's section."""
    rows = [
        (
            kind,
            str(len(found)),
            tag,
            f"{np.median(column):.3f}",
            f"{np.percentile(column, 95):.3f}",
            f"{column.max():.3f}",
            f"{(column >= HIGH).mean():.1%}",
        )
        for kind, found in scores.items()
        for tag, column in zip(tags, found.T, strict=True)
    ]
    header = ("sound", "clips", "tag", "median", "95th percentile", "highest", f"share from {HIGH} up")
    return ["", "## No music", "", "Every score should be low here.", "", *markdown_table(header, rows)]
