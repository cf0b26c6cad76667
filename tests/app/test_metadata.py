"""Tags in the files' own metadata: read back with FFmpeg, sound and other fields as they were, and undone."""

import json
import os
import resource
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import mutagen
import numpy as np
import pytest
from mutagen.flac import FLAC
from mutagen.id3 import ID3, TCON, TIT2, TPE1, TYER
from numpy.typing import NDArray

from app.files import append, stamp_of
from app.metadata import MetadataError, MetadataWriter, fields_of, undo
from app.output import Heard
from tests.encoding import decode, encode

ENDINGS = {
    "mp3": "mp3",
    "wav-s16": "wav",
    "aiff": "aiff",
    "flac": "flac",
    "ogg-vorbis": "ogg",
    "ogg-opus": "opus",
    "m4a-index-last": "m4a",
    "m4a-index-first": "m4a",
}
WANTED = {
    "MUSIC_TAGGER_TAGS": "vocal; hip hop",
    "MUSIC_TAGGER_VOCAL": "0.973",
    "MUSIC_TAGGER_HIP_HOP": "0.500",
}


def heard(path: Path, vocal: float = 0.9731) -> Heard:
    return Heard(str(path), {"vocal": vocal, "hip hop": 0.5}, ("vocal", "hip hop"), 2.0)


def shown(path: Path) -> dict[str, str]:
    """The metadata that FFmpeg finds."""
    with av.open(str(path)) as container:
        found = container.metadata | container.streams.audio[0].metadata
    return {name: text for name, text in found.items() if not name.isupper() or name.startswith("MUSIC")}


def ours(path: Path) -> dict[str, str]:
    """Our fields as mutagen tells them, whatever the format."""
    tags = mutagen.File(path).tags or {}
    found = {str(name).rpartition(":")[2].upper(): value for name, value in tags.items()}
    return {
        name: value[0].decode() if isinstance(value[0], bytes) else str(value[0])
        for name, value in found.items()
        if name.startswith("MUSIC_TAGGER_")
    }


@pytest.fixture(params=ENDINGS)
def clip(request: pytest.FixtureRequest, song: NDArray[np.float32], tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / f"clip.{ENDINGS[request.param]}"
    path.write_bytes(encode(song[:, : 2 * 48_000], 48_000, request.param, {"genre": "Own", "title": "歌"}))
    path.chmod(0o640)
    yield path
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_tags_are_written_and_undone_and_nothing_else_changes(clip: Path, tmp_path: Path) -> None:
    sound, former, notes = decode(clip), shown(clip), tmp_path / "undo.jsonl"

    assert MetadataWriter(notes, print).write(heard(clip))

    assert ours(clip) == WANTED
    if clip.suffix != ".wav":  # FFmpeg reads a WAV's RIFF INFO and passes over its ID3
        assert {name: shown(clip).get(name) for name in WANTED} == WANTED
    assert {name: text for name, text in shown(clip).items() if name not in WANTED} == former
    assert np.array_equal(decode(clip), sound)
    assert clip.stat().st_mode & 0o777 == 0o640

    assert list(undo(notes)) == [(clip, None)]

    assert ours(clip) == {}
    assert shown(clip) == former
    assert np.array_equal(decode(clip), sound)


def test_a_file_whose_sound_would_change_is_left_as_it_is(song: NDArray[np.float32], tmp_path: Path) -> None:
    clip = tmp_path / "clip.m4a"
    clip.write_bytes(encode(song[:, : 8 * 48_000], 48_000, "m4a-fragments"))
    before = clip.read_bytes()

    with pytest.raises(MetadataError, match="its sound would not stay as it is"):
        MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(clip))

    assert clip.read_bytes() == before
    assert not (tmp_path / "undo.jsonl").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who writes a file")
def test_a_file_that_is_still_being_written_is_left_as_it_is(
    song: NDArray[np.float32], tmp_path: Path
) -> None:
    clip, writer = tmp_path / "clip.flac", MetadataWriter(tmp_path / "undo.jsonl", print)
    clip.write_bytes(encode(song[:, :48_000], 48_000, "flac"))
    stamp = stamp_of(clip)

    with clip.open("ab") as download, pytest.raises(MetadataError, match="changed by another program"):
        writer.write(heard(clip), stamp)
    with pytest.raises(MetadataError, match="changed by another program"):
        writer.write(heard(clip), stamp._replace(size_bytes=stamp.size_bytes - 1))

    assert download.closed
    assert ours(clip) == {}
    assert writer.write(heard(clip), stamp)
    assert ours(clip) == WANTED


def test_tags_of_other_scripts_go_by_their_number() -> None:
    assert fields_of(["流行", "vocal", "舞曲"]) == {
        "流行": "MUSIC_TAGGER_1",
        "vocal": "MUSIC_TAGGER_VOCAL",
        "舞曲": "MUSIC_TAGGER_3",
    }


def test_a_file_without_metadata_gets_none_by_undo(song: NDArray[np.float32], tmp_path: Path) -> None:
    clip, notes = tmp_path / "clip.aiff", tmp_path / "undo.jsonl"
    clip.write_bytes(encode(song[:, :48_000], 48_000, "aiff"))
    before = clip.read_bytes()

    MetadataWriter(notes, print).write(heard(clip))
    list(undo(notes))

    assert clip.read_bytes() == before


@pytest.fixture
def flac(song: NDArray[np.float32], tmp_path: Path) -> Path:
    path = tmp_path / "clip.flac"
    path.write_bytes(encode(song[:, :48_000], 48_000, "flac"))
    return path


def test_what_there_is_no_room_for_is_not_written_at_all(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    append(path, b"whole\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))

    try:
        with pytest.raises(OSError, match="File too large"):
            append(path, b"too much\n", durable=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert path.read_bytes() == b"whole\n"


@pytest.mark.skipif(sys.platform != "linux", reason="Python knows extended attributes on Linux only")
def test_extended_attributes_stay_and_the_time_is_new(flac: Path, tmp_path: Path) -> None:
    try:
        os.setxattr(flac, "user.rating", b"5")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    os.utime(flac, (1, 1))
    notes, started_s = tmp_path / "undo.jsonl", time.time()

    MetadataWriter(notes, print).write(heard(flac))
    written = os.getxattr(flac, "user.rating"), flac.stat().st_mtime
    list(undo(notes))

    assert written[0] == os.getxattr(flac, "user.rating") == b"5"
    assert flac.stat().st_mtime >= written[1] > started_s - 1


def test_the_owner_stays_as_far_as_the_system_lets_us(
    flac: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, found = list[tuple[int, int]](), flac.stat()

    def refuse(_: Path, owner: int, group: int) -> None:
        given.append((owner, group))
        raise PermissionError

    monkeypatch.setattr(os, "chown", refuse)

    assert MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(flac))

    assert given == [(-1, found.st_gid), (found.st_uid, -1)]


def test_the_note_is_on_the_disk_before_the_music_file_changes(
    flac: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, before = tmp_path / "undo.jsonl", flac.read_bytes()
    synced = list[tuple[bool, bool]]()

    def note(file: int) -> None:
        is_note = os.path.samestat(os.fstat(file), notes.stat())
        synced.append((is_note, flac.read_bytes() == before))

    monkeypatch.setattr(os, "fsync", note)

    MetadataWriter(notes, print).write(heard(flac))

    assert synced == [(True, True), (False, True)]


def test_a_change_counts_when_it_is_made(flac: Path, tmp_path: Path) -> None:
    shown, failed = MetadataWriter(None, print), MetadataWriter(tmp_path, print)
    written = MetadataWriter(tmp_path / "undo.jsonl", print)

    shown.write(heard(flac))
    with pytest.raises(MetadataError, match="cannot be changed"):
        failed.write(heard(flac))
    written.write(heard(flac))

    assert [shown.changes, failed.changes, written.changes] == [1, 0, 1]


def test_a_flac_keeps_the_md5_of_its_samples(song: NDArray[np.float32], tmp_path: Path) -> None:
    clip = tmp_path / "clip.flac"
    clip.write_bytes(encode(song[:, :48_000], 48_000, "flac"))
    before = FLAC(clip).info.md5_signature

    MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(clip))

    assert before
    assert FLAC(clip).info.md5_signature == before


def test_an_old_id3_stays_as_old_as_it_is(song: NDArray[np.float32], tmp_path: Path) -> None:
    """ID3v2.3 with a year and a genre by number, and an ID3v1 behind it."""
    clip = tmp_path / "clip.mp3"
    clip.write_bytes(encode(song[:, :48_000], 48_000, "mp3"))
    tags = ID3()
    for frame in (TIT2(1, "Old"), TYER(0, "1999"), TCON(0, "(17)")):
        tags.add(frame)
    tags.save(clip, v1=2, v2_version=3)
    v1 = clip.read_bytes()[-128:]

    MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(clip))

    found = ID3(clip, translate=False, load_v1=False)
    assert found.version == (2, 3, 0)
    assert [found["TYER"].text, found["TCON"].text, found["TIT2"].text] == [["1999"], ["(17)"], ["Old"]]
    assert clip.read_bytes()[-128:] == v1
    assert v1.startswith(b"TAG")


def test_without_an_undo_file_nothing_is_written(clip: Path) -> None:
    before, told = clip.read_bytes(), list[str]()

    assert not MetadataWriter(None, told.append).write(heard(clip))

    assert clip.read_bytes() == before
    assert told == [
        f"{clip}: MUSIC_TAGGER_TAGS='vocal; hip hop', MUSIC_TAGGER_VOCAL='0.973',"
        " MUSIC_TAGGER_HIP_HOP='0.500'"
    ]


def test_what_stands_there_already_is_not_written_again_and_undo_goes_back_all_the_way(
    clip: Path, tmp_path: Path
) -> None:
    told, notes = list[str](), tmp_path / "undo.jsonl"
    writer = MetadataWriter(notes, told.append)

    changed = [writer.write(heard(clip)), writer.write(heard(clip)), writer.write(heard(clip, vocal=0.6))]

    assert changed == [True, False, True]
    assert told[1:] == [f"{clip}: MUSIC_TAGGER_VOCAL='0.600' (was '0.973')"]
    assert list(undo(notes)) == [(clip, None), (clip, None)]
    assert ours(clip) == {}


def test_a_format_without_metadata_says_so(song: NDArray[np.float32], tmp_path: Path) -> None:
    clip = tmp_path / "clip.webm"
    clip.write_bytes(encode(song[:, :48_000], 48_000, "webm-opus"))

    with pytest.raises(MetadataError, match="holds no metadata"):
        MetadataWriter(None, print).write(heard(clip))


def test_undo_tells_which_file_is_gone_and_does_the_rest(clip: Path, tmp_path: Path) -> None:
    notes = tmp_path / "undo.jsonl"
    MetadataWriter(notes, print).write(heard(clip))
    gone = json.dumps({"path": str(tmp_path / "gone.mp3"), "before": {}, "had_metadata": True})
    notes.write_text(f'{gone}\n{notes.read_text()}{{"path": "cut o')

    (first, no_error), (second, error) = undo(notes)

    assert [first, no_error, second] == [clip, None, tmp_path / "gone.mp3"]
    assert "No such file" in str(error)


def test_undo_goes_on_after_a_file_that_nobody_can_read(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, odd, read = tmp_path / "undo.jsonl", tmp_path / "streamed.odd", mutagen.File
    MetadataWriter(notes, print).write(heard(clip))
    odd.write_bytes(b"music")
    bad = json.dumps({"path": str(odd), "before": {}, "had_metadata": True})
    notes.write_text(f"{notes.read_text()}{bad}\n")

    def fail(path: Path) -> object:
        if path.suffix == ".odd":
            raise struct.error("short")
        return read(path)

    monkeypatch.setattr(mutagen, "File", fail)

    (first, error), second = undo(notes)

    assert [first, second] == [odd, (clip, None)]
    assert "cannot be changed" in str(error)


UNKNOWN = b"\xff" * 4


def cut_off(data: bytes) -> bytes:
    return data[: len(data) // 2]


def streamed(data: bytes) -> bytes:
    """As FFmpeg writes it into a pipe."""
    at = data.index(b"data") + 4 if b"data" in data else data.index(b"SSND") + 4
    return data[:4] + UNKNOWN + data[8:at] + UNKNOWN + data[at + 4 :]


def never_finished(data: bytes) -> bytes:
    """A recorder that lost its power before it could write the lengths."""
    at = data.index(b"data") + 4 if b"data" in data else data.index(b"SSND") + 4
    return data[:4] + bytes(4) + data[8:at] + bytes(4) + data[at + 4 :]


@pytest.mark.parametrize("spoil", [cut_off, streamed, never_finished])
@pytest.mark.parametrize(("form", "ending"), [("wav-s16", "wav"), ("aiff", "aiff")])
def test_sound_that_is_not_as_long_as_its_header_says_stays_as_it_is(
    song: NDArray[np.float32], tmp_path: Path, form: str, ending: str, spoil: Callable[[bytes], bytes]
) -> None:
    clip, notes = tmp_path / f"clip.{ending}", tmp_path / "undo.jsonl"
    clip.write_bytes(spoil(encode(song[:, :48_000], 48_000, form)))
    before = clip.read_bytes()

    with pytest.raises(MetadataError, match="cannot be changed"):
        MetadataWriter(notes, print).write(heard(clip))
    notes.write_text(json.dumps({"path": str(clip), "before": {"X": None}, "had_metadata": False}) + "\n")
    [(_, error)] = undo(notes)

    assert "cannot be changed" in str(error)
    assert clip.read_bytes() == before


@pytest.mark.parametrize("failure", [struct.error("short"), IndexError(), OSError("no")])
def test_whatever_a_file_makes_mutagen_raise_is_told_and_leaves_no_note(
    flac: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(_: FLAC) -> None:
        raise failure

    monkeypatch.setattr(FLAC, "save", fail)

    with pytest.raises(MetadataError, match=r"cannot be changed: ."):
        MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(flac))

    assert sorted(path.name for path in tmp_path.iterdir()) == [flac.name]


def test_a_change_that_does_not_last_is_not_made(
    flac: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = flac.read_bytes()
    monkeypatch.setattr(FLAC, "save", lambda _: None)

    with pytest.raises(MetadataError, match="does not keep what is written"):
        MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(flac))

    assert flac.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [flac.name]


@pytest.mark.parametrize("text", ['{"path": "a.mp3"}\n', "", '{"path": "cut o'])
def test_undo_refuses_another_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "notes").write_text(text)

    with pytest.raises(MetadataError, match="no undo file"):
        list(undo(tmp_path / "notes"))


def test_tags_whose_fields_would_be_one_are_refused() -> None:
    assert fields_of(["vocal", "hip-hop"]) == {
        "vocal": "MUSIC_TAGGER_VOCAL",
        "hip-hop": "MUSIC_TAGGER_HIP_HOP",
    }
    for tags in (["hip hop", "hip-hop"], ["tags"]):
        with pytest.raises(MetadataError, match="share a field"):
            fields_of(tags)


def test_a_chunk_of_odd_length_before_the_sound_does_no_harm(
    song: NDArray[np.float32], tmp_path: Path
) -> None:
    clip = tmp_path / "clip.wav"
    data = encode(song[:, :48_000], 48_000, "wav-s16")
    odd, at = b"odd \x05\0\0\0abcde\0", data.index(b"data")
    size = (int.from_bytes(data[4:8], "little") + len(odd)).to_bytes(4, "little")
    clip.write_bytes(data[:4] + size + data[8:at] + odd + data[at:])

    assert MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(clip))

    assert ours(clip) == WANTED


ODD_FRAMES = (
    (b"TDRC", b"\0circa 1970"),
    (b"USLT", b"\0eng\0first"),
    (b"USLT", b"\0eng\0second"),
    (b"GEOB", b"\0a\0\0S\0A"),
    (b"GEOB", b"\0a\0\0S\0B"),
    (b"TIT2", b"\3caf\xe9"),
)


def id3(version: int) -> bytes:
    """A tag of frames that are valid, or hurt nobody, and that mutagen would not write as it read them."""
    frames = b"".join(name + len(body).to_bytes(4) + bytes(2) + body for name, body in ODD_FRAMES)
    return b"ID3" + bytes([version, 0, 0, 0, 0, *divmod(len(frames), 128)]) + frames


@pytest.mark.parametrize("version", [3, 4])
def test_frames_of_others_stay_byte_for_byte_and_so_they_are_after_undo(
    song: NDArray[np.float32], tmp_path: Path, version: int
) -> None:
    clip = tmp_path / "clip.mp3"
    clip.write_bytes(encode(song[:, :48_000], 48_000, "mp3"))
    ID3(clip).delete(clip)
    clip.write_bytes(id3(version) + clip.read_bytes())
    writer = MetadataWriter(tmp_path / "undo.jsonl", print)

    assert writer.write(heard(clip))
    written = clip.read_bytes()
    assert ours(clip) == WANTED
    assert list(undo(tmp_path / "undo.jsonl")) == [(clip, None)]
    undone = clip.read_bytes()

    assert ours(clip) == {}
    for name, body in ODD_FRAMES:
        frame = name + len(body).to_bytes(4) + bytes(2) + body
        assert written.count(frame) == undone.count(frame) == 1, frame


PICTURE = b"\xff\xd8\xff\xe0" * 1000 + bytes(4000) + b"\xff\xd9"


def synchsafe(number: int) -> bytes:
    return bytes(number >> shift & 127 for shift in (21, 14, 7, 0))


@pytest.mark.parametrize("odd", ["sizes as plain integers", "the whole block unsynchronised"])
def test_frames_that_only_who_reads_all_can_tell_are_read(
    song: NDArray[np.float32], tmp_path: Path, odd: str
) -> None:
    clip, is_block = tmp_path / "clip.mp3", odd.startswith("the whole")
    clip.write_bytes(encode(song[:, :48_000], 48_000, "mp3"))
    ID3(clip).delete(clip)
    bodies = {
        b"APIC": b"\0image/jpeg\0\3\0" + PICTURE,
        b"TIT2": b"\0" + b"t" * 300,
        b"TPE1": b"\0" + b"a" * 300,
    }
    if is_block:
        bodies[b"APIC"] = bodies[b"APIC"].replace(b"\xff", b"\xff\0")
    frames = b"".join(
        name + (synchsafe(len(body)) if is_block else len(body).to_bytes(4)) + bytes(2) + body
        for name, body in bodies.items()
    )
    clip.write_bytes(
        b"ID3\4\0" + bytes([0x80 * is_block]) + synchsafe(len(frames)) + frames + clip.read_bytes()
    )
    assert ID3(clip, translate=False)["APIC:"].data == PICTURE

    assert MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(clip))
    written = ID3(clip, translate=False)
    assert ours(clip) == WANTED
    assert list(undo(tmp_path / "undo.jsonl")) == [(clip, None)]

    for tags in (written, ID3(clip, translate=False)):
        assert tags["APIC:"].data == PICTURE
        assert (len(tags["TIT2"].text[0]), len(tags["TPE1"].text[0])) == (300, 300)


def test_a_comment_that_says_it_is_unreadable_is_a_comment(song: NDArray[np.float32], tmp_path: Path) -> None:
    clip = tmp_path / "clip.flac"
    clip.write_bytes(encode(song[:, :48_000], 48_000, "flac", {"artist": "Beyonc\ufffd"}))

    assert MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(clip))


def test_comments_that_are_not_utf_8_are_not_lost(song: NDArray[np.float32], tmp_path: Path) -> None:
    clip = tmp_path / "clip.flac"
    clip.write_bytes(
        encode(song[:, :48_000], 48_000, "flac", {"artist": "Beyonce"}).replace(b"Beyonce", b"Beyonc\xe9")
    )
    before = clip.read_bytes()

    with pytest.raises(MetadataError, match="comments are damaged"):
        MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(clip))

    assert clip.read_bytes() == before


def test_undo_that_was_stopped_leaves_alone_what_is_restored(clip: Path, tmp_path: Path) -> None:
    MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(clip))
    assert list(undo(tmp_path / "undo.jsonl")) == [(clip, None)]
    before = clip.stat()

    assert list(undo(tmp_path / "undo.jsonl")) == [(clip, None)]

    assert (clip.stat().st_ino, clip.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who writes a file")
def test_where_the_system_takes_every_file_for_one_that_is_written_it_is_not_asked(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.metadata.is_open_for_writing", lambda _: True)  # as on many network drives

    assert MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(clip))


def test_several_artists_in_an_old_id3_stay_several(song: NDArray[np.float32], tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp3"
    clip.write_bytes(encode(song[:, :48_000], 48_000, "mp3"))
    tags = ID3()
    tags.add(TPE1(1, ["AC/DC", "Other"]))
    tags.save(clip, v2_version=3, v23_sep=None)

    MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(clip))

    assert ID3(clip, translate=False, load_v1=False)["TPE1"].text == ["AC/DC", "Other"]


def test_undo_finds_the_files_from_any_folder(
    song: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    clip = tmp_path / "clip.flac"
    clip.write_bytes(encode(song[:, :48_000], 48_000, "flac"))
    monkeypatch.chdir(tmp_path)
    MetadataWriter(Path("undo.jsonl"), print).write(heard(Path("clip.flac")))

    monkeypatch.chdir(tmp_path / "elsewhere")

    assert list(undo(tmp_path / "undo.jsonl")) == [(clip, None)]
    assert ours(clip) == {}


def id3v1_alone(song: NDArray[np.float32], clip: Path, comment: str) -> None:
    clip.write_bytes(encode(song[:, :48_000], 48_000, "mp3"))
    tags = ID3()
    tags.add(TIT2(3, ["Old title"]))
    tags.save(clip, v1=2)
    tags.delete(clip, delete_v1=False)
    with clip.open("r+b") as file:
        file.seek(97 - 128, os.SEEK_END)  # where an ID3v1 has its comment, which mutagen writes none of
        file.write(comment.encode())


@pytest.mark.parametrize("comment", ["", "ripped at home"])
def test_an_id3v1_alone_stays_visible_and_undo_leaves_it_as_it_was(
    song: NDArray[np.float32], tmp_path: Path, comment: str
) -> None:
    clip, notes = tmp_path / "clip.mp3", tmp_path / "undo.jsonl"
    id3v1_alone(song, clip, comment)
    before = clip.read_bytes()

    MetadataWriter(notes, print).write(heard(clip))

    assert shown(clip)["title"] == "Old title"
    assert list(undo(notes)) == [(clip, None)]
    assert clip.read_bytes() == before


def test_undo_keeps_a_title_that_was_corrected_meanwhile(song: NDArray[np.float32], tmp_path: Path) -> None:
    title = "交响曲 No. 5 in C minor, Op. 67: I. Allegro con brio (live)"
    clip = tmp_path / "clip.mp3"
    id3v1_alone(song, clip, "")
    MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(clip))
    tags = ID3(clip)
    tags["TIT2"] = TIT2(3, [title])
    tags.save(clip)  # its ID3v1, too, which holds 30 characters of Latin-1

    assert list(undo(tmp_path / "undo.jsonl")) == [(clip, None)]

    assert ID3(clip)["TIT2"].text == [title]
    assert ours(clip) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who writes a file")
def test_undo_leaves_a_file_alone_that_another_program_is_writing(
    song: NDArray[np.float32], tmp_path: Path
) -> None:
    clip = tmp_path / "clip.flac"
    clip.write_bytes(encode(song[:, :48_000], 48_000, "flac"))
    MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(clip))

    with clip.open("r+b"):
        [(path, error)] = undo(tmp_path / "undo.jsonl")

    assert path == clip
    assert "another program" in str(error)
    assert ours(clip) == WANTED


def test_the_sound_is_not_read_where_ctrl_c_would_be_lost(
    song: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "clip.flac"
    clip.write_bytes(encode(song[:, :48_000], 48_000, "flac"))
    threads: list[threading.Thread] = []

    def read(_: Path) -> bytes:
        threads.append(threading.current_thread())
        return b""

    monkeypatch.setattr("app.metadata.sound_digest", read)

    MetadataWriter(tmp_path / "undo.jsonl", print).write(heard(clip))

    assert len(threads) == 2
    assert threading.main_thread() not in threads
