"""How `music-tagger tag` tells what it found: a table, JSON, JSON lines, or CSV."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from model.tagger import Tagging


class Format(StrEnum):
    """What is written to standard output."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


@dataclass(frozen=True, slots=True)
class Tagged:
    """A file that was tagged."""

    path: str
    tagging: "Tagging"
    present: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """A file that could not be tagged: which problem, what was wrong, and what to do next."""

    path: str
    type: str
    detail: str
    hint: str


Outcome = Tagged | Failed


class Writer(Protocol):
    """Takes outcomes one by one; `close` ends the output."""

    def add(self, outcome: Outcome) -> None:
        """Take one outcome; formats that can stream it write it now."""

    def close(self) -> None:
        """Write what is left."""


def writer_of(form: Format, tags: Sequence[str], *, windows: bool) -> Writer:
    """Return the writer of a format; with `windows`, the timeline is written too."""
    if form is Format.CSV:
        return CsvWriter(tags, windows=windows)
    if form is Format.TABLE:
        return TableWriter(tags, windows=windows)
    return JsonWriter(lines=form is Format.JSONL, windows=windows)


class JsonWriter:
    """An object a file: a line each, flushed at once, or all in one indented array."""

    def __init__(self, *, lines: bool, windows: bool) -> None:
        self._lines, self._windows = lines, windows
        self._objects: list[dict[str, Any]] = []

    def add(self, outcome: Outcome) -> None:
        """Write the line, or keep the object for the array."""
        if self._lines:
            _say(json.dumps(self._object(outcome), ensure_ascii=False))
        else:
            self._objects.append(self._object(outcome))

    def close(self) -> None:
        """Write the array."""
        if not self._lines:
            _say(json.dumps(self._objects, ensure_ascii=False, indent=2))

    def _object(self, outcome: Outcome) -> dict[str, Any]:
        if isinstance(outcome, Failed):
            error = {"type": outcome.type, "detail": outcome.detail, "hint": outcome.hint}
            return {"path": outcome.path, "error": error}
        tagging = outcome.tagging
        timeline = {"windows": [asdict(window) for window in tagging.windows]} if self._windows else {}
        return {
            "path": outcome.path,
            "scores": tagging.scores,
            "present": outcome.present,
            **timeline,
            "audio": asdict(tagging.audio),
        }


class CsvWriter:
    """A row a file, or a row a window; a failed file's row holds its problem in `error`."""

    def __init__(self, tags: Sequence[str], *, windows: bool) -> None:
        self._windows = windows
        span = ("start_s", "end_s") if windows else ()
        self._rows = csv.DictWriter(
            sys.stdout, ("path", *span, *tags, "present", "duration_s", "error"), lineterminator="\n"
        )
        self._rows.writeheader()

    def add(self, outcome: Outcome) -> None:
        """Write and flush the file's rows."""
        if isinstance(outcome, Failed):
            self._rows.writerow({"path": outcome.path, "error": outcome.type})
        else:
            self._rows.writerows(self._cells(outcome))
        sys.stdout.flush()

    def close(self) -> None:
        """Nothing is left."""

    def _cells(self, outcome: Tagged) -> list[dict[str, str]]:
        common = {
            "path": outcome.path,
            "present": " ".join(outcome.present),
            "duration_s": f"{outcome.tagging.audio.duration_s:.3f}",
        }
        if not self._windows:
            return [common | _digits(outcome.tagging.scores, 6)]
        return [
            common | {"start_s": f"{w.start_s:.3f}", "end_s": f"{w.end_s:.3f}"} | _digits(w.scores, 6)
            for w in outcome.tagging.windows
        ]


class TableWriter:
    """A table for people, at the end; failed files are told on standard error as they come."""

    def __init__(self, tags: Sequence[str], *, windows: bool) -> None:
        self._tags, self._windows = tags, windows
        self._table = Table(box=None, pad_edge=False)
        self._table.add_column("clip", overflow="fold")
        for tag in (*tags, "seconds"):
            self._table.add_column(tag, justify="right", no_wrap=True)
        self._table.add_column("present")

    def add(self, outcome: Outcome) -> None:
        """Take the file's row, and one below it a window."""
        if isinstance(outcome, Failed):
            return
        tagging = outcome.tagging
        self._row(escape(outcome.path), tagging.scores, tagging.audio.duration_s, outcome.present)
        for window in tagging.windows if self._windows else ():
            span = f"  {window.start_s:g} s to {window.end_s:g} s"
            self._row(span, window.scores, window.end_s - window.start_s)

    def close(self) -> None:
        """Print the table, unless every file failed."""
        if self._table.row_count:
            Console().print(self._table)

    def _row(
        self, clip: str, scores: Mapping[str, float], seconds: float, present: Sequence[str] = ()
    ) -> None:
        cells = _digits(scores, 3)
        marked = [f"[bold green]{cells[tag]}[/]" if tag in present else cells[tag] for tag in self._tags]
        self._table.add_row(clip, *marked, f"{seconds:.1f}", ", ".join(present))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _digits(scores: Mapping[str, float], digits: int) -> dict[str, str]:
    return {tag: f"{score:.{digits}f}" for tag, score in scores.items()}
