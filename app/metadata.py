"""Tags in the files' own metadata: MUSIC_TAGGER_TAGS, and MUSIC_TAGGER_VOCAL and its like with the scores.

ID3 TXXX in MP3, WAV and AIFF, Vorbis comments in FLAC, Ogg and Opus, freeform atoms in M4A. Nothing else is
touched: not the genre, not a sample. A file is copied, changed and put in its place, so that no interruption
can harm it; its former values are noted before, so that `undo` brings them back. Needs the extra `library`.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import mutagen
from mutagen.aiff import AIFF
from mutagen.flac import FLAC
from mutagen.id3 import ID3, TXXX, Encoding, ParseID3v1
from mutagen.mp3 import MP3
from mutagen.mp4 import MP4, MP4FreeForm
from mutagen.oggflac import OggFLAC
from mutagen.oggopus import OggOpus
from mutagen.oggspeex import OggSpeex
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

from app.files import Stamp, append, is_open_for_writing, replacing, stamp_of
from app.output import Heard
from model.audio import sound_digest

PREFIX: Final = "MUSIC_TAGGER_"
ALL: Final = PREFIX + "TAGS"
NONE: Final = "none"
"""What MUSIC_TAGGER_TAGS says where no tag is present: ID3 cannot hold an empty text."""
MP4_PREFIX: Final = "----:com.apple.iTunes:"
ID3V1_BYTES: Final = 128
FORM_BYTES: Final = 12
BYTE_ORDERS: Final[Mapping[bytes, Literal["little", "big"]]] = {b"RIFF": "little", b"FORM": "big"}
SOUND: Final = (b"data", b"SSND")
"""The chunk that holds the sound, in WAV and in AIFF."""

Values = Mapping[str, Sequence[str] | None]
"""A field's values, or None where there is no such field."""


class MetadataError(ValueError):
    """A file whose metadata cannot be read or written."""


def fields_of(tags: Sequence[str]) -> dict[str, str]:
    """The field of each tag's score.

    Raises:
        MetadataError: two would be the same; Vorbis comments allow but some ASCII letters in their names.
    """
    names = [re.sub(r"[^A-Z0-9]+", "_", tag.upper()) for tag in tags]
    # A tag of which no letter may stand there goes by its number.
    fields = {
        tag: PREFIX + (str(number) if name.strip("_") == "" else name)
        for number, (tag, name) in enumerate(zip(tags, names, strict=True), 1)
    }
    if len({ALL, *fields.values()}) <= len(fields):
        raise MetadataError(f"these tags would share a field of the metadata: {', '.join(tags)}")
    return fields


def values_of(heard: Heard) -> dict[str, list[str]]:
    """What is to be written for a file; one value a field, as not every program shows several."""
    scores = {field: [f"{heard.scores[tag]:.3f}"] for tag, field in fields_of(tuple(heard.scores)).items()}
    return {ALL: ["; ".join(heard.present) or NONE], **scores}


class MetadataWriter:
    """Writes the tags of file after file, or only shows what it would write.

    Args:
        undo: the file that takes the former values; without it, nothing is written.
        say: told a line a file that changes or would.
    """

    def __init__(self, undo: Path | None, say: Callable[[str], None]) -> None:
        self._undo, self._say = undo, say
        self.changes = 0

    def write(self, heard: Heard, stamp: Stamp | None = None) -> bool:
        """Write the tags of a file; tells whether the file was changed.

        Args:
            heard: what is known of it.
            stamp: that of the file that was heard; another one is left alone.

        Raises:
            MetadataError: its format holds no metadata, it could not be changed, or somebody else does.
        """
        path = Path(heard.path)
        wanted = values_of(heard)
        with _failures():
            stamp = stamp or stamp_of(path)
            metadata = open_metadata(path)
            if isinstance(metadata, VorbisMetadata):
                metadata.check_whole(path)
            before: dict[str, list[str] | None] = {field: metadata.get(field) for field in wanted}
            if before == wanted:
                return False
            self._say(f"{path}: {_told(before, wanted)}")
            if self._undo is None:
                self.changes += 1
                return False
            with replacing(path) as scratch:
                _change_copy(path, scratch, wanted)
                _check_values(scratch, wanted)
                _check_unchanged(path, stamp, scratch)
                # Only now, as undo must find no change that could not be made.
                note = {"path": str(path.absolute()), "before": before, "had_metadata": metadata.is_there}
                self._note(note)
        self.changes += 1
        return True

    def _note(self, row: Mapping[str, Any]) -> None:
        assert self._undo is not None  # noqa: S101 - nothing is noted where nothing is written
        # It must be there before the music file changes.
        append(self._undo, (json.dumps(row) + "\n").encode(), durable=True)


def change(path: Path, values: Values, *, had_metadata: bool = True, unread: bool = False) -> None:
    """Set these fields of a file; with `had_metadata` false, leave no empty block of metadata behind.

    `unread`: see `open_metadata`.
    """
    metadata = open_metadata(path, unread=unread)
    for field, value in values.items():
        metadata.set(field, value)
    metadata.save()
    if not had_metadata:
        metadata.remove_if_empty()


def _change_copy(path: Path, scratch: Path, values: Values, *, had_metadata: bool = True) -> None:
    """Copy a file and `change` the copy. Raises MetadataError if that would change the sound.

    Other frames of ID3 are carried as they are, unread, if that keeps what they say. It does not where the
    sizes of frames, or the whole block, are written in a way that only who reads all of them can tell.
    """
    for unread in (True, False):
        shutil.copyfile(path, scratch)
        change(scratch, values, had_metadata=had_metadata, unread=unread)
        if other_frames(scratch) == other_frames(path):
            break
    # Not on the main thread: PyAV drops a Ctrl-C that comes while it reads, and takes it for the file's end.
    with ThreadPoolExecutor(1) as reader:
        one, other = reader.map(sound_digest, (path, scratch))
    if one != other:
        raise MetadataError("its metadata cannot be changed: its sound would not stay as it is")


def _check_unchanged(path: Path, stamp: Stamp, idle: Path) -> None:
    """Raise MetadataError if another program changed the file meanwhile, or still may.

    `idle`: a file beside it that nobody writes; where that seems to be written, too, the system cannot tell.
    """
    if stamp_of(path) != stamp or (is_open_for_writing(path) and not is_open_for_writing(idle)):
        raise MetadataError("it is being changed by another program; run the command again later")


def undo(notes: Path) -> Iterator[tuple[Path, MetadataError | None]]:
    """Bring back the former values of every file, the last change first; yields each file and what failed.

    Raises:
        MetadataError: `notes` is not what `--apply` writes.
        OSError: it cannot be read.
    """
    changes, _ = _read_notes(notes)
    if not changes:
        raise _no_undo_file(notes)
    for path, before, had_metadata in reversed(changes):
        try:
            with _failures():
                if not _is_restored(path, before, had_metadata=had_metadata):
                    _restore(path, before, had_metadata=had_metadata)
        except MetadataError as error:
            yield path, error
        else:
            yield path, None


def _is_restored(path: Path, before: Values, *, had_metadata: bool) -> bool:
    metadata = open_metadata(path)
    is_same = all(metadata.get(field) == values for field, values in before.items())
    return is_same and (had_metadata or not metadata.is_there)


def _restore(path: Path, before: Values, *, had_metadata: bool) -> None:
    with replacing(path) as scratch:
        stamp = stamp_of(path)
        _change_copy(path, scratch, before, had_metadata=had_metadata)
        _check_unchanged(path, stamp, scratch)


def check_notes(notes: Path) -> None:
    """See to it that notes can be added to a file, if there is one.

    Raises:
        MetadataError: it is not what `--apply` writes, or its end was cut off.
        OSError: it cannot be read.
    """
    if not notes.is_file():  # a device has nothing to be read, or no end
        return
    _, torn = _read_notes(notes)
    if torn:
        raise MetadataError(f"the last line of {notes} was cut off")


def _read_notes(notes: Path) -> tuple[list[tuple[Path, Values, bool]], bytes]:
    """What every line says, and the beginning of a line that was cut off: it belongs to no change."""
    *lines, torn = notes.read_bytes().split(b"\n")
    return [_read_note(notes, line) for line in lines], torn


def _read_note(notes: Path, line: bytes) -> tuple[Path, Values, bool]:
    try:
        row = json.loads(line)
        before = {str(field): value for field, value in row["before"].items()}
        return Path(row["path"]), before, bool(row["had_metadata"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _no_undo_file(notes) from error


def _no_undo_file(notes: Path) -> MetadataError:
    return MetadataError(f"{notes} is no undo file of music-tagger tag --apply")


def _check_values(path: Path, wanted: Values) -> None:
    """See to it that a changed file can be read again and says what it was told to."""
    metadata = open_metadata(path)
    if any(metadata.get(field) != values for field, values in wanted.items()):
        raise MetadataError("its metadata cannot be changed: it does not keep what is written")


@contextmanager
def _failures() -> Iterator[None]:
    """Whatever a file's content makes mutagen raise, and the system, as MetadataError."""
    try:
        yield
    except MetadataError:
        raise
    except Exception as error:
        told = str(error) or type(error).__name__
        raise MetadataError(f"its metadata cannot be changed: {told}") from error


class Metadata(Protocol):
    """One file's metadata, whatever its format."""

    is_there: bool
    """Whether the file has a block of metadata."""

    def get(self, field: str) -> list[str] | None:
        """The values of a field, None if there is none."""

    def set(self, field: str, values: Sequence[str] | None) -> None:
        """Set a field, or take it away."""

    def save(self) -> None:
        """Write the file."""

    def remove_if_empty(self) -> None:
        """Take the block of metadata away if nothing is in it that was not there without it."""


def open_metadata(path: Path, *, unread: bool = False) -> Metadata:
    """Read a file's metadata.

    Args:
        path: the file.
        unread: leave frames of ID3 unread that are not of our kind. mutagen then writes them as they are,
            where it would drop a date in words, say, or one of two lyrics.

    Raises:
        MetadataError: its format holds none, or the file was cut off.
        Exception: it cannot be read; with a damaged file, mutagen may raise anything.
    """
    _check_chunks(path)
    file = mutagen.File(path)
    if isinstance(file, MP3 | WAVE | AIFF):
        return Id3Metadata(path, type(file), unread=unread)
    if isinstance(file, FLAC | OggVorbis | OggOpus | OggFLAC | OggSpeex):
        return VorbisMetadata(file)
    if isinstance(file, MP4):
        return Mp4Metadata(file)
    raise MetadataError("this format holds no metadata that can be written")


def other_frames(path: Path) -> dict[str, str]:
    """What the frames of a file's ID3 say, but for ours; of other formats nothing."""
    file = mutagen.File(path)
    if not isinstance(file, MP3 | WAVE | AIFF):
        return {}
    tags = type(file)(path, translate=False, load_v1=False).tags or {}
    return {key: repr(frame) for key, frame in tags.items() if not key.startswith(f"TXXX:{PREFIX}")}


def _check_chunks(path: Path) -> None:
    """Refuse a WAV or AIFF that is not as long as its header says: ID3 would be put into the sound.

    Such a file comes of a download that was cut off, or of a recorder or stream that never learnt the length.
    """
    with path.open("rb") as file:
        header = file.read(FORM_BYTES)
        if len(header) < FORM_BYTES or header[:4] not in BYTE_ORDERS:
            return
        order = BYTE_ORDERS[header[:4]]
        end = 8 + int.from_bytes(header[4:8], order)
        if end <= os.fstat(file.fileno()).st_size:
            while len(chunk := file.read(8)) == 8 and file.tell() <= end:
                length = int.from_bytes(chunk[4:], order)
                if chunk[:4] in SOUND:
                    if 0 < length <= end - file.tell():
                        return
                    break
                file.seek(length + length % 2, os.SEEK_CUR)
    raise MetadataError("its metadata cannot be changed: its sound is not as long as its header says")


class Id3Metadata:
    """Frames TXXX. The version of ID3 stays as it is, and so do all other frames and an ID3v1 at the end."""

    def __init__(self, path: Path, kind: type[MP3 | WAVE | AIFF], *, unread: bool) -> None:
        self._path = path
        self._kind = kind
        # Untranslated, as mutagen would turn ID3v2.3 into 2.4 and rewrite years and genres on the way.
        # ID3v2.2 cannot be written, so that becomes 2.4.
        known = {"known_frames": {TXXX.__name__: TXXX}} if unread else {}
        file = kind(path, translate=False, load_v1=False, **known)
        if file.tags is not None and file.tags.version < (2, 3):
            file = kind(path, load_v1=False)
        self.is_there = file.tags is not None
        if file.tags is None:
            file.add_tags()
            self._copy_v1(file)
        self._tags: ID3 = file.tags
        self._version = 3 if self._tags.version[:2] == (2, 3) else 4

    def get(self, field: str) -> list[str] | None:
        """The texts of the frame."""
        frame = self._tags.get(f"TXXX:{field}")
        return None if frame is None else [str(text) for text in frame.text]

    def set(self, field: str, values: Sequence[str] | None) -> None:
        """Set or drop the frame; ID3v2.3 knows no UTF-8."""
        self._tags.delall(f"TXXX:{field}")
        if values is not None:
            encoding = Encoding.UTF16 if self._version == 3 else Encoding.UTF8
            self._tags.add(TXXX(encoding=encoding, desc=field, text=list(values)))

    def save(self) -> None:
        """Write the block; what mutagen makes of the ID3v1 is replaced by what was there."""
        v1 = self._v1()
        self._tags.save(self._path, v2_version=self._version, v23_sep=None)
        if v1:
            with self._path.open("r+b") as file:
                file.seek(-ID3V1_BYTES, 2)
                file.write(v1)

    def remove_if_empty(self) -> None:
        """Remove the block if it holds no more than the ID3v1 does, nor says anything else."""
        short = {frame.HashKey: frame for frame in (ParseID3v1(self._v1()) or {}).values()}
        tags = self._kind(self._path, translate=False, load_v1=False).tags
        if (
            tags is not None
            and not tags.unknown_frames
            and all(short.get(frame.HashKey) == frame for frame in tags.values())
        ):
            v1 = {"delete_v1": False} if type(self._tags) is ID3 else {}
            self._tags.delete(self._path, **v1)

    def _copy_v1(self, file: MP3 | WAVE | AIFF) -> None:
        """Programs look at an ID3v1 only where there is no ID3v2, so a new one must say the same."""
        for frame in (ParseID3v1(self._v1()) or {}).values():
            file.tags.add(frame)

    def _v1(self) -> bytes:
        with self._path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - ID3V1_BYTES, 0))
            end = file.read()
        return end if end.startswith(b"TAG") else b""


class _FileMetadata:
    """What Mutagen writes in place, and removes as a whole."""

    def __init__(self, file: FLAC | OggVorbis | OggOpus | OggFLAC | OggSpeex | MP4) -> None:
        self.is_there = file.tags is not None
        if file.tags is None:
            file.add_tags()
        self._file = file

    def save(self) -> None:
        """Write the fields."""
        self._file.save()

    def remove_if_empty(self) -> None:
        """Remove the block if no field is left."""
        if not self._file.tags:
            self._file.delete()


class VorbisMetadata(_FileMetadata):
    """Vorbis comments, of FLAC and all that lies in Ogg."""

    def check_whole(self, path: Path) -> None:
        """Check that no comment would be lost: that of bytes that are not UTF-8, or of one without a name.

        mutagen shows these with U+FFFD, or as `unknown0`, which the file does not hold.
        """
        odd = [
            f"{name}={value}".encode()
            for name, value in self._file.tags
            if "\ufffd" in value or re.fullmatch(r"unknown\d+", name)
        ]
        content = path.read_bytes().upper() if odd else b""
        if any(comment.upper() not in content for comment in odd):
            raise MetadataError("some of its comments are damaged, and would be lost: mend them first")

    def get(self, field: str) -> list[str] | None:
        """All comments of this name."""
        found: list[str] | None = self._file.tags.get(field)
        return found

    def set(self, field: str, values: Sequence[str] | None) -> None:
        """Replace or drop all comments of this name."""
        if values is not None:
            self._file.tags[field] = list(values)
        elif field in self._file.tags:
            del self._file.tags[field]


class Mp4Metadata(_FileMetadata):
    """Freeform atoms, as iTunes and its like name them."""

    def get(self, field: str) -> list[str] | None:
        """The texts of the atom."""
        found = self._file.tags.get(MP4_PREFIX + field)
        return None if found is None else [bytes(value).decode("utf-8", "replace") for value in found]

    def set(self, field: str, values: Sequence[str] | None) -> None:
        """Set or drop the atom."""
        if values is not None:
            self._file.tags[MP4_PREFIX + field] = [MP4FreeForm(value.encode()) for value in values]
        elif MP4_PREFIX + field in self._file.tags:
            del self._file.tags[MP4_PREFIX + field]


def _told(before: Values, wanted: Mapping[str, Sequence[str]]) -> str:
    changed = {field: values for field, values in wanted.items() if before[field] != values}
    return ", ".join(
        f"{field}={values[0]!r}" + (f" (was {'; '.join(former)!r})" if (former := before[field]) else "")
        for field, values in changed.items()
    )
