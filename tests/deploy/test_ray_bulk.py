"""Tagging on Ray Data: real clips, a bad one, workers and whole runs that are killed."""

import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from model.tagger import Tagger
from tests.app.service import tune
from tests.deploy.processes import below, kill_tree

pytest.importorskip("ray", reason="needs the extra `ray`")

pytestmark = pytest.mark.ray

PATIENCE_S = 600.0
SONGS = 12


@pytest.fixture
def manifest(tmp_path: Path, clips: dict[str, Path]) -> Path:
    """Songs, one of them given twice, a bad clip, and one that is not there; paths relative and absolute."""
    songs = [tmp_path / f"tune-{number}.wav" for number in range(SONGS)]
    for number, song in enumerate(songs):
        song.write_bytes(tune(3, 110.0 + 20 * number))
    (tmp_path / "bad.mp3").write_bytes(b"no music")
    files = [clips["sung_pop"], *(song.name for song in songs), songs[0], "bad.mp3", "missing.mp3"]
    path = tmp_path / "manifest.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "file"], *enumerate(files)])
    return path


@contextmanager
def bulk(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, on one worker, a file a part."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch:
        options = ["--workers", "1", "--part-files", "1", "--device", "cpu"]
        command = [sys.executable, "-m", "deploy.ray.bulk", *map(str, arguments), *options]
        environment = os.environ | {"RAY_TMPDIR": scratch}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                kill_tree(process.pid)


def finish(process: subprocess.Popen[str]) -> str:
    told = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 0, told
    return told


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row for part in parts_of(out) for row in pyarrow.parquet.read_table(part).to_pylist()]


def parts_of(out: Path) -> list[Path]:
    return sorted(out.glob("part-*.parquet"))


def wait_for(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.01)


def check_complete(out: Path, manifest: Path) -> None:
    rows = {row["path"]: row for row in rows_of(out)}
    assert len(rows) == len(rows_of(out)) == SONGS + 3
    errors = {Path(path).name: row["error"] for path, row in rows.items() if row["error"]}
    assert errors == {"bad.mp3": "not-audio", "missing.mp3": "unreadable"}
    song = manifest.parent / "tune-3.wav"
    expected = Tagger.load(device="cpu").tag(song)
    assert {tag: rows[str(song)][tag] for tag in expected.scores} == pytest.approx(expected.scores, abs=1e-6)
    assert rows[str(song)]["size_bytes"] == song.stat().st_size


def test_a_killed_worker_is_replaced_and_a_killed_run_goes_on(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "tags"
    with bulk(manifest, out) as process:
        wait_for(lambda: len(parts_of(out)) >= 2)
        os.kill(process.pid, signal.SIGKILL)
    first = {part: part.stat().st_mtime_ns for part in parts_of(out)}
    assert 0 < len(rows_of(out)) < SONGS + 3  # it was killed on the way, and what is there is whole

    with bulk(manifest, out) as process:
        wait_for(lambda: len(parts_of(out)) >= len(first) + 2)
        [worker] = [pid for pid, title in below(process.pid).items() if "MapWorker" in title]
        os.kill(worker, signal.SIGKILL)
        told = finish(process)

    assert f"{SONGS + 3} files, " in told
    assert {part: part.stat().st_mtime_ns for part in first} == first
    check_complete(out, manifest)


def test_a_file_that_could_not_be_read_is_tried_again(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "tags"
    with bulk(manifest, out) as process:
        finish(process)
    check_complete(out, manifest)

    (manifest.parent / "missing.mp3").write_bytes(tune(4))
    with bulk(manifest, out) as process:
        told = finish(process)

    assert f"{SONGS + 3} files, {SONGS + 2} of them done before" in told
    assert {row["path"]: row["error"] for row in rows_of(out)}[str(manifest.parent / "missing.mp3")] is None
    assert len(rows_of(out)) == SONGS + 3


def test_a_manifest_without_the_column_is_refused(manifest: Path, tmp_path: Path) -> None:
    with bulk(manifest, tmp_path / "tags", "--column", "song") as process:
        told = process.communicate(timeout=PATIENCE_S)[1]

    assert process.returncode == 2
    assert "has no column 'song'" in told
