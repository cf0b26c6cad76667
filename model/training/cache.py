"""Log-mels and lessons of every clip on disk, made once: training never decodes and never asks a teacher.

A clip is there several times: as it is, and distorted as uploads are (`augmentation.distort`), so that dear
distortions such as a codec's round trip are paid for once and not in every run.

`build` can be stopped and started again: what is there is kept, in shards of a hundred clips. A shard whose
rows of the manifest have changed, or whose clips have, by size or time, is made anew.
"""

import fcntl
import hashlib
import multiprocessing
import os
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, fields
from multiprocessing import connection
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from loky import cpu_count
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from model.audio import AudioError, read_audio
from model.frontend import HOP, N_MELS, SAMPLE_RATE_HZ, LogMel
from model.training.augmentation import distort
from model.training.corpus import Clip, read_manifest
from model.training.teachers import SECONDS_PER_ROW, Lesson, TeacherFolders, Teachers

SHARD = 100
CLIP_S = 29
CLIP = CLIP_S * SAMPLE_RATE_HZ
CLIP_FRAMES = 1 + CLIP // HOP
OF_SHARD = ("rows", "left_out")
"""What a shard knows of itself, beside what it knows of its clips."""
LESSON = "lesson_"
"""Before the names of a shard's lessons."""
VARIANTS = 3
"""The clip as it is, and distorted ones."""


@dataclass(frozen=True, slots=True)
class Cache:
    """What `load` gives; the log-mels stay on disk until they are looked at.

    Attributes:
        ids: of the clips [N].
        frames: how many frames of the log-mel a clip fills [N]; zeros follow.
        mels: a float16 array a shard [n, VARIANTS, 96, CLIP_FRAMES], in the order of `ids`.
        lessons: per field of `Lesson` a float16 array [N, ...].
    """

    ids: NDArray[np.str_]
    frames: NDArray[np.int64]
    mels: list[NDArray[np.float16]]
    lessons: dict[str, NDArray[np.float16]]


def _pad(array: NDArray[np.float16], rows: int) -> NDArray[np.float16]:
    """[n, K] -> [rows, K], NaN behind what there is."""
    padded = np.full((rows, array.shape[1]), np.nan, np.float16)
    padded[: len(array)] = array[:rows]
    return padded


def _stack(lessons: Sequence[Lesson]) -> dict[str, NDArray[np.float16]]:
    rows = {name: int(CLIP_S / seconds) for name, seconds in SECONDS_PER_ROW.items()}
    stacked = {}
    for field in fields(Lesson):
        arrays = [getattr(lesson, field.name) for lesson in lessons]
        if arrays[0] is None:
            continue
        stacked[field.name] = np.stack(
            [_pad(a, rows[field.name]) for a in arrays] if field.name in rows else arrays
        )
    return stacked


def _decode(clip: Clip) -> NDArray[np.float32] | str:
    """The samples, or why there are none."""
    try:
        samples, _ = read_audio(clip.path, min_s=1.0, duration_s=float(CLIP_S))
    except (AudioError, OSError, ValueError) as error:
        return f"{clip.path}: left out: {error}"
    return samples[:CLIP]


_teachers: Teachers | None = None
"""Of this process: loaded once, not for every shard."""


def _hire(folders: TeacherFolders | None) -> None:
    global _teachers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _teachers = Teachers(folders) if folders else None


def _end_with_parent() -> None:
    """A parent that is killed tells its workers nothing: they would wait for work for ever."""
    if (parent := multiprocessing.parent_process()) is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch on one thread, as in the processes of `build`, so that log-mels are the same bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def variants(clip_id: str, samples: NDArray[np.float32]) -> NDArray[np.float16]:
    """[T] -> [VARIANTS, 96, CLIP_FRAMES]: the clip, then distorted ones, the same for the same id."""
    rng = np.random.default_rng(zlib.crc32(clip_id.encode()))
    heard = [samples, *(distort(samples, rng) for _ in range(VARIANTS - 1))]
    mels = LogMel()(torch.from_numpy(np.stack(heard))).numpy().astype(np.float16)
    return np.pad(mels, ((0, 0), (0, 0), (0, CLIP_FRAMES - mels.shape[2])))


def folder_of(manifest: Path, cache: Path) -> Path:
    """Where in a cache, which many manifests may share, this one's clips are."""
    path = manifest.resolve()
    return cache / f"{path.parent.name}-{path.stem}-{zlib.crc32(str(path).encode()):08x}"


def _rows_of(clips: Sequence[Clip]) -> str:
    """By what a shard knows that it is of these clips: ids and files, and the files' sizes and times."""
    lines = "".join(f"{clip.id}\0{clip.path.resolve()}\0{_state_of(clip.path)}\0" for clip in clips)
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _state_of(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except (OSError, ValueError):  # there is no such file, or there can be none
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _is_of(path: Path, clips: Sequence[Clip], folders: TeacherFolders | None) -> bool:
    """Whether a shard is there, whole, of these clips, and taught by these."""
    try:
        with path.open("rb") as file, np.load(file) as archive:
            if str(archive.get("rows")) != _rows_of(clips):
                return False
            ids = archive["ids"]
            mels = np.load(path.with_name(mels_name(path)), mmap_mode="r")
            wanted = {f"{LESSON}{name}" for name in lessons_of(folders)}
            is_taught = not len(ids) or wanted <= set(archive.files)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # damaged, or there is none
        return False
    return len(mels) == len(ids) and is_taught


def lessons_of(folders: TeacherFolders | None) -> list[str]:
    """Which fields of `Lesson` these teachers fill, in their order."""
    names = [field.name for field in fields(Lesson)] if folders is not None else []
    return [name for name in names if name != "spleeter" or (folders and folders.spleeter)]


def _shard(clips: Sequence[Clip], path: Path) -> None:
    path.unlink(missing_ok=True)
    heard = [(clip.id, _decode(clip)) for clip in clips]
    decoded = [(name, samples) for name, samples in heard if not isinstance(samples, str)]
    _save(
        path.with_name(mels_name(path)),
        np.stack([variants(*clip) for clip in decoded])
        if decoded
        else np.zeros((0, VARIANTS, N_MELS, CLIP_FRAMES), np.float16),
    )
    taught = [_teachers(torch.from_numpy(samples)) for _, samples in decoded] if _teachers else []
    lessons = _stack(taught) if taught else {}
    partial = path.with_suffix(".part.npz")
    np.savez(
        partial,
        allow_pickle=False,
        rows=np.array(_rows_of(clips)),
        ids=np.array([clip_id for clip_id, _ in decoded], np.str_),
        left_out=np.array([reason for _, reason in heard if isinstance(reason, str)], np.str_),
        frames=np.array([1 + len(samples) // HOP for _, samples in decoded], np.int64),
        **{f"{LESSON}{name}": array for name, array in lessons.items()},
    )
    partial.rename(path)


def mels_name(shard: Path) -> str:
    """The name of the file of log-mels beside a shard."""
    return f"{shard.stem}.mels.npy"


def _save(path: Path, array: NDArray[Any]) -> None:
    partial = path.with_suffix(".part")
    with partial.open("wb") as handle:
        np.save(handle, array)
    partial.rename(path)


def build(manifest: Path, out: Path, tags: Sequence[str], folders: TeacherFolders | None) -> None:
    """Decode every clip into `out`, with lessons where there are teachers; shards there are kept.

    Which clips cannot be read, and are left out, is told each time, also of shards that are kept.

    Args:
        manifest: whose clips.
        out: folder of the shards.
        tags: columns that the manifest must have.
        folders: of the teachers; none: decode only.

    Raises:
        ChildProcessError: one of the processes that decode was killed.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of runs that share a cache, one makes it, and the others wait
        _build(manifest, out, tags, folders)


def _build(manifest: Path, out: Path, tags: Sequence[str], folders: TeacherFolders | None) -> None:
    clips = read_manifest(manifest, tags)
    shards = {out / f"shard-{i // SHARD:04}.npz": clips[i : i + SHARD] for i in range(0, len(clips), SHARD)}
    for surplus in set(out.glob("shard-*.npz")) - set(shards):
        surplus.with_name(mels_name(surplus)).unlink(missing_ok=True)
        surplus.unlink()
    missing = [(chosen, path) for path, chosen in shards.items() if not _is_of(path, chosen, folders)]
    if len(missing) == 1 and folders is None:  # one process more would only take its time to start
        with _one_thread():
            _shard(*missing.pop())
    # Not forked: a forked child may wait for a lock that a thread of PyTorch's held in the parent.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cpu_count(), context, initializer=_hire, initargs=(folders,)) as pool:
        made = [pool.submit(_shard, *shard) for shard in missing]
        description = f"caching {manifest.parent.name}"
        console = Console(stderr=True)
        try:
            for future in track(
                as_completed(made), description, len(made), console=console, disable=not made
            ):
                future.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process that caches clips ended, most likely for want of memory; the same command goes on"
            ) from error
        except BaseException:  # Ctrl-C: begin no other shard
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for path in shards:
        with np.load(path) as archive:
            for reason in archive["left_out"]:
                print(reason, file=sys.stderr)  # noqa: T201


def load(folder: Path) -> Cache:
    """Read all shards of `build`, but for the log-mels, which are mapped (1 MB a clip)."""
    paths = sorted(path for path in folder.glob("shard-*.npz") if ".part" not in path.name)
    shards = [shard for shard in map(_read, paths) if len(shard["ids"])] or [_read(paths[0])]
    common = [name for name in shards[0] if all(name in shard for shard in shards)]
    joined = {name: np.concatenate([shard[name] for shard in shards]) for name in common}
    lessons = {name.removeprefix(LESSON): array for name, array in joined.items() if name.startswith(LESSON)}
    mels = [np.load(path.with_name(mels_name(path)), mmap_mode="r") for path in paths]
    return Cache(joined["ids"], joined["frames"], mels, lessons)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as archive:
        return {name: array for name, array in archive.items() if name not in OF_SHARD}
