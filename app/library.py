"""A run over a music library: what is new is tagged, told, and led on into metadata and playlists."""

import os
from collections.abc import Callable, Container, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.files import Stamp, arrivals, key_of, stamp_of, unreadable_stamp_of
from app.output import CsvWriter, Earlier, Failed, Heard, LinesWriter, Outcome, Writer
from app.playlist import Condition, write_playlist
from app.prefetch import Listening, listen
from model.tagger import Tagger

if TYPE_CHECKING:
    from app.metadata import MetadataWriter


@dataclass(frozen=True, slots=True)
class Playlist:
    """Which files a playlist takes."""

    path: Path
    condition: Condition


class Library:
    """Tags files and keeps account of them.

    Args:
        tagger: it scores.
        how: which part of each file.
        writer: takes every outcome.
        say: told every failure, as a line for people.
        earlier: what a former run found, by `key_of`; files that are unchanged since are not tagged again.
        playlist: written by `write_playlist`.
        metadata: writes the tags into the files.
        leave_out: what is no music in the folders that are watched, by `key_of`.
    """

    def __init__(
        self,
        tagger: Tagger,
        how: Listening,
        writer: Writer,
        say: Callable[[str], None],
        *,
        earlier: dict[str, Earlier],
        playlist: Playlist | None = None,
        metadata: "MetadataWriter | None" = None,
        leave_out: Container[str] = (),
    ) -> None:
        self.is_done = True
        """Whether all files that were found are behind us."""
        self._tagger, self._how, self._writer, self._say = tagger, how, writer, say
        self._earlier, self._playlist, self._metadata = earlier, playlist, metadata
        self._leave_out = leave_out
        self._seen: dict[str, Stamp] = {}
        self._heard: dict[str, Heard] = {}
        self._failed: set[str] = set()

    @property
    def failures(self) -> int:
        """How many files are failed: one that was mended and tagged while it was watched is none."""
        return len(self._failed)

    def tag(self, files: Sequence[Path], done: Callable[[int], None]) -> None:
        """Tag what is new or changed; `done` is told how many files are behind us with each step."""
        self.is_done = False
        new = [file for file in files if not self._recall(file)]
        done(len(files) - len(new))
        with closing(listen(self._tagger, new, self._how)) as outcomes:
            for outcome in outcomes:
                self._take(outcome)
                done(1)
        self._write_playlist()
        self.is_done = True

    def watch(self, folders: Sequence[Path]) -> None:
        """Tag what appears in the folders, until KeyboardInterrupt."""
        for files in arrivals(folders, self._seen, self._leave_out):
            self.tag(files, lambda _: None)

    def _recall(self, file: Path) -> bool:
        """Whether a former run knows this file as it is now; then what it found counts."""
        earlier = self._earlier.pop(key_of(file), None)
        with suppress(OSError):
            if earlier is not None and earlier.stamp == stamp_of(file):
                self._seen[key_of(file)] = earlier.stamp
                if earlier.heard is None:
                    self._fail(file, "failed in a former run, and has not changed since.")
                elif self._take_in(replace(earlier.heard, path=str(file))) or earlier.is_stale:
                    assert isinstance(self._writer, LinesWriter | CsvWriter)  # noqa: S101 - else: none earlier
                    self._writer.again(replace(earlier, stamp=self._seen[key_of(file)]))
                return True
        return False

    def _take(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            self._fail(outcome.path, f"{outcome.detail} {outcome.hint}")
            self._heard.pop(key_of(outcome.path), None)
            with suppress(OSError):
                self._seen[key_of(outcome.path)] = outcome.stamp or unreadable_stamp_of(Path(outcome.path))
        else:
            self._seen[key_of(outcome.path)] = outcome.stamp
            if self._take_in(outcome.heard):
                outcome = replace(outcome, stamp=self._seen[key_of(outcome.path)])
        self._writer.add(outcome)

    def _take_in(self, heard: Heard) -> bool:
        """Keep it for the playlist, and write its tags into the file; tells whether that changed the file."""
        key = key_of(heard.path)
        self._heard[key] = heard
        self._failed.discard(key)
        if self._metadata is None:
            return False
        from app.metadata import MetadataError

        try:
            is_changed = self._metadata.write(heard, self._seen[key])
        except MetadataError as error:
            self._fail(heard.path, str(error))
            return False
        if is_changed:
            self._seen[key] = stamp_of(Path(heard.path))
        return is_changed

    def _fail(self, path: str | Path, why: str) -> None:
        self._failed.add(key_of(path))
        self._say(f"{path}: {why}")

    def _write_playlist(self) -> None:
        if self._playlist is None:
            return
        songs = [
            heard
            for _, heard in sorted(self._heard.items())
            if self._playlist.condition(heard) and os.path.exists(heard.path)  # noqa: PTH110 - which may raise
        ]
        try:
            left_out = write_playlist(self._playlist.path, songs)
        except OSError as error:
            self._fail(self._playlist.path, f"cannot be written: {error.strerror}.")
            return
        self._failed.discard(key_of(self._playlist.path))
        for path in left_out:
            self._say(f"{path!r}: left out of the playlist, which cannot hold a path of several lines")
