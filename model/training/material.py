"""What the loop learns from (audio, labels, soft targets by the second), and how it draws windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.frontend import SAMPLE_RATE_HZ
from model.network import SEGMENT_SAMPLES, SEGMENTS_PER_WINDOW
from model.training import cache
from model.training.augmentation import Generator, Samples, distort
from model.training.cache import CLIP_S, PCM_SCALE
from model.training.corpus import Clip

WINDOW_SAMPLES: Final = SEGMENT_SAMPLES * SEGMENTS_PER_WINDOW
SECONDS_PER_ROW: Final = {"msd": 3.0, "msd_features": 3.0, "mtt": 3.0, "mtt_features": 3.0, "audioset": 0.975}
HEARD: Final = 0.02
"""An AudioSet class is a target if it reaches this score anywhere in the material."""


@dataclass(frozen=True, slots=True)
class Material:
    """Clips with audio; labels [N, K] (NaN unknown); soft targets [N, 29, M], standardised (NaN unknown)."""

    clips: list[Clip]
    audio: NDArray[np.int16]
    lengths: NDArray[np.int64]
    labels: NDArray[np.float32]
    soft: NDArray[np.float16]

    def select(self, keep: NDArray[np.bool_]) -> "Material":
        """The clips where `keep` [N] is true."""
        clips = [clip for clip, kept in zip(self.clips, keep, strict=True) if kept]
        return Material(clips, self.audio[keep], self.lengths[keep], self.labels[keep], self.soft[keep])

    def samples(self, index: int) -> Samples:
        """The audio of a clip, [T] float32."""
        return self.audio[index, : self.lengths[index]].astype(np.float32) / np.float32(PCM_SCALE)


def _logit(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    clipped = np.clip(scores, 1e-4, 1 - 1e-4)
    logits: NDArray[np.float32] = np.log(clipped / (1 - clipped))
    return logits


def _by_second(rows: NDArray[np.float32], seconds_per_row: float) -> NDArray[np.float32]:
    """[N, rows, M] -> [N, 29, M]: the row in which each second's middle lies, or the last."""
    index = np.minimum((np.arange(CLIP_S) + 0.5) / seconds_per_row, rows.shape[1] - 1).astype(int)
    return rows[:, index]


def _lessons_by_second(lessons: dict[str, NDArray[np.float16]]) -> NDArray[np.float32]:
    """All teachers' scores as logits, and features as they are: [N, 29, M]."""
    parts = []
    for name, values in lessons.items():
        array = values.astype(np.float32)
        array = array if name.endswith("features") else _logit(array)
        parts.append(
            _by_second(array, SECONDS_PER_ROW[name])
            if name in SECONDS_PER_ROW
            else np.repeat(array[:, None], CLIP_S, 1)
        )
    return np.concatenate(parts, 2)


def _standardise(soft: NDArray[np.float32]) -> NDArray[np.float16]:
    """Zero mean and unit variance per target: who never dares above 0.05 counts like a bold teacher."""
    flat = soft.reshape(-1, soft.shape[2])
    mean, deviation = np.nanmean(flat, 0), np.nanstd(flat, 0)
    standard: NDArray[np.float16] = np.clip((soft - mean) / np.maximum(deviation, 1e-3), -6.0, 6.0).astype(
        np.float16
    )
    return standard


def load_material(sources: Sequence[tuple[list[Clip], Path]], soft_labels: Path | None = None) -> Material:
    """Join manifests with their caches (see `cache.build`); clips that the cache lacks are left out.

    Soft targets are the lessons in the caches; or else, of every clip in it, the whole-clip scores of
    `soft_labels` (an npz with `ids` [N] and `scores` [N, M] in [0, 1]); or else one target that is unknown.
    """
    caches = [cache.load(folder) for _, folder in sources]
    by_id = [{clip.id: clip for clip in clips} for clips, _ in sources]
    clips = [found[str(name)] for found, cached in zip(by_id, caches, strict=True) for name in cached.ids]
    audio = np.concatenate([cached.audio for cached in caches])
    lengths = np.concatenate([cached.lengths for cached in caches])
    labels = np.array(
        [[np.nan if label is None else label for label in clip.labels] for clip in clips], np.float32
    )
    return Material(clips, audio, lengths, labels, _soft_targets(clips, caches, soft_labels))


def _soft_targets(
    clips: list[Clip], caches: list[cache.Cache], soft_labels: Path | None
) -> NDArray[np.float16]:
    if all(cached.lessons for cached in caches):
        lessons = {
            name: np.concatenate([cached.lessons[name] for cached in caches]) for name in caches[0].lessons
        }
        if "audioset" in lessons:
            heard = np.nanmax(lessons["audioset"].reshape(-1, lessons["audioset"].shape[2]), 0) > HEARD
            lessons["audioset"] = lessons["audioset"][..., heard]
        return _standardise(_lessons_by_second(lessons))
    if soft_labels is None:
        return np.full((len(clips), CLIP_S, 1), np.nan, np.float16)
    with np.load(soft_labels) as archive:
        row = {str(name): index for index, name in enumerate(archive["ids"])}
        scores = _logit(archive["scores"].astype(np.float32))
    whole = np.full((len(clips), scores.shape[1]), np.nan, np.float32)
    for index, clip in enumerate(clips):
        if clip.id in row:
            whole[index] = scores[row[clip.id]]
    return np.repeat(_standardise(whole[:, None]), CLIP_S, 1)


@dataclass(frozen=True, slots=True)
class Window:
    """A drawn window: audio [160000], labels [K], soft targets [M]."""

    samples: Samples
    labels: NDArray[np.float32]
    soft: NDArray[np.float32]


def draw(material: Material, index: int, rng: Generator, *, short: float = 0.15) -> Window:
    """A random window of a clip; with probability `short` a part of 1 to 8 s, as short uploads are."""
    samples = material.samples(index)
    length = int(rng.uniform(1.0, 8.0) * SAMPLE_RATE_HZ) if rng.random() < short else WINDOW_SAMPLES
    start = int(rng.integers(0, max(1, len(samples) - length + 1)))
    part = samples[start : start + length]
    first = start // SAMPLE_RATE_HZ
    last = max(first + 1, min(CLIP_S, (start + len(part)) // SAMPLE_RATE_HZ))
    soft = material.soft[index, first:last].astype(np.float32).mean(0)
    return Window(fill_window(part), material.labels[index], soft)


def fill_window(part: Samples) -> Samples:
    """As the tagger does: a part under 5 s is repeated to fill a segment; the last segment ends the part."""
    if len(part) >= WINDOW_SAMPLES:
        return part[:WINDOW_SAMPLES]
    if len(part) <= SEGMENT_SAMPLES:
        return np.tile(np.resize(part, SEGMENT_SAMPLES), SEGMENTS_PER_WINDOW)
    return np.concatenate([part[:SEGMENT_SAMPLES], part[-SEGMENT_SAMPLES:]])


def mix(window: Window, other: Window, rng: Generator, vocal: int | None) -> Window:
    """Lay another window under this one, 0 to 20 dB below it.

    A voice in either makes `vocal` (its column) true, none in both makes it false. The other tags stay known
    only where both agree, or where the other is too soft to matter (from 12 dB); soft targets likewise.
    """
    below = rng.uniform(0.0, 20.0)
    power = np.mean(window.samples**2) / max(1e-8, float(np.mean(other.samples**2)))
    samples = window.samples + other.samples * np.float32(np.sqrt(power) * 10 ** (-below / 20))
    samples /= np.float32(max(1.0, float(np.abs(samples).max())))
    soft_other = below > 12.0
    labels = np.where((window.labels == other.labels) | soft_other, window.labels, np.nan).astype(np.float32)
    if vocal is not None:
        pair = window.labels[vocal], other.labels[vocal]
        if 1.0 in pair and (pair[0] == 1.0 or below < 10.0):
            labels[vocal] = 1.0
        elif pair != (0.0, 0.0):
            labels[vocal] = np.nan
    return Window(samples, labels, window.soft if soft_other else np.full_like(window.soft, np.nan))


class Sampler:
    """Batches from a material; batch `step` is the same whenever it is drawn with the same seed."""

    def __init__(
        self, material: Material, weights: NDArray[np.float64], batch: int, seed: int, vocal: int | None
    ) -> None:
        self.material = material
        self.probabilities = weights / weights.sum()
        self.batch = batch
        self.seed = seed
        self.vocal = vocal

    def __call__(self, step: int) -> tuple[Samples, NDArray[np.float32], NDArray[np.float32]]:
        """Audio [B, 160000], labels [B, K], soft targets [B, M]."""
        rng = np.random.default_rng((self.seed, step))
        windows = [self._window(rng) for _ in range(self.batch)]
        return (
            np.stack([w.samples for w in windows]),
            np.stack([w.labels for w in windows]),
            np.stack([w.soft for w in windows]),
        )

    def _window(self, rng: Generator) -> Window:
        index, other = rng.choice(len(self.probabilities), 2, p=self.probabilities)
        window = draw(self.material, int(index), rng)
        if rng.random() < 0.25:
            window = mix(window, draw(self.material, int(other), rng), rng, self.vocal)
        return Window(distort(window.samples, rng), window.labels, window.soft)
