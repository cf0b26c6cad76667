"""What the loop learns from (log-mels, labels, what the teachers say), and how it draws windows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from model.frontend import HOP, N_MELS, SAMPLE_RATE_HZ
from model.network import SEGMENT_SAMPLES, SEGMENTS_PER_WINDOW
from model.segments import TAIL_PARTS
from model.tagger import LEAST_SOUNDING, TENTHS
from model.tags import TAGS
from model.training import cache
from model.training.augmentation import Generator, band_curve
from model.training.cache import CLIP_S, VARIANTS
from model.training.corpus import Clip, ManifestError
from model.training.teachers import TeacherFolders, word_lists
from model.training.words import by_second, opinions, standardised

FAINTEST: Final = 1e-3
"""The lowest log-mel that is no silence."""
SEGMENT_FRAMES: Final = 1 + SEGMENT_SAMPLES // HOP
HEARD: Final = 0.02
"""An AudioSet class is a target if it reaches this score anywhere in the material."""
SHORT: Final = 0.15
"""Share of windows that are a part of 1 to 5 s, as short uploads are."""
MIXED: Final = 0.3
"""Share of windows under which another is laid."""
CHOPPED: Final = 0.6
"""Share of those other windows of which only bursts are heard."""
DISTORTED: Final = 0.6
"""Share of windows that may be of a distorted variant."""
SOFT_FROM_DB: Final = 12.0
"""A window that is softer than the other by this much does not change what the other is."""

Mel = NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Material:
    """Clips, and all that is known of them.

    Attributes:
        clips: N of them.
        mels: arrays of log-mels on disk [n, VARIANTS, 96, CLIP_FRAMES].
        places: which array and which row of it is a clip's [N, 2].
        frames: how many frames a clip fills [N].
        labels: [N, K], NaN unknown.
        words: what the teachers' words say of each tag by the second [N, 29, K], NaN unknown (`words`).
        soft: all that the teachers say by the second, standardised [N, 29, M], NaN unknown.
    """

    clips: list[Clip]
    mels: list[Mel]
    places: NDArray[np.int64]
    frames: NDArray[np.int64]
    labels: NDArray[np.float32]
    words: NDArray[np.float16]
    soft: NDArray[np.float16]

    def select(self, keep: NDArray[np.bool_]) -> "Material":
        """The clips where `keep` [N] is true."""
        clips = [clip for clip, kept in zip(self.clips, keep, strict=True) if kept]
        return Material(
            clips,
            self.mels,
            self.places[keep],
            self.frames[keep],
            self.labels[keep],
            self.words[keep],
            self.soft[keep],
        )

    def teaches(self) -> NDArray[np.bool_]:
        """[N]: whether anything is known of a clip."""
        values = [known.reshape(len(self.clips), -1) for known in (self.labels, self.words, self.soft)]
        found: NDArray[np.bool_] = np.any(~np.isnan(np.concatenate(values, 1)), axis=1)
        return found

    def without_words(self) -> "Material":
        """The same, but for the words: they are unknown."""
        return replace(self, words=np.full_like(self.words, np.nan))

    def mel(self, index: int, variant: int = 0) -> Mel:
        """A clip's log-mel [96, frames]; variant 0 is the clip as it is, the others are distorted."""
        shard, row = self.places[index]
        mel: Mel = self.mels[shard][row, variant, :, : self.frames[index]]
        return mel


def load_material(
    sources: Sequence[tuple[list[Clip], Path]],
    tags: Sequence[str],
    folders: TeacherFolders | None = None,
    soft_labels: Path | None = None,
) -> Material:
    """Join manifests with their caches (see `cache.build`); clips that the cache lacks are left out.

    Args:
        sources: the clips of a manifest, and the folder of their cache.
        tags: what the clips' labels are of.
        folders: of the teachers whose lessons are learned, of those that the caches hold; none: of no one.
        soft_labels: without lessons, scores for whole clips to learn from: an npz with `ids` [N] and
            `scores` [N, M] in [0, 1].
    """
    caches = [cache.load(folder) for _, folder in sources]
    by_id = [{clip.id: clip for clip in clips} for clips, _ in sources]
    clips = [found[str(name)] for found, cached in zip(by_id, caches, strict=True) for name in cached.ids]
    mels = [shard for cached in caches for shard in cached.mels]
    labels = np.array(
        [[np.nan if label is None else label for label in clip.labels] for clip in clips], np.float32
    ).reshape(-1, len(tags))
    lessons = _lessons(caches, folders)
    if lessons and folders is not None:
        words, soft = opinions(tags, lessons, word_lists(folders.teachers)), _soft_targets(lessons)
        if set(TAGS) <= set(tags):
            # Of what is no music, or nothing of the kind, a music tagger's words mean nothing.
            words[(labels == 0.0).all(1)] = np.nan
    else:
        words = np.full((len(clips), CLIP_S, len(tags)), np.nan, np.float16)
        soft = _soft_labels(clips, soft_labels)
    return Material(
        clips,
        mels,
        np.array([(shard, row) for shard, array in enumerate(mels) for row in range(len(array))]).reshape(
            -1, 2
        ),
        np.concatenate([cached.frames for cached in caches]),
        labels,
        words,
        soft,
    )


def _lessons(caches: Sequence[cache.Cache], folders: TeacherFolders | None) -> dict[str, NDArray[np.float16]]:
    """What these teachers said of the clips of all caches, by `Lesson`'s fields."""
    heard = [cached for cached in caches if len(cached.ids)]  # where no clip could be read, no one was asked
    return {
        name: np.concatenate([cached.lessons[name] for cached in heard])
        for name in cache.lessons_of(folders)
        if heard and all(name in cached.lessons for cached in heard)
    }


def _soft_targets(lessons: dict[str, NDArray[np.float16]]) -> NDArray[np.float16]:
    """All teachers' scores as logits, and features as they are: [N, 29, M]."""
    heard = np.nanmax(lessons["audioset"].reshape(-1, lessons["audioset"].shape[2]), 0) > HEARD
    parts = []
    for name, values in lessons.items():
        array = values[..., heard] if name == "audioset" else values
        rows = array.astype(np.float32) if name.endswith("features") else _logit(array.astype(np.float32))
        seconds = by_second(rows, name)
        parts.append(standardised(seconds).reshape(seconds.shape).astype(np.float16))
    return np.concatenate(parts, 2)


def _soft_labels(clips: Sequence[Clip], path: Path | None) -> NDArray[np.float16]:
    if path is None:
        return np.full((len(clips), CLIP_S, 1), np.nan, np.float16)
    row, scores = read_soft_labels(path)
    whole = np.full((len(clips), 1, scores.shape[1]), np.nan, np.float32)
    for index, clip in enumerate(clips):
        if clip.id in row:
            whole[index, 0] = _logit(scores[row[clip.id]])
    standard = standardised(whole).reshape(whole.shape)
    return np.repeat(standard.astype(np.float16), CLIP_S, 1)


def read_soft_labels(path: Path) -> tuple[dict[str, int], NDArray[np.float32]]:
    """Scores of whole clips [N, M], and the row of each clip's id.

    Raises:
        ManifestError: it cannot be read, or is not such an npz.
    """
    try:
        with path.open("rb") as handle, np.load(handle) as archive:
            row = {str(name): index for index, name in enumerate(archive["ids"])}
            scores = archive["scores"].astype(np.float32)
        if scores.ndim != 2 or len(scores) != len(row) or not scores.size:
            raise ValueError(f"{len(row)} ids, scores of shape {scores.shape}")
        known = scores[~np.isnan(scores)]
        if not (len(known) and ((known >= 0) & (known <= 1)).all()):
            raise ValueError("scores that are not in [0, 1]")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise ManifestError(
            f"{path}: cannot be used ({error}); soft labels are an npz of `ids` [N] and `scores` [N, M],"
            " in [0, 1]"
        ) from error
    return row, scores


def _logit(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    clipped = np.clip(scores, 1e-4, 1 - 1e-4)
    logits: NDArray[np.float32] = np.log(clipped / (1 - clipped))
    return logits


@dataclass(frozen=True, slots=True)
class Window:
    """A drawn window: log-mel of its segments [2, 96, 313], labels [K], words [K], soft targets [M]."""

    mel: Mel
    labels: NDArray[np.float32]
    words: NDArray[np.float32]
    soft: NDArray[np.float32]


def draw(material: Material, index: int, variant: int, rng: Generator) -> Window:
    """Two segments from anywhere in a clip; at times one that repeats a shorter part, as the tagger does."""
    mel = material.mel(index, variant)
    length = min(SEGMENT_FRAMES, mel.shape[1])
    if rng.random() < SHORT:
        length = min(length, int(rng.uniform(1.0, 5.0) * SAMPLE_RATE_HZ / HOP))
    number = SEGMENTS_PER_WINDOW if length == SEGMENT_FRAMES else 1
    starts = rng.integers(0, mel.shape[1] - length + 1, number)
    segments = [fill_segment(mel[:, start : start + length]) for start in starts]
    heard = [_seconds(start, length) for start in starts]
    return Window(
        np.stack(segments * (SEGMENTS_PER_WINDOW // number)),
        material.labels[index],
        _mean(material.words[index], heard),
        _mean(material.soft[index], heard),
    )


def fill_segment(part: Mel) -> Mel:
    """[96, n] -> [96, 313]: a shorter part is repeated, as the tagger repeats its audio."""
    return part[:, np.arange(SEGMENT_FRAMES) % part.shape[1]]


def cut_mel(mel: Mel) -> Mel:
    """The log-mel of a clip [96, frames] -> those of its segments [S, 96, 313], as `cut_segments` does."""
    frames = mel.shape[1]
    last = frames - SEGMENT_FRAMES
    if last <= 0:
        return fill_segment(mel)[None]
    starts = [min(round(start), last) for start in np.arange(0.0, last + 1, SEGMENT_SAMPLES / HOP)]
    if (last - starts[-1]) * HOP > SEGMENT_SAMPLES // TAIL_PARTS:
        starts.append(last)
    return np.stack([mel[:, start : start + SEGMENT_FRAMES] for start in starts])


def sounding_mel(segments: Mel) -> NDArray[np.float32]:
    """Log-mels of segments [S, 96, 313] -> how much of each is not silence [S, 1], as `tagger.sounding`.

    A tenth of a second is silent here if no band rises above `FAINTEST`, as white noise of -68 dBFS does.
    """
    firsts = np.arange(TENTHS) * SEGMENT_FRAMES // TENTHS
    loudest = np.maximum.reduceat(segments.max(1), firsts, axis=1)
    share: NDArray[np.float32] = (loudest > FAINTEST).mean(1, keepdims=True, dtype=np.float32)
    return share.clip(LEAST_SOUNDING)


def _seconds(start: int, length: int) -> slice:
    first = min(int(start * HOP / SAMPLE_RATE_HZ), CLIP_S - 1)
    return slice(first, max(first + 1, int((start + length) * HOP / SAMPLE_RATE_HZ)))


def _mean(by_second: NDArray[np.float16], heard: Sequence[slice]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = np.concatenate([by_second[part] for part in heard]).astype(np.float32).mean(0)
    return mean


def labels_of_mix(
    window: Window, other: Window, below_db: float, vocal: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Labels [K], words [K] and soft targets [M] of a window with another one laid under it.

    A voice in either makes `vocal` (its column) true, none in both makes it false. The other tags stay known
    only where both agree, or where the other is too soft to matter; words and soft targets likewise. Where
    it becomes unknown whether a voice is heard, so do the words for it.
    """
    drowned = below_db > SOFT_FROM_DB
    labels = np.where((window.labels == other.labels) | drowned, window.labels, np.nan).astype(np.float32)
    if vocal is not None:
        pair = window.labels[vocal], other.labels[vocal]
        if 1.0 in pair and (pair[0] == 1.0 or below_db < 10.0):
            labels[vocal] = 1.0
        elif pair != (0.0, 0.0):
            labels[vocal] = np.nan
    if drowned:
        words = window.words.copy()
        if vocal is not None and np.isnan(labels[vocal]) and not np.isnan(window.labels[vocal]):
            words[vocal] = np.nan
        return labels, words, window.soft
    return labels, np.full_like(window.words, np.nan), np.full_like(window.soft, np.nan)


def bursts(rng: Generator) -> NDArray[np.float16]:
    """[2, 1, 313]: 1 in bursts at a steady pace, else 0, as a voice that is chopped into hooks is heard.

    What is no voice is laid under others in the same way, so that being chopped tells nothing.
    """
    period_s, share = rng.uniform(0.3, 3.0), rng.uniform(0.2, 0.8)
    time_s = np.arange(SEGMENTS_PER_WINDOW * SEGMENT_FRAMES) * HOP / SAMPLE_RATE_HZ
    sounds = (time_s / period_s + rng.uniform()) % 1.0 < share
    return sounds.astype(np.float16).reshape(SEGMENTS_PER_WINDOW, 1, SEGMENT_FRAMES)


@dataclass(frozen=True, slots=True)
class Batch:
    """B windows and how they are to be distorted.

    Attributes:
        mel: log-mels of their segments [B, 2, 96, 313].
        under: those of what is laid under them [B, 2, 96, 313], silence where nothing is.
        below_db: how far below [B].
        curve_db: gain and equaliser by mel band [B, 96].
        labels: [B, K]; words: [B, K]; soft: [B, M]; NaN unknown.
    """

    mel: Mel
    under: Mel
    below_db: NDArray[np.float32]
    curve_db: NDArray[np.float32]
    labels: NDArray[np.float32]
    words: NDArray[np.float32]
    soft: NDArray[np.float32]


class Sampler:
    """Batches from a material; batch `step` is the same whenever it is drawn with the same seed.

    Args:
        material: what to draw from.
        weights: how often to draw each clip, in any unit [N].
        batch: windows a batch.
        seed: of all that is random.
        vocal: the column of the tag that a voice in a mix makes true, if there is one.
        augment: whether windows are mixed and distorted.
    """

    def __init__(
        self,
        material: Material,
        weights: NDArray[np.float64],
        batch: int,
        seed: int,
        vocal: int | None,
        *,
        augment: bool = True,
    ) -> None:
        self.material = material
        self.probabilities = weights / weights.sum()
        self.batch = batch
        self.seed = seed
        self.vocal = vocal
        self.augment = augment

    def __call__(self, step: int) -> Batch:
        """Draw batch number `step`."""
        rng = np.random.default_rng((self.seed, step))
        rows = [self._row(rng) for _ in range(self.batch)]
        mel, under, below_db, curve_db, labels, words, soft = (
            np.stack(column) for column in zip(*rows, strict=True)
        )
        return Batch(mel, under, below_db.astype(np.float32), curve_db, labels, words, soft)

    def _row(self, rng: Generator) -> tuple[NDArray[np.generic] | np.float64, ...]:
        index, other = rng.choice(len(self.probabilities), 2, p=self.probabilities)
        variants = rng.integers(0, VARIANTS, 2) if self.augment and rng.random() < DISTORTED else (0, 0)
        window = draw(self.material, int(index), int(variants[0]), rng)
        curve = band_curve(rng) if self.augment else np.zeros(N_MELS, np.float32)
        if not self.augment or rng.random() >= MIXED:
            silence = np.zeros_like(window.mel)
            return window.mel, silence, np.float64(0.0), curve, window.labels, window.words, window.soft
        under = draw(self.material, int(other), int(variants[1]), rng)
        below_db = rng.uniform(0.0, 20.0)
        known = labels_of_mix(window, under, below_db, self.vocal)
        heard = under.mel * bursts(rng) if rng.random() < CHOPPED else under.mel
        return window.mel, heard, np.float64(below_db), curve, *known
