"""What a worker of deploy/ray/bulk.py does with one part, and what a later run makes of it; without Ray."""

import io
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet
import pytest

from app.output import Origin, origin_of
from deploy.ray.bulk import Job, Worker, find_files, open_file, read_done
from model.bundle import load_bundle
from model.tagger import Tagger
from tests.app.service import tune

ORIGIN = origin_of(load_bundle()[0].sha256, 0.0, None)


def tag(files: list[str], out: str) -> dict[str, list[int]]:
    return Worker(Job(out, None, "cpu", "auto", 1))({"path": [os.fsencode(file) for file in files]})


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    [part] = out.glob("part-*.parquet")
    return {row["path"]: row for row in pyarrow.parquet.read_table(part).to_pylist()}


@pytest.fixture
def files(tmp_path: Path, clips: dict[str, Path]) -> list[str]:
    """A song, a bad clip, and one that is not there."""
    (tmp_path / "bad.mp3").write_bytes(b"no music")
    return [str(clips["sung_pop"]), str(tmp_path / "bad.mp3"), str(tmp_path / "missing.mp3")]


def test_a_bad_clip_is_a_row_with_its_problem(files: list[str], tmp_path: Path) -> None:
    expected = Tagger.load(device="cpu").tag(files[0]).scores

    assert tag(files, str(tmp_path)) == {"files": [3], "failed": [2]}

    rows = rows_of(tmp_path)
    assert [rows[file]["error"] for file in files] == [None, "not-audio", "unreadable"]
    assert {Origin(row["model"], row["part"]) for row in rows.values()} == {ORIGIN}
    assert {name: rows[files[0]][name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_a_part_that_is_computed_twice_is_there_once(files: list[str], tmp_path: Path) -> None:
    tag(files, str(tmp_path))
    tag(files, str(tmp_path))

    assert len(rows_of(tmp_path)) == 3


def test_what_could_not_be_read_is_left_for_the_next_run(files: list[str], tmp_path: Path) -> None:
    tag(files, str(tmp_path))

    assert read_done(str(tmp_path), ORIGIN) == set(files[:2])
    assert set(rows_of(tmp_path)) == set(files[:2])  # so that it will have one row, not two


def test_scores_of_other_weights_are_never_gone_on_with(files: list[str], tmp_path: Path) -> None:
    tag(files, str(tmp_path))

    with pytest.raises(ValueError, match="other weights: name another folder"):
        read_done(str(tmp_path), Origin("0123456789ab", "whole"))


def test_parts_that_do_not_tell_their_weights_are_never_gone_on_with(
    files: list[str], tmp_path: Path
) -> None:
    tag(files, str(tmp_path))
    [part] = tmp_path.glob("part-*.parquet")
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(part).drop_columns("model"), part)

    with pytest.raises(ValueError, match="other weights"):
        read_done(str(tmp_path), ORIGIN)


def test_a_bucket_is_read_and_written_without_a_local_file(clips: dict[str, Path]) -> None:
    bucket = fsspec.filesystem("memory")
    bucket.pipe_file("/music/song.opus", clips["sung_pop"].read_bytes())
    bucket.pipe_file("/music/.hidden/song.opus", b"")
    bucket.pipe_file("/music/cover.jpg", b"\xff\xd8\xff")

    files = find_files("memory://music", "file")
    told = tag(files, "memory://tags")

    assert files == ["memory:///music/song.opus"]
    assert told == {"files": [1], "failed": [0]}
    assert read_done("memory://tags", ORIGIN) == set(files)
    with open_file(files[0]) as (stamp, _):
        assert stamp.size_bytes == clips["sung_pop"].stat().st_size


@pytest.mark.parametrize("folder", [".hidden/music", "[live] *?"])
def test_folders_may_have_any_name(tmp_path: Path, folder: str) -> None:
    music = tmp_path / folder
    music.mkdir(parents=True)
    (music / "song.wav").write_bytes(tune(2))
    (music / "gone.wav").symlink_to("nowhere")
    os.mkfifo(music / "pipe.wav")

    found = find_files(str(music), "file")
    tag(found, str(music))

    assert found == [str(music / "song.wav")]
    assert read_done(str(music), ORIGIN) == set(found)


def test_a_file_of_a_web_server_that_tells_no_time_is_read(clips: dict[str, Path]) -> None:
    folder = clips["sung_pop"].parent
    serve = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with open_file(f"http://127.0.0.1:{server.server_port}/{clips['sung_pop'].name}") as (
                stamp,
                file,
            ):
                assert isinstance(file, io.IOBase)
                content = file.read()
        finally:
            server.shutdown()
            thread.join()

    assert content == clips["sung_pop"].read_bytes()
    assert stamp.size_bytes == len(content)


def test_a_manifest_names_files_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "song.wav").write_bytes(tune(2))
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("id,file\n1,song.wav\n2,/music/other.wav\n3,s3://bucket/third.wav\n4,song.wav\n")

    found = find_files(str(manifest), "file")

    assert found == [str(tmp_path / "song.wav"), "/music/other.wav", "s3://bucket/third.wav"]


def test_a_manifest_without_the_column_is_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("id,song\n1,song.wav\n")

    with pytest.raises(ValueError, match="no column 'file'"):
        find_files(str(manifest), "file")
