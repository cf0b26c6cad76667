"""`music-tagger tag` over a library: interrupted, gone on with, watched, led on to playlists and metadata."""

import csv
import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import watchfiles
from numpy.typing import NDArray

from app.files import arrivals, files_below, key_of, stamp_of, unwritable, walk, write_whole
from app.library import Library, Playlist
from app.output import Failed, Format, Outcome, Writer, origin_of, read_back, sparkline
from app.prefetch import Listening
from model.bundle import load_bundle
from model.tagger import Tagger
from model.tags import TAGS
from tests.app.service import PATIENCE_S, run, run_tag, tune
from tests.encoding import decode, encode

APPLY = ("--write-tags", "--apply")
FORMATS = {"mp3": "mp3", "flac": "flac", "ogg-opus": "opus", "m4a-index-first": "m4a"}


@pytest.fixture
def music(clips: dict[str, Path], tmp_path: Path) -> Path:
    """Two seconds of each clip, each in another format, and a cover beside them."""
    folder = tmp_path / "music"
    folder.mkdir()
    for (name, clip), (form, ending) in zip(clips.items(), FORMATS.items(), strict=True):
        (folder / f"{name}.{ending}").write_bytes(encode(decode(clip)[:, : 2 * 48_000], 48_000, form))
    (folder / "cover.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def rows_of(out: Path) -> list[dict[str, object]]:
    whole, _, _ = out.read_text().rpartition("\n") if out.exists() else ("", "", "")  # one may be on its way
    return [json.loads(line) for line in whole.splitlines()]


def paths_of(out: Path) -> list[str]:
    return [Path(str(row["path"])).name for row in rows_of(out)]


@contextmanager
def command(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[bytes], bytearray]]:
    """The command in a process of its own, standard error a terminal; and what it wrote there."""
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        with suppress(OSError):  # the other side was closed
            while data := os.read(ours, 1 << 16):
                shown.extend(data)

    line = [sys.executable, "-m", "app.cli", "tag", "--device", "cpu", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm"}
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield process, shown
            process.wait(2 * PATIENCE_S)
        finally:
            process.kill()
    reader.join()
    os.close(ours)


class Noting(Writer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        self.rows.append(outcome)

    def close(self) -> None:
        pass


def library_of(tagger: Tagger, playlist: Playlist | None = None) -> tuple[Library, list[Outcome]]:
    writer = Noting()
    how = Listening(tagger.bundle.thresholds)
    return Library(tagger, how, writer, lambda _: None, earlier={}, playlist=playlist), writer.rows


def wait_for(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + 2 * PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


@pytest.fixture
def hangups_end() -> Iterator[None]:
    """A hangup ends what is started here, also where the tests run under `nohup`."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.mark.usefixtures("hangups_end")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_shows_how_far_it_is_stops_in_order_and_goes_on(stop: signal.Signals, tmp_path: Path) -> None:
    music, out = tmp_path / "music", tmp_path / "library.jsonl"
    music.mkdir()
    for number in range(300):
        (music / f"{number:03}.wav").write_bytes(tune(2))

    with command(music, "--out", out) as (process, shown):
        wait_for(lambda: len(rows_of(out)) >= 60)
        process.send_signal(stop)

    done = len(rows_of(out))
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode())
    assert process.returncode == 130
    assert 60 <= done < 300
    assert re.search(r"Tagging .*\d+/300.* \d+\.\d files/s.* \d:\d\d:\d\d", text)
    assert f"Stopped. What was tagged is in {out}: the same command goes on from there." in re.sub(
        r"\r?\n", " ", text
    ).replace("  ", " ")
    assert "Traceback" not in text

    result = run_tag(music, "--out", out)

    assert result.exit_code == 0
    assert paths_of(out) == [f"{number:03}.wav" for number in range(300)]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_only_what_is_new_or_changed_is_tagged_again(music: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / f"library.{form}"
    whole = [run_tag(music, "--out", out), out.read_text()][1]
    assert isinstance(whole, str)

    run_tag(music, "--out", out)
    assert out.read_text() == whole

    (music / "later.wav").write_bytes(tune(2))
    os.utime(music / "speech.opus" if (music / "speech.opus").exists() else music / "speech.m4a", (1, 1))
    run_tag(music, "--out", out)
    added = out.read_text().removeprefix(whole).splitlines()
    assert [name for name in ("later.wav", "speech") if name in "".join(added)] == ["later.wav", "speech"]
    assert len(added) == 2


def test_a_line_that_was_cut_off_is_written_anew(music: Path, tmp_path: Path) -> None:
    out = tmp_path / "library.jsonl"
    run_tag(music, "--out", out)
    whole = out.read_bytes()
    out.write_bytes(whole[:-30])

    run_tag(music, "--out", out)

    assert out.read_bytes() == whole


@pytest.mark.parametrize("form", [Format.JSONL, Format.CSV])
@pytest.mark.parametrize("is_song", [True, False])
def test_a_file_cut_off_anywhere_is_gone_on_with(tmp_path: Path, form: Format, is_song: bool) -> None:
    clip, out = tmp_path / 'a "quoted" \\ näme.wav', tmp_path / f"library.{form}"
    clip.write_bytes(tune(2) if is_song else b"no music" * 99)
    run_tag(clip, "--out", out)
    whole, origin = out.read_bytes(), origin_of(load_bundle()[0].sha256, 0, None)

    for end in range(len(whole)):
        out.write_bytes(whole[:end])
        earlier = read_back(form, out, TAGS, dict.fromkeys(TAGS, 0.5), origin, windows=False)

        assert earlier == {}
        assert out.read_bytes() == whole[: whole.rfind(b"\n", 0, end) + 1]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("name", ["song.wav", "bad.wav"])
def test_scores_of_another_part_are_not_taken_for_those_asked_for(
    tmp_path: Path, form: str, name: str
) -> None:
    clip, out = tmp_path / name, tmp_path / f"library.{form}"
    clip.write_bytes(tune(6) if name == "song.wav" else b"no music" * 99)
    former = run_tag(clip, "--out", out, "--start-s", "2", "--duration-s", "1.5")
    text = out.read_text()

    for others in ([], ["--start-s", "2"], ["--duration-s", "1.5"]):
        result = run_tag(clip, "--out", out, *others)
        assert result.exit_code == 2
        assert "or of another part of each file: name a new file with --out" in result.stderr

    assert run_tag(clip, "--out", out, "--start-s", "2", "--duration-s", "1.5").exit_code == former.exit_code
    assert out.read_text() == text
    assert "from 2 s for 1.5 s" in text


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_scores_of_other_weights_are_not_taken_for_those_asked_for(tmp_path: Path, form: str) -> None:
    clip, out = tmp_path / "song.wav", tmp_path / f"library.{form}"
    clip.write_bytes(tune(2))
    run_tag(clip, "--out", out)
    model = load_bundle()[0].sha256[:12]
    assert model in out.read_text()
    text = out.read_text().replace(model, "0123456789ab")
    out.write_text(text)

    result = run_tag(clip, "--out", out)

    assert result.exit_code == 2
    assert "holds scores of other weights" in result.stderr
    assert out.read_text() == text


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("other.jsonl", '{"a": 1}\n', "line 1: not written by music-tagger"),
        ("other.csv", "a,b\n", "has other columns than path, vocal"),
        (
            "other.jsonl",
            '{"path": "a", "scores": {"rock": 1}, "size_bytes": 1, "mtime_s": 1}\n',
            "scores of other weights",
        ),
        ("conf.jsonl", '{"volume": 7}', "last line is not of music-tagger"),
        ("conf.jsonl", '{"path": "/music", "volume": 7}', "last line is not of music-tagger"),
        ("other.csv", "name,size\n1,2", "has other columns than path, vocal"),
        ("other.csv", "name,size", "last line is not of music-tagger"),
    ],
)
def test_a_file_of_another_kind_is_refused_and_left_alone(
    music: Path, tmp_path: Path, name: str, text: str, told: str
) -> None:
    out = tmp_path / name
    out.write_text(text)

    result = run_tag(music, "--out", out)

    assert result.exit_code == 2
    assert told in result.stderr
    assert out.read_text() == text


def test_every_format_tells_the_same(music: Path, tmp_path: Path) -> None:
    (music / "bad.mp3").write_bytes(b"no music" * 99)
    for ending in ("jsonl", "json", "csv", "parquet", "txt"):
        assert run_tag(music, "--out", tmp_path / f"out.{ending}").exit_code == 1

    lines = rows_of(tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.json").read_text()) == lines
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    with (tmp_path / "out.csv").open(newline="") as file:
        sheet = list(csv.DictReader(file))
    for line, row, cells in zip(lines, table, sheet, strict=True):
        assert line["path"] == row["path"] == cells["path"]
        assert line["mtime_s"] == row["mtime_s"] == float(cells["mtime_s"])
        if "error" in line:
            assert [row["error"], cells["error"], row["vocal"]] == ["not-audio", "not-audio", None]
        else:
            assert line["scores"] == {name: row[name] for name in TAGS}
            assert [f"{row[name]:.6f}" for name in TAGS] == [cells[name] for name in TAGS]
            assert line["present"] == row["present"]
            assert "; ".join(row["present"]) == cells["present"]
    assert "club_track.mp3" in (tmp_path / "out.txt").read_text()


def test_the_playlist_holds_what_the_expression_chooses_also_of_what_a_former_run_found(
    music: Path, tmp_path: Path
) -> None:
    out, playlist = tmp_path / "library.csv", tmp_path / "fav.m3u8"
    run_tag(music, "--out", out)
    with out.open(newline="") as file:
        chosen = [row["path"] for row in csv.DictReader(file) if "dance" in row["present"].split("; ")]

    result = run_tag(music, "--out", out, "--m3u", playlist, "--where", "dance and not soundtrack > 0.999")

    assert result.exit_code == 0
    names = [line for line in playlist.read_text().splitlines() if not line.startswith("#")]
    assert names == [Path(path).relative_to(tmp_path).as_posix() for path in chosen]
    assert names == ["music/club_track.mp3"]


def test_metadata_is_shown_then_written_then_brought_back(music: Path, tmp_path: Path) -> None:
    out, notes = tmp_path / "library.jsonl", tmp_path / "undo.jsonl"
    before = {path: path.read_bytes() for path in music.iterdir()}
    shown = run_tag(music, "--out", out, "--write-tags")

    assert shown.exit_code == 0
    assert shown.stderr.count("MUSIC_TAGGER_DANCE=") == 4
    assert "Nothing was written; --write-tags --apply would change 4 files." in shown.stderr
    assert {path: path.read_bytes() for path in music.iterdir()} == before

    written = run_tag(music, "--out", out, "--write-tags", "--apply", "--undo-file", notes)
    assert f"Changed: 4 files; `music-tagger undo {notes}`" in written.stderr
    rows = rows_of(out)
    assert len(rows) == 8  # the files have a new size and time
    run_tag(music, "--out", out, "--write-tags", "--apply", "--undo-file", notes)
    assert rows_of(out) == rows  # and are known by these
    assert len(notes.read_text().splitlines()) == 4

    undone = run("undo", notes)
    assert [undone.exit_code, undone.stderr] == [0, "Restored: 4 files\n"]
    assert run_tag(music, "--write-tags").stderr.count("MUSIC_TAGGER_DANCE=") == 4


def test_what_could_not_be_written_is_not_told_as_changed(music: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in music.iterdir()}
    (tmp_path / "full.jsonl").symlink_to("/dev/full")

    result = run_tag(music, "--write-tags", "--apply", "--undo-file", tmp_path / "full.jsonl")

    assert result.exit_code == 1
    assert result.stderr.count("its metadata cannot be changed") == 4
    assert "Changed: " not in result.stderr
    assert {path: path.read_bytes() for path in music.iterdir()} == before


def test_the_way_back_can_be_typed_as_it_is_told(tmp_path: Path) -> None:
    clip, notes = tmp_path / "song.wav", tmp_path / "my notes.jsonl"
    clip.write_bytes(tune(2))

    result = run_tag(clip, "--write-tags", "--apply", "--undo-file", notes)

    assert f"`music-tagger undo '{notes}'` brings" in result.stderr


def test_timeline_is_drawn_a_block_a_window(tmp_path: Path) -> None:
    clip = tmp_path / "long.wav"
    clip.write_bytes(tune(17))

    rows = run_tag(clip, "--timeline").stdout.splitlines()[1:]

    assert rows[0].split()[1] == "vocal"
    assert [len(re.sub(r"[^▁-█]", "", row)) for row in rows if row.strip()] == [3, 3, 3, 3]


def test_blocks_grow_with_the_score() -> None:
    assert sparkline(np.linspace(0, 1, 9)) == "▁▂▃▄▅▆▇██"


def test_watch_tags_what_appears_until_ctrl_c(music: Path, tmp_path: Path, song: NDArray[np.float32]) -> None:
    out, playlist = tmp_path / "library.jsonl", tmp_path / "all.m3u8"
    late = encode(song[:, : 4 * 48_000], 48_000, "flac")

    with command(music, "--out", out, "--watch", "--m3u", playlist) as (process, shown):
        wait_for(lambda: b"Waiting for new files" in shown)
        (music / "new album").mkdir()
        with (music / "new album" / "late.flac").open("wb") as file:  # a copy that takes its time
            for part in (late[: len(late) // 2], late[len(late) // 2 :]):
                file.write(part)
                file.flush()
                time.sleep(1.0)
        wait_for(lambda: "late.flac" in playlist.read_text())
        process.send_signal(signal.SIGINT)

    assert process.returncode == 0
    assert len(rows_of(out)) == 5
    last = rows_of(out)[-1]
    assert isinstance(last["audio"], dict)
    assert last["audio"]["duration_s"] == pytest.approx(4, abs=0.01)
    assert b"Traceback" not in shown


def test_a_file_that_is_mended_while_it_is_watched_is_no_failure(tmp_path: Path) -> None:
    out, broken = tmp_path / "library.jsonl", tmp_path / "song.wav"
    broken.write_bytes(tune(2)[:20])

    with command(tmp_path, "--out", out, "--watch") as (process, shown):
        wait_for(lambda: b"Waiting for new files" in shown)
        broken.write_bytes(tune(2))
        wait_for(lambda: any("scores" in row for row in rows_of(out)))
        time.sleep(1.0)  # the row is written a moment before the file is behind it
        process.send_signal(signal.SIGINT)

    assert b"song.wav: " in shown
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "scores.xls"], "name the format with --format"),
        (["--format", "parquet"], "name its file with --out"),
        (["--timeline", "--format", "json"], "drawn in the table"),
        (["--where", "pop"], "name the playlist with --m3u"),
        (["--m3u", "a.m3u8", "--where", "pop and rock"], "no tag 'rock'"),
        (["--m3u", "a.m3u8", "--where", " "], "--where is empty"),
        (["--m3u", "a.m3u8", "--where", ""], "an argument is empty"),
        ([""], "an argument is empty"),
        (["--m3u", "song.opus"], "ends in .m3u or .m3u8"),
        (["--write-tags", "--apply", "--undo-file", "song.opus"], "end in .jsonl"),
        (["--out", "nowhere/a.jsonl"], "no folder nowhere"),
        (["--m3u", "nowhere/a.m3u"], "no folder nowhere"),
        (["--apply"], "--write-tags --apply"),
        (["--watch"], "needs a folder"),
        (["--watch", "--format", "json"], "file by file"),
        (["--windows", "--format", "csv", "--m3u", "a.m3u8"], "no score of a whole clip"),
    ],
)
def test_what_cannot_be_done_is_refused(clips: dict[str, Path], arguments: list[str], told: str) -> None:
    result = run_tag(clips["speech"], *arguments)

    assert result.exit_code == 2
    assert told in result.stderr


@pytest.fixture
def crowded(music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with music and with what nobody wants to lose."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.json").symlink_to(next(music.glob("*.flac")))
    (tmp_path / "notes.doc").write_text("a diary")
    (tmp_path / "diary.jsonl").write_text('{"day": 1}\n')
    for name in ("former.jsonl", "former.csv"):
        (tmp_path / name).write_text("the scores of a week")
    (tmp_path / "torn.jsonl").write_text('{"path": "cut o')
    (tmp_path / "folder.json").mkdir()
    return music


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "SONG", "--format", "json"], "by its ending no json"),
        (["--out", "SONG", "--format", "table"], "by its ending no table"),
        (["--out", "SONG", "--format", "jsonl"], "line 1: not written by music-tagger"),
        (["--out", "former.jsonl", "--format", "table"], "by its ending no table"),
        (["--out", "former.csv", "--format", "parquet"], "by its ending no parquet"),
        (["--out", "link.json"], "one of the files to be tagged"),
        (["--out", "notes.doc", "--format", "json"], "by its ending no json"),
        (["--out", "folder.json"], "cannot be written: Is a directory"),
        (["--out", "a" * 300 + ".json"], "cannot be written: File name too long"),
        (["--out", "all.m3u8", "--format", "json", "--m3u", "all.m3u8"], "a file of its own"),
        (["--out", "a.jsonl", *APPLY, "--undo-file", "music/../a.jsonl"], "a file of its own"),
        ([*APPLY, "--undo-file", "diary.jsonl"], "diary.jsonl is no undo file"),
        ([*APPLY, "--undo-file", "torn.jsonl"], "the last line of torn.jsonl was cut off"),
    ],
)
def test_nothing_is_overwritten_that_is_not_ours(crowded: Path, arguments: list[str], told: str) -> None:
    files = [path for path in crowded.parent.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    song = str(next(crowded.glob("*.flac")))

    result = run_tag(crowded, *(song if argument == "SONG" else argument for argument in arguments))

    assert result.exit_code == 2
    assert told in result.stderr
    assert {path: path.read_bytes() for path in crowded.parent.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("path", "is_replaced", "reason"),
    [
        ("closed/new.json", True, "Permission denied"),
        ("closed/new.jsonl", False, "Permission denied"),
        ("closed/old.jsonl", True, "Permission denied"),
        ("closed/old.jsonl", False, ""),
        ("open/new.json", True, ""),
        ("open/locked.json", True, "Permission denied"),
        ("open/locked.jsonl", False, "Permission denied"),
        ("/dev/null", True, ""),
    ],
)
def test_what_cannot_be_written_is_known_before_anything_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, is_replaced: bool, reason: str
) -> None:
    for folder in ("closed", "open"):
        (tmp_path / folder).mkdir()
    locked = [tmp_path / "open" / name for name in ("locked.json", "locked.jsonl")]
    for file in (*locked, tmp_path / "closed" / "old.jsonl"):
        file.write_text("")
    denied = {tmp_path / "closed", *locked}
    monkeypatch.setattr(os, "access", lambda place, _: place not in denied)  # root may all

    assert unwritable(tmp_path / path, is_replaced=is_replaced) == reason


def test_an_undoing_that_is_stopped_tells_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restore(notes: Path) -> Iterator[tuple[Path, None]]:
        yield notes, None
        raise KeyboardInterrupt

    monkeypatch.setattr("app.metadata.undo", restore)

    result = run("undo", tmp_path)

    assert result.exit_code == 130
    assert result.stderr == "Stopped. Restored: 1 files; the same command goes on from there.\n"


def test_a_stop_in_any_moment_leaves_no_hidden_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch = Path.touch

    def touch_and_stop(path: Path, mode: int, *, exist_ok: bool) -> None:
        touch(path, mode, exist_ok=exist_ok)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "touch", touch_and_stop)

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "all.m3u8", b"song.flac")

    assert list(tmp_path.iterdir()) == []


def test_help_tells_exit_codes_in_panels() -> None:
    told = run("tag", "--help").stdout

    assert [
        name for name in ("Music library", "What is heard", "Output", "130 Ctrl-C") if name not in told
    ] == []


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_another_threshold_changes_what_is_present_also_of_what_a_former_run_found(
    music: Path, tmp_path: Path, ending: str
) -> None:
    out = tmp_path / f"library.{ending}"
    run_tag(music, "--out", out)
    former = out.read_text()

    results = [run_tag(music, "--out", out, "--threshold", "0.0") for _ in range(2)]

    added = out.read_text().removeprefix(former).splitlines()
    everything = "; ".join(TAGS) if ending == "csv" else json.dumps(TAGS)
    assert [result.exit_code for result in results] == [0, 0]
    assert len(added) == 4
    assert all(everything in line for line in added)


def test_windows_in_csv_are_heard_again_where_another_threshold_changes_them(
    music: Path, tmp_path: Path
) -> None:
    out = tmp_path / "library.csv"
    run_tag(music, "--windows", "--out", out)
    former = out.read_text()

    run_tag(music, "--windows", "--out", out, "--threshold", "0.0")

    added = out.read_text().removeprefix(former)
    assert len(added.splitlines()) == len(former.splitlines()) - 1
    assert all("; ".join(TAGS) in line for line in added.splitlines())
    run_tag(music, "--windows", "--out", out)
    assert out.read_text() == former + added + former.partition("\n")[2]


def test_a_name_of_several_lines_is_gone_on_with_in_csv_also_where_its_row_was_cut_off(
    tmp_path: Path,
) -> None:
    music, out = tmp_path / "music", tmp_path / "library.csv"
    music.mkdir()
    for name in ("a\rb.wav", "two\nlines.wav", "Icon\r"):
        (music / name).write_bytes(tune(2))
    assert run_tag(music, "--out", out).exit_code == 0
    whole = out.read_bytes()
    assert whole.count(b".wav") == 2
    assert whole.count(b"Icon") == 0

    assert run_tag(music, "--out", out).exit_code == 0
    assert out.read_bytes() == whole

    with out.open("r+b") as file:
        file.truncate(len(whole) - 60)
    assert run_tag(music, "--out", out).exit_code == 0
    assert out.read_bytes() == whole


def test_a_csv_that_a_spreadsheet_saved_is_refused_with_its_name(music: Path, tmp_path: Path) -> None:
    out = tmp_path / "library.csv"
    run_tag(music, "--out", out)
    header, row, *rest = out.read_text().split("\n")
    path, score, others = row.split(",", 2)
    out.write_text("\n".join([header, f'{path},"{score.replace(".", ",")}",{others}', *rest]))

    result = run_tag(music, "--out", out)

    assert result.exit_code == 2
    assert f"{out}: changed by another program" in result.stderr


def test_what_is_written_into_the_folder_that_is_read_is_no_music(tmp_path: Path) -> None:
    music = tmp_path / "music"
    music.mkdir()
    (music / "song.wav").write_bytes(tune(2))
    scores = music / "scores"

    results = [run_tag(music, "--out", scores, "--format", "jsonl") for _ in range(2)]

    assert [result.exit_code for result in results] == [0, 0]
    assert paths_of(scores) == ["song.wav"]
    assert list(islice(arrivals([music], {}, {str(scores)}), 1)) == [[music / "song.wav"]]


def test_an_empty_inbox_is_watched_and_told_of_as_nothing(tmp_path: Path) -> None:
    inbox, out = tmp_path / "inbox", tmp_path / "library.jsonl"
    inbox.mkdir()

    with command(inbox, "--out", out, "--watch") as (process, shown):
        wait_for(lambda: b"Waiting" in shown)
        (inbox / "song.wav").write_bytes(tune(2))
        wait_for(lambda: paths_of(out) == ["song.wav"])
        time.sleep(1.0)  # the row is written a moment before the file is behind it
        process.send_signal(signal.SIGINT)

    assert process.returncode == 0, shown.decode()


def test_ctrl_c_while_arrivals_are_tagged_says_that_some_are_not(tmp_path: Path) -> None:
    inbox, out = tmp_path / "inbox", tmp_path / "library.jsonl"
    inbox.mkdir()
    (tmp_path / "new").mkdir()
    for number in range(300):
        (tmp_path / "new" / f"{number:03}.wav").write_bytes(tune(2))

    with command(inbox, "--out", out, "--watch") as (process, shown):
        wait_for(lambda: b"Waiting" in shown)
        (tmp_path / "new").rename(inbox / "new")
        wait_for(lambda: len(rows_of(out)) >= 5)
        process.send_signal(signal.SIGINT)

    assert process.returncode == 130
    assert len(rows_of(out)) < 300
    assert b"Stopped." in shown


def test_a_file_that_somebody_made_readable_is_new(tagger: Tagger, tmp_path: Path) -> None:
    song = tmp_path / "song.wav"
    song.write_bytes(tune(2))
    library, _ = library_of(tagger)
    library._take(Failed(str(song), "unreadable", "Permission denied.", "Change its mode."))
    other = tmp_path / "other.wav"
    other.write_bytes(tune(2))
    found = arrivals([tmp_path], library._seen)
    assert next(found) == [other]
    library._seen[key_of(other)] = stamp_of(other)

    song.chmod(0o600)

    assert next(found) == [song]


def test_a_folder_that_may_not_be_opened_does_not_end_the_watch(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir(mode=0)
    (tmp_path / "song.wav").write_bytes(tune(2))
    tmp_path.chmod(0o755)
    for folder in (tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    root = os.geteuid()
    if root == 0:
        os.seteuid(65534)
    try:
        found = next(arrivals([tmp_path], {}))
    finally:
        os.seteuid(root)

    assert tmp_path / "song.wav" in found


def test_where_no_more_folders_can_be_watched_they_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watch_no_more(*folders: Path, force_polling: bool | None, **options: Any) -> Any:  # noqa: ANN401
        if not force_polling:
            raise OSError("OS file watch limit reached.")
        return watch(*folders, force_polling=force_polling, **options)

    watch = watchfiles.watch
    monkeypatch.setattr("watchfiles.watch", watch_no_more)
    (tmp_path / "song.wav").write_bytes(tune(2))

    assert next(arrivals([tmp_path], {})) == [tmp_path / "song.wav"]


def test_one_folder_under_two_names_is_watched_as_one(tmp_path: Path) -> None:
    (tmp_path / "song.wav").write_bytes(tune(2))

    assert len(next(arrivals([tmp_path, tmp_path / "." / ".." / tmp_path.name], {}))) == 1


def test_the_playlist_is_whole_again_when_a_disk_is_back(tagger: Tagger, tmp_path: Path) -> None:
    disk, playlist = tmp_path / "disk", tmp_path / "all.m3u8"
    disk.mkdir()
    (disk / "song.wav").write_bytes(tune(2))
    library, _ = library_of(tagger, Playlist(playlist, lambda _: True))
    library.tag([disk / "song.wav"], lambda _: None)
    found = arrivals([disk], library._seen)
    threading.Timer(1.0, disk.rename, [tmp_path / "away"]).start()

    library.tag(next(found), lambda _: None)
    assert "song.wav" not in playlist.read_text()
    (tmp_path / "away").rename(disk)
    library.tag(next(found), lambda _: None)

    assert "song.wav" in playlist.read_text()


def test_a_file_that_could_not_be_read_last_time_is_told_anew(music: Path, tmp_path: Path) -> None:
    out, away = tmp_path / "library.jsonl", tmp_path / "away.flac"
    song = next(music.glob("*.flac"))
    assert run_tag(song, "--out", out).exit_code == 0
    song.rename(away)
    assert run_tag(song, "--out", out).exit_code == 1
    away.rename(song)

    assert run_tag(song, "--out", out).exit_code == 0

    assert "scores" in rows_of(out)[-1]


def test_a_file_that_was_completed_after_it_failed_is_new(tagger: Tagger, tmp_path: Path) -> None:
    song, whole = tmp_path / "song.wav", tune(2)
    song.write_bytes(whole[:60])
    failed = Failed(str(song), "too-short", "Cut off.", "Wait.", stamp_of(song))
    library, rows = library_of(tagger)
    library._take(failed)
    song.write_bytes(whole)

    found = next(arrivals([tmp_path], library._seen))

    assert found == [song]
    assert rows == [failed]


def test_a_file_that_failed_leaves_the_playlist(tagger: Tagger, tmp_path: Path) -> None:
    song, playlist = tmp_path / "song.wav", tmp_path / "all.m3u8"
    song.write_bytes(tune(2))
    library, _ = library_of(tagger, Playlist(playlist, lambda _: True))
    library.tag([song], lambda _: None)
    assert "song.wav" in playlist.read_text()
    song.write_bytes(b"no music any more")

    library.tag([song], lambda _: None)

    assert "song.wav" not in playlist.read_text()


def test_what_was_changed_is_told_also_when_the_disk_is_full(music: Path, tmp_path: Path) -> None:
    notes = tmp_path / "undo.jsonl"

    result = run_tag(music, "--out", "/dev/full", "--format", "jsonl", *APPLY, "--undo-file", notes)

    assert result.exit_code == 1
    assert f"Changed: 1 files; `music-tagger undo {notes}`" in result.stderr


def test_the_table_tells_names_as_they_are_on_one_line_in_a_pipe(tmp_path: Path) -> None:
    name = "x:fire:[b]y" + "y" * 30 + ".wav"
    (tmp_path / name).write_bytes(tune(2))

    told = run_tag(tmp_path).stdout

    assert str(tmp_path / name) in told


def test_a_name_that_the_terminal_cannot_show_is_told_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "歌.wav").write_bytes(tune(2))
    line = [sys.executable, "-m", "app.cli", "tag", "--device", "cpu", "--format", "jsonl", str(tmp_path)]

    done = subprocess.run(
        line, env=os.environ | {"PYTHONIOENCODING": "latin-1"}, capture_output=True, check=True
    )

    assert b"\\u6b4c.wav" in done.stdout


def test_a_disk_that_came_back_is_watched_again(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "music", tmp_path / "elsewhere"
    folder.mkdir()
    found = arrivals([folder], {})
    (folder / "before.mp3").write_bytes(b"1")
    assert next(found) == [folder / "before.mp3"]

    folder.rename(elsewhere)
    threading.Timer(1.0, elsewhere.rename, [folder]).start()
    threading.Timer(3.0, (folder / "after.mp3").write_bytes, [b"2"]).start()

    assert folder / "after.mp3" in [path for paths in islice(found, 4) for path in paths]


def test_a_folder_that_cannot_be_read_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "song.mp3").write_bytes(b"")
    monkeypatch.chdir(tmp_path)  # as whose parents nobody else may open
    root = os.geteuid()
    if root == 0:
        tmp_path.chmod(0o755)
        os.seteuid(65534)
    try:
        assert files_below(Path()) == [Path("song.mp3"), Path("closed")]
    finally:
        os.seteuid(root)
        (tmp_path / "closed").chmod(0o700)


@pytest.mark.parametrize(
    ("path", "told"),
    [("a" * 300 + ".mp3", "File name too long"), ("half-closed/song.mp3", "Permission denied")],
)
@pytest.mark.parametrize("form", ["jsonl", "table"])
def test_what_nobody_may_look_at_fails_and_does_not_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, told: str, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.wav").write_bytes(tune(2))
    look = os.stat

    def refuse(place: str | Path, **options: bool) -> os.stat_result:
        if "half-closed" in str(place):  # root may look everywhere
            raise PermissionError(errno.EACCES, "Permission denied")
        return look(place, **options)

    monkeypatch.setattr(os, "stat", refuse)

    result = run_tag(path, "good.wav", "--format", form)

    assert result.exit_code == 1
    assert f"{path}: {told}" in result.stderr
    assert "good.wav" in result.stdout


def test_files_of_a_folder_that_tells_but_their_names_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.mp3", "cover.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "nowhere.mp3").symlink_to("gone.mp3")
    look = Path.stat

    def refuse(path: Path, **options: bool) -> os.stat_result:
        if path.name == "a.mp3":
            raise PermissionError
        return look(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)

    assert [path.name for path in files_below(tmp_path)] == ["a.mp3"]


@pytest.mark.parametrize(
    ("form", "code"), [("jsonl", 1), ("csv", 2), ("json", 1), ("parquet", 1), ("table", 1)]
)
def test_a_full_disk_ends_the_run_with_a_word(music: Path, form: str, code: int) -> None:
    ended = run("tag", str(music), "--out", "/dev/full", "--format", form)

    assert ended.exit_code == code  # of CSV, the header is written before anything is heard
    assert "/dev/full cannot be written: No space left on device" in ended.stderr


def test_a_playlist_that_cannot_be_written_loses_nothing_else(music: Path, tmp_path: Path) -> None:
    (tmp_path / "all.m3u8").symlink_to("/dev/full")

    ended = run("tag", str(music), "--m3u", str(tmp_path / "all.m3u8"), "--format", "json")

    assert ended.exit_code == 1
    assert "all.m3u8: cannot be written: No space left on device" in ended.stderr
    assert len(json.loads(ended.stdout)) == 4


def test_a_folder_is_read_without_what_lies_beside_music(tmp_path: Path) -> None:
    for name in ("a.MP3", "b", "cover.JPG", "list.m3u8", ".hidden.mp3"):
        (tmp_path / name).write_bytes(b"")

    assert [path.name for path in files_below(tmp_path)] == ["a.MP3", "b"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    out, link = tmp_path / "out.json", tmp_path / "link.json"
    out.write_text("former")
    link.symlink_to(out)

    write_whole(link, b"new")

    assert [out.read_text(), link.is_symlink()] == ["new", True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "out.json"]


def test_a_folder_in_two_spellings_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "song.mp3").touch()
    monkeypatch.chdir(tmp_path)

    assert walk([Path("music"), tmp_path / "music"]) == [Path("music/song.mp3")]
