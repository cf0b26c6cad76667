"""What happens to scores between the studio and the upload: codecs, loudness, rooms, noise, short excerpts.

Each distortion of `DISTORTIONS` is done to the same clips by a fixed amount; the tagger gets the bytes of a
file, as it would be uploaded. What is done is what training draws from (`model/training/augmentation.py`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from model.audio import AudioError, read_audio
from model.evaluation.metrics import Floats, roc_auc
from model.evaluation.report import Progress, label_array, markdown_table
from model.frontend import SAMPLE_RATE_HZ
from model.tagger import Tagger
from model.training.augmentation import (
    FLAT_DB,
    Generator,
    Samples,
    add_under,
    amplify,
    change_speed,
    colour,
    decaying_noise,
    encode,
    reverberate,
    shape_spectrum,
)
from model.training.corpus import Clip

Distortion = Callable[[Samples, Generator], bytes]

PINK: Final = 0.5
EDGE: Final = 3 * SAMPLE_RATE_HZ
"""Samples of silence."""
TELEPHONE_HZ: Final = (300.0, 3400.0)
SMILE_DB: Final = (6.0, 8.0, 6.0, 2.0, -4.0, -6.0, -2.0, 4.0, 8.0)
"""Bass and treble up, the middle down."""


def store(samples: Samples) -> bytes:
    """[T] -> a WAV file of 16 bit."""
    return encode(samples, "wav", "pcm_s16le", 256)


def middle(samples: Samples, seconds: float) -> Samples:
    """The `seconds` around the middle of a clip [T]; all of it if it is shorter."""
    length = int(seconds * SAMPLE_RATE_HZ)
    start = max(0, (len(samples) - length) // 2)
    return samples[start : start + length]


def _stored(change: Callable[[Samples, Generator], Samples]) -> Distortion:
    return lambda samples, rng: store(change(samples, rng))


def _coded(container: str, encoder: str, kbit_s: int, rate_hz: int) -> Distortion:
    return lambda samples, _: encode(samples, container, encoder, kbit_s, rate_hz)


def _cut(seconds: float) -> Distortion:
    return _stored(lambda samples, _: middle(samples, seconds))


DISTORTIONS: Final[dict[str, Distortion]] = {
    "16-bit WAV, whole": _stored(lambda samples, _: samples),
    **{f"middle {seconds} s": _cut(seconds) for seconds in (10, 5, 3, 1)},
    **{f"MP3 {kbit_s} kbit/s": _coded("mp3", "libmp3lame", kbit_s, 44_100) for kbit_s in (320, 128, 64, 32)},
    "AAC 64 kbit/s": _coded("ipod", "aac", 64, 44_100),
    **{f"Opus {kbit_s} kbit/s": _coded("ogg", "libopus", kbit_s, 48_000) for kbit_s in (64, 24)},
    "telephone, 300 to 3400 Hz": _stored(lambda samples, _: shape_spectrum(samples, FLAT_DB, TELEPHONE_HZ)),
    "bass and treble up": _stored(lambda samples, _: shape_spectrum(samples, SMILE_DB)),
    "room, 0.5 s": _stored(lambda samples, rng: reverberate(samples, decaying_noise(0.5, rng), 0.5)),
    "20 dB quieter": _stored(lambda samples, _: amplify(samples, -20.0)),
    "6 dB louder, clipped": _stored(lambda samples, _: amplify(samples, 6.0)),
    "5% faster and higher": _stored(lambda samples, _: change_speed(samples, 1.05)),
    "5% slower and lower": _stored(lambda samples, _: change_speed(samples, 0.95)),
    "pink noise 20 dB under": _stored(
        lambda samples, rng: add_under(
            samples, colour(rng.standard_normal(len(samples), np.float32), PINK), 20.0
        )
    ),
    "3 s of silence at both ends": _stored(lambda samples, _: np.pad(samples, EDGE)),
    "6 s of silence behind": _stored(lambda samples, _: np.pad(samples, (0, 2 * EDGE))),
    "6 s of silence in the middle": _stored(
        lambda samples, _: np.insert(samples, len(samples) // 2, np.zeros(2 * EDGE, np.float32))
    ),
}
"""Mono float32 [T] at 16 kHz and a seeded generator -> the bytes of a file, by what the report calls it."""


@dataclass(frozen=True, slots=True)
class Robustness:
    """Scores of N clips as they are [N, T] and distorted [N, T]; nan where the tagger refused a clip."""

    tags: tuple[str, ...]
    labels: Floats
    undistorted: Floats
    distorted: dict[str, Floats]


def draw_clips(clips: Sequence[Clip], number: int, seed: int = 0) -> list[Clip]:
    """`number` clips at random in their order, or all if there are no more."""
    chosen = np.random.default_rng(seed).permutation(len(clips))[:number]
    return [clips[row] for row in sorted(chosen)]


def score_distorted(
    tagger: Tagger, clips: Sequence[Clip], progress: Progress = iter, *, seed: int = 0
) -> Robustness:
    """Tag every clip as it is and under each distortion, each drawing from the clip's own seed.

    A clip that cannot be read is left out. What the tagger refuses (a silent excerpt) has nan as its scores.
    """
    unknown = [np.nan] * len(tagger.bundle.tags)

    def scores(file: bytes) -> list[float]:
        try:
            return list(tagger.tag(file).scores.values())
        except AudioError:
            return unknown

    read: list[Clip] = []
    undistorted: list[list[float]] = []
    distorted: dict[str, list[list[float]]] = {name: [] for name in DISTORTIONS}
    for row, clip in enumerate(progress(clips)):
        try:
            samples, _ = read_audio(clip.path)
        except (AudioError, OSError):
            continue
        read.append(clip)
        undistorted.append(scores(clip.path.read_bytes()))
        for name, distort in DISTORTIONS.items():
            distorted[name].append(scores(distort(samples, np.random.default_rng((seed, row)))))
    shape = len(read), len(unknown)
    return Robustness(
        tags=tagger.bundle.tags,
        labels=label_array(read, len(unknown)),
        undistorted=np.array(undistorted).reshape(shape),
        distorted={name: np.array(rows).reshape(shape) for name, rows in distorted.items()},
    )


def median_change(robustness: Robustness, name: str) -> Floats:
    """How far a distortion moves a tag's score on the median clip, [T]; nan if no clip could be compared."""
    change = np.abs(robustness.distorted[name] - robustness.undistorted)
    change = change[~np.isnan(change).any(axis=1)]
    return np.median(change, axis=0) if len(change) else np.full(len(robustness.tags), np.nan)


def area_change(robustness: Robustness, name: str) -> Floats:
    """A tag's ROC-AUC under a distortion minus that without it, same clips, [T]; nan with one class."""
    columns = zip(robustness.labels.T, robustness.undistorted.T, robustness.distorted[name].T, strict=True)
    changes = []
    for labels, before, after in columns:
        known = ~np.isnan(labels + before + after)
        changes.append(roc_auc(labels[known], after[known]) - roc_auc(labels[known], before[known]))
    return np.array(changes)


def robustness_section(robustness: Robustness) -> list[str]:
    """Write the lines of the report's section."""
    rows = []
    for name, scores in robustness.distorted.items():
        compared = ~np.isnan(scores + robustness.undistorted).any(axis=1)
        changes = zip(median_change(robustness, name), area_change(robustness, name), strict=True)
        cells = [f"{_number(moved, '.3f')} / {_number(area, '+.3f')}" for moved, area in changes]
        rows.append((name, str(int(compared.sum())), *cells))
    return [
        "",
        "## Robustness",
        "",
        f"{len(robustness.labels)} clips, drawn at random. Of each tag: the median absolute change of the",
        "score / the ROC-AUC minus that of the clips as they are.",
        "Clips counted are those that the tagger took (a silent excerpt it refuses).",
        "Codecs encode mono, MP3 and AAC at 44.1 kHz, Opus at 48 kHz.",
        "",
        *markdown_table(("distortion", "clips", *robustness.tags), rows),
    ]


def _number(value: float, form: str) -> str:
    return "n/a" if math.isnan(value) else format(value, form)
