"""Decoded clips and their lessons on disk, made once: training never decodes and never asks a teacher.

`python -m model.training.cache --manifest CSV --out DIR --teachers DIR --musicnn DIR` can be stopped and
started again: what is there is kept, in shards of a hundred clips.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from model.audio import AudioError, read_audio
from model.frontend import SAMPLE_RATE_HZ
from model.training.corpus import Clip, read_manifest
from model.training.teachers import Lesson, Teachers

SHARD = 100
CLIP_S = 29
CLIP = CLIP_S * SAMPLE_RATE_HZ
PCM_SCALE = 32767.0


@dataclass(frozen=True, slots=True)
class Cache:
    """Audio int16 [N, 464000], zero behind `lengths`, and per field of `Lesson` an array [N, ...]."""

    ids: NDArray[np.str_]
    audio: NDArray[np.int16]
    lengths: NDArray[np.int64]
    lessons: dict[str, NDArray[np.float16]]


def _pad(array: NDArray[np.float16], rows: int) -> NDArray[np.float16]:
    """[n, K] -> [rows, K], NaN behind what there is."""
    padded = np.full((rows, array.shape[1]), np.nan, np.float16)
    padded[: len(array)] = array[:rows]
    return padded


def _stack(lessons: Sequence[Lesson]) -> dict[str, NDArray[np.float16]]:
    rows = {"msd": 9, "msd_features": 9, "mtt": 9, "mtt_features": 9, "audioset": 29}
    stacked = {}
    for field in fields(Lesson):
        arrays = [getattr(lesson, field.name) for lesson in lessons]
        stacked[field.name] = np.stack(
            [_pad(a, rows[field.name]) for a in arrays] if field.name in rows else arrays
        )
    return stacked


def _decode(clip: Clip) -> NDArray[np.float32] | None:
    try:
        samples, _ = read_audio(clip.path, min_s=1.0, duration_s=float(CLIP_S))
    except AudioError as error:
        print(f"{clip.path}: left out: {error}")  # noqa: T201
        return None
    return samples[:CLIP]


def _shard(clips: Sequence[Clip], path: Path, teachers: Teachers | None) -> None:
    decoded = [(clip.id, samples) for clip in clips if (samples := _decode(clip)) is not None]
    audio = np.zeros((len(decoded), CLIP), np.int16)
    for row, (_, samples) in zip(audio, decoded, strict=True):
        row[: len(samples)] = np.clip(samples, -1.0, 1.0) * PCM_SCALE
    lessons = _stack([teachers(torch.from_numpy(samples)) for _, samples in decoded]) if teachers else {}
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.array([clip_id for clip_id, _ in decoded]),
        "audio": audio,
        "lengths": np.array([len(samples) for _, samples in decoded]),
        **{f"lesson_{name}": array for name, array in lessons.items()},
    }
    partial = path.with_suffix(".part.npz")
    np.savez(partial, allow_pickle=False, **arrays)
    partial.rename(path)


def build(manifest: Path, out: Path, tags: Sequence[str], teachers: Teachers | None) -> None:
    """Decode every clip into `out`, with lessons where there are teachers; shards there are kept."""
    out.mkdir(parents=True, exist_ok=True)
    clips = read_manifest(manifest, tags)
    for start in track(
        range(0, len(clips), SHARD),
        description=f"caching {manifest.parent.name}",
        console=Console(stderr=True),
    ):
        path = out / f"shard-{start // SHARD:04}.npz"
        if not path.exists():
            _shard(clips[start : start + SHARD], path, teachers)


def load(folder: Path) -> Cache:
    """Read all shards of `build` into memory (0.93 MB a clip)."""
    shards = [_read(path) for path in sorted(folder.glob("shard-*.npz")) if ".part" not in path.name]
    joined = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    lessons = {
        name.removeprefix("lesson_"): array for name, array in joined.items() if name.startswith("lesson_")
    }
    return Cache(joined["ids"], joined["audio"], joined["lengths"], lessons)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as archive:
        return dict(archive)


def main() -> None:
    """Run `build` from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tags", default="vocal,dance,soundtrack,pop")
    parser.add_argument("--teachers", type=Path, help="folder of the public taggers; none: decode only")
    parser.add_argument("--musicnn", type=Path, help="folder of the unpacked musicnn wheel")
    a = parser.parse_args()
    build(a.manifest, a.out, a.tags.split(","), Teachers(a.teachers, a.musicnn) if a.teachers else None)


if __name__ == "__main__":
    main()
