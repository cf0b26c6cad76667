"""How `music-tagger tag` tells what it found: a table, JSON, JSON lines, CSV or Parquet.

JSON lines and CSV are written file by file, so that a run that was stopped can go on: `read_back` tells what
is there. The others are one piece.
"""

import codecs
import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.files import Stamp, append, key_of, write_whole

if TYPE_CHECKING:
    from model.tagger import Tagging, WindowScores

WIDE: Final = 200
"""Columns of a table that goes into a file or a pipe, where nothing tells how wide it may be."""
BLOCKS: Final = "▁▂▃▄▅▆▇█"
MODEL_DIGITS: Final = 12
"""Of the weights' SHA-256, enough to tell them from all others."""
LINE_BEGIN: Final = '{"path": "'
AFTER_PATH: Final = ('", "scores": {', '", "error": {')
"""What follows a path in a row of JSON lines."""

Say = Callable[[str], None]


class Format(StrEnum):
    """How the outcomes are written."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"

    @property
    def grows(self) -> bool:
        """Whether it is written file by file, so that a run can go on where it was stopped."""
        return self in (Format.JSONL, Format.CSV)


ENDINGS: Final = {f".{form}": form for form in Format if form is not Format.TABLE} | {".txt": Format.TABLE}


class OutputError(ValueError):
    """A file that cannot be written, or gone on with; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What playlists and metadata need to know of a file."""

    path: str
    scores: Mapping[str, float]
    present: tuple[str, ...]
    duration_s: float


@dataclass(frozen=True, slots=True)
class Tagged:
    """A file that was tagged."""

    path: str
    tagging: "Tagging"
    present: tuple[str, ...]
    stamp: Stamp

    @property
    def heard(self) -> Heard:
        """The short of it."""
        return Heard(self.path, self.tagging.scores, self.present, self.tagging.audio.duration_s)


@dataclass(frozen=True, slots=True)
class Failed:
    """A file that could not be tagged: which problem, what was wrong, and what to do next.

    It has a stamp if trying again is in vain as long as the file stays as it is.
    """

    path: str
    type: str
    detail: str
    hint: str
    stamp: Stamp | None = None


Outcome = Tagged | Failed


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a former run wrote of a file; `heard` is None if it failed."""

    stamp: Stamp
    heard: Heard | None
    row: Mapping[str, Any]
    is_stale: bool = False
    """Whether the row tells other tags as present than the thresholds do now."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where scores come from; those of another origin are never put beside them."""

    model: str
    part: str


def origin_of(sha256: str, start_s: float, duration_s: float | None) -> Origin:
    """Of these weights, and of all that was heard of each file: `whole`, or `from 30 s for 10 s`."""
    length = "" if duration_s is None else f" for {duration_s:.12g} s"
    is_whole = start_s == 0 and duration_s is None
    return Origin(sha256[:MODEL_DIGITS], "whole" if is_whole else f"from {start_s:.12g} s{length}")


class Writer(Protocol):
    """Takes outcomes one by one; `close` ends the output."""

    def add(self, outcome: Outcome) -> None:
        """Take one outcome; formats that grow write it now."""

    def close(self) -> None:
        """Write what is left."""


def writer_of(
    form: Format,
    tags: Sequence[str],
    origin: Origin,
    *,
    windows: bool,
    timeline: bool = False,
    out: Path | None = None,
) -> Writer:
    """Return the writer of a format, to a file or to standard output.

    With `windows`, the scores of the windows are written too; with `timeline`, the table draws them. The
    writer raises OutputError if it cannot write.
    """
    whole = _print if out is None else partial(_write, out)
    in_ascii = out is None and codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"
    if form is Format.JSONL:
        say = _print if out is None else partial(_append, out)
        return LinesWriter(say, origin, windows=windows, in_ascii=in_ascii)
    if form is Format.CSV:
        has_header = out is not None and out.exists() and out.stat().st_size > 0
        say = _print if out is None else partial(_append, out)
        return CsvWriter(tags, say, origin, windows=windows, has_header=has_header)
    if form is Format.JSON:
        return JsonWriter(whole, origin, windows=windows, in_ascii=in_ascii)
    if form is Format.PARQUET:
        if out is None:
            raise OutputError("Parquet is no text to print: name its file with --out FILE.parquet")
        return ParquetWriter(tags, partial(_write_bytes, out), origin, windows=windows)
    if timeline:
        return TimelineWriter(tags, None if out is None else whole)
    return TableWriter(tags, None if out is None else whole, windows=windows)


def read_back(
    form: Format,
    out: Path,
    tags: Sequence[str],
    thresholds: Mapping[str, float],
    origin: Origin,
    *,
    windows: bool,
) -> dict[str, Earlier]:
    """What a file that grows holds of former runs, by `key_of` each path; the last word on a file counts.

    A last line that was cut off (the machine went down) is removed from the file.

    Raises:
        OutputError: the file is none of these, or one for other tags or columns, or of another origin; it is
            left as it is.
    """
    if not out.is_file():
        return {}
    data = out.read_bytes()
    end = _end_of_rows(data) if form is Format.CSV else data.rfind(b"\n") + 1
    text, torn = (part.decode("utf-8", "surrogateescape") for part in (data[:end], data[end:]))
    if form is Format.CSV:
        rows, is_ours = _csv_rows_of(out, text, tags, windows), _begins_csv(text + torn, tags, windows)
    else:
        rows, is_ours = _json_rows_of(out, text), _begins_line(torn)
    try:
        earlier = _earlier_of(form, out, rows, tags, thresholds, origin, windows=windows)
    except OutputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
        raise OutputError(
            f"{out}: changed by another program, and not understood ({error}); name a new file with --out"
        ) from error
    if torn and not is_ours:
        raise OutputError(f"{out}: its last line is not of music-tagger; name a new file with --out")
    if torn:  # only now that everything is known to be ours
        with out.open("r+b") as file:
            file.truncate(end)
    return earlier


def _end_of_rows(data: bytes) -> int:
    """Where the last whole row of CSV ends; a line may end within quotes, too."""
    end = data.rfind(b"\n") + 1
    while data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return end


def _earlier_of(
    form: Format,
    out: Path,
    rows: Iterable[Mapping[str, Any]],
    tags: Sequence[str],
    thresholds: Mapping[str, float],
    origin: Origin,
    *,
    windows: bool,
) -> dict[str, Earlier]:
    earlier: dict[str, Earlier] = {}
    for row in rows:
        if (row.get("model"), row.get("part")) != (origin.model, origin.part):
            raise OutputError(
                f"{out} holds scores of other weights, or of another part of each file:"
                " name a new file with --out"
            )
        stamp = _stamp(row)
        if stamp is None:  # it could not be read, which is the last word on it by now
            earlier.pop(key_of(row["path"]), None)
            continue
        heard = None if row.get("error") else _heard(form, out, row, tags, thresholds)
        is_stale = heard is not None and row["present"] not in (list(heard.present), _joined(heard.present))
        # A clip's windows are written by hearing it alone.
        is_enough = not is_stale if form is Format.CSV else "windows" in row
        if heard is None or not windows or is_enough:
            earlier[key_of(row["path"])] = Earlier(stamp, heard, row, is_stale)
        else:
            earlier.pop(key_of(row["path"]), None)  # what was told before is not the last word
    return earlier


def _stamp(row: Mapping[str, Any]) -> Stamp | None:
    """None: the file could not be read."""
    try:
        return Stamp(int(row["size_bytes"]), float(row["mtime_s"]))
    except (KeyError, TypeError, ValueError):
        return None


def _heard(
    form: Format, out: Path, row: Mapping[str, Any], tags: Sequence[str], thresholds: Mapping[str, float]
) -> Heard:
    # A row of JSON lines holds its scores and its length one level deeper than one of CSV.
    scores, audio = (row, row) if form is Format.CSV else (row["scores"], row["audio"])
    if set(tags) - set(scores) or (form is not Format.CSV and len(scores) != len(tags)):
        raise OutputError(f"{out} holds scores of other tags: name a new file with --out")
    scores = {tag: float(scores[tag]) for tag in tags}
    present = tuple(tag for tag, score in scores.items() if score >= thresholds[tag])
    return Heard(row["path"], scores, present, float(audio["duration_s"]))


def _begins_line(torn: str) -> bool:
    """Whether a row of JSON lines may begin so."""
    path = re.match(re.escape(LINE_BEGIN) + r'(?:[^"\\]|\\.?)*', torn)
    if path is None:
        return LINE_BEGIN.startswith(torn)
    rest = torn[path.end() :]
    return any(key.startswith(rest) or rest.startswith(key) for key in AFTER_PATH)


def _begins_csv(text: str, tags: Sequence[str], windows: bool) -> bool:
    """Whether our CSV may begin so: a header that was cut off, or a whole one and anything below."""
    header = _csv_header(columns_of(tags, windows))
    return header.startswith(text) or text.startswith(header)


def _json_rows_of(out: Path, text: str) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or "path" not in row:
            raise OutputError(
                f"{out}, line {number}: not written by music-tagger; name a new file with --out"
            )
        yield row


def _csv_rows_of(out: Path, text: str, tags: Sequence[str], windows: bool) -> Iterable[dict[str, Any]]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    expected = columns_of(tags, windows)
    if text and list(rows.fieldnames or ()) != list(expected):
        raise OutputError(f"{out} has other columns than {', '.join(expected)}: name a new file with --out")
    return rows


def columns_of(tags: Sequence[str], windows: bool) -> tuple[str, ...]:
    """The columns of CSV and Parquet."""
    span = ("start_s", "end_s") if windows else ()
    origin = (field.name for field in fields(Origin))
    return ("path", *span, *tags, "present", "duration_s", "size_bytes", "mtime_s", "error", *origin)


def _csv_header(columns: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(columns)
    return text.getvalue()


class LinesWriter:
    """JSON lines: an object a file, written at once."""

    def __init__(self, say: Say, origin: Origin, *, windows: bool, in_ascii: bool = False) -> None:
        self._say, self._origin, self._windows, self._in_ascii = say, origin, windows, in_ascii

    def add(self, outcome: Outcome) -> None:
        """Write the line."""
        self._write(_object(outcome, self._origin, self._windows))

    def again(self, earlier: Earlier) -> None:
        """Write what a former run wrote, with the file's stamp and the tags present as they are now."""
        self._write(_renewed(earlier))

    def close(self) -> None:
        """Nothing is left."""

    def _write(self, row: Mapping[str, Any]) -> None:
        self._say(json.dumps(row, ensure_ascii=self._in_ascii) + "\n")


class JsonWriter:
    """One indented array of objects, a file each."""

    def __init__(self, say: Say, origin: Origin, *, windows: bool, in_ascii: bool = False) -> None:
        self._say, self._origin, self._windows, self._in_ascii = say, origin, windows, in_ascii
        self._objects: list[dict[str, Any]] = []

    def add(self, outcome: Outcome) -> None:
        """Keep the object."""
        self._objects.append(_object(outcome, self._origin, self._windows))

    def close(self) -> None:
        """Write the array."""
        self._say(json.dumps(self._objects, ensure_ascii=self._in_ascii, indent=2) + "\n")


class CsvWriter:
    """A row a file, or a row a window; a failed file's row holds its problem in `error`."""

    def __init__(
        self, tags: Sequence[str], say: Say, origin: Origin, *, windows: bool, has_header: bool = False
    ) -> None:
        self._say, self._origin, self._windows = say, origin, windows
        self._columns = columns_of(tags, windows)
        if not has_header:
            say(_csv_header(self._columns))

    def add(self, outcome: Outcome) -> None:
        """Write the file's rows, all at once."""
        self._write(row | asdict(self._origin) for row in _rows(outcome, self._windows))

    def again(self, earlier: Earlier) -> None:
        """Write what a former run wrote, with the file's stamp and the tags present as they are now."""
        self._write([_renewed(earlier)])

    def close(self) -> None:
        """Nothing is left."""

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        shown = [_as_text(row) for row in rows]
        # Python quotes no carriage return by itself, and takes a bare one for the end of a row.
        quoting: Literal[0, 1] = (
            csv.QUOTE_ALL if any("\r" in row["path"] for row in shown) else csv.QUOTE_MINIMAL
        )
        csv.DictWriter(text, self._columns, lineterminator="\n", quoting=quoting).writerows(shown)
        self._say(text.getvalue())


class ParquetWriter:
    """The rows of CSV with their types, in one piece; needs the extra `library`."""

    def __init__(
        self, tags: Sequence[str], write: Callable[[bytes], None], origin: Origin, *, windows: bool
    ) -> None:
        import pyarrow

        kinds = dict.fromkeys(("path", "error", *asdict(origin)), pyarrow.string())
        kinds |= {"present": pyarrow.list_(pyarrow.string()), "size_bytes": pyarrow.int64()}
        number = pyarrow.float64()
        self._schema = pyarrow.schema([(name, kinds.get(name, number)) for name in columns_of(tags, windows)])
        self._write, self._origin, self._windows = write, asdict(origin), windows
        self._rows: list[dict[str, Any]] = []

    def add(self, outcome: Outcome) -> None:
        """Keep the rows."""
        own = {"path": as_utf8(outcome.path), **self._origin}
        self._rows += [row | own for row in _rows(outcome, self._windows)]

    def close(self) -> None:
        """Write the file."""
        from pyarrow import BufferOutputStream, Table, parquet

        data = BufferOutputStream()
        parquet.write_table(Table.from_pylist(self._rows, self._schema), data)
        self._write(data.getvalue().to_pybytes())


def as_utf8(path: str) -> str:
    """A path as Parquet takes it: bytes that are no UTF-8 are replaced."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class TableWriter:
    """A table for people, at the end; failed files are told on standard error as they come."""

    def __init__(self, tags: Sequence[str], say: Say | None, *, windows: bool) -> None:
        self._tags, self._say, self._windows = tags, say, windows
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
        self._row(Text(outcome.path), tagging.scores, tagging.audio.duration_s, outcome.present)
        for window in tagging.windows if self._windows else ():
            span = f"  {window.start_s:g} s to {window.end_s:g} s"
            self._row(Text(span), window.scores, window.end_s - window.start_s)

    def close(self) -> None:
        """Print the table, unless every file failed."""
        _print_table(self._table, self._say)

    def _row(
        self, clip: Text, scores: Mapping[str, float], seconds: float, present: Sequence[str] = ()
    ) -> None:
        cells = {tag: f"{score:.3f}" for tag, score in scores.items()}
        marked = [f"[bold green]{cells[tag]}[/]" if tag in present else cells[tag] for tag in self._tags]
        self._table.add_row(clip, *marked, f"{seconds:.1f}", Text(", ".join(present)))


class TimelineWriter:
    """A table with a row a tag of each file, where its score over time is drawn, a block a window."""

    def __init__(self, tags: Sequence[str], say: Say | None) -> None:
        self._tags, self._say = tags, say
        self._table = Table(box=None, pad_edge=False)
        self._table.add_column("clip", overflow="fold")
        self._table.add_column("tag", no_wrap=True)
        self._table.add_column("score", justify="right", no_wrap=True)
        self._table.add_column("present", no_wrap=True)
        self._table.add_column("timeline", overflow="fold", ratio=1)

    def add(self, outcome: Outcome) -> None:
        """Take the rows of the file's tags."""
        if isinstance(outcome, Failed):
            return
        for number, tag in enumerate(self._tags):
            score = f"{outcome.tagging.scores[tag]:.3f}"
            is_present = tag in outcome.present
            self._table.add_row(
                Text("" if number else outcome.path),
                tag,
                f"[bold green]{score}[/]" if is_present else score,
                "yes" if is_present else "",
                sparkline(window.scores[tag] for window in outcome.tagging.windows),
                end_section=tag == self._tags[-1],
            )

    def close(self) -> None:
        """Print the table, unless every file failed."""
        _print_table(self._table, self._say)


def sparkline(scores: Iterable[float]) -> str:
    """Scores in [0, 1] as blocks, the lowest for less than an eighth, the highest from seven eighths on."""
    return "".join(BLOCKS[min(int(score * len(BLOCKS)), len(BLOCKS) - 1)] for score in scores)


def _joined(present: Iterable[str]) -> str:
    """Tags as one text; a tag may have spaces."""
    return "; ".join(present)


def _renewed(earlier: Earlier) -> dict[str, Any]:
    assert earlier.heard is not None  # noqa: S101 - what failed is not written again
    return {**earlier.row, **earlier.stamp._asdict(), "present": list(earlier.heard.present)}


def _object(outcome: Outcome, origin: Origin, windows: bool) -> dict[str, Any]:
    if isinstance(outcome, Failed):
        error = {"type": outcome.type, "detail": outcome.detail, "hint": outcome.hint}
        stamp = outcome.stamp._asdict() if outcome.stamp else {}
        return {"path": outcome.path, "error": error, **stamp, **asdict(origin)}
    tagging = outcome.tagging
    timeline = {"windows": [asdict(window) for window in tagging.windows]} if windows else {}
    return {
        "path": outcome.path,
        "scores": tagging.scores,
        "present": outcome.present,
        **timeline,
        "audio": asdict(tagging.audio),
        **outcome.stamp._asdict(),
        **asdict(origin),
    }


def _rows(outcome: Outcome, windows: bool) -> list[dict[str, Any]]:
    """The rows of CSV and Parquet, with their types."""
    stamp = outcome.stamp._asdict() if outcome.stamp else {}
    if isinstance(outcome, Failed):
        return [{"path": outcome.path, **stamp, "error": outcome.type}]
    tagging = outcome.tagging
    spans: Iterable[WindowScores | None] = tagging.windows if windows else [None]
    common = {"present": list(outcome.present), "duration_s": tagging.audio.duration_s, **stamp}
    return [
        {"path": outcome.path, **(tagging.scores if window is None else _span(window)), **common}
        for window in spans
    ]


def _span(window: "WindowScores") -> dict[str, float]:
    return {"start_s": window.start_s, "end_s": window.end_s, **window.scores}


def _as_text(row: Mapping[str, Any]) -> dict[str, str]:
    """A row as CSV shows it: seconds to the millisecond, scores to six digits, the stamp to the last one."""
    shown = {}
    for name, value in row.items():
        if isinstance(value, list):
            shown[name] = _joined(value)
        elif isinstance(value, float) and name != "mtime_s":
            shown[name] = f"{value:.3f}" if name.endswith("_s") else f"{value:.6f}"
        else:
            shown[name] = str(value)
    return shown


def _print_table(table: Table, say: Say | None) -> None:
    if not table.row_count:
        return
    if say is None:
        with _writing("Standard output"):
            Console(width=None if sys.stdout.isatty() else WIDE).print(table)
    else:
        text = io.StringIO()
        Console(file=text, width=WIDE).print(table)
        say(text.getvalue())


def _print(text: str) -> None:
    with _writing("Standard output"):
        sys.stdout.write(text)
        sys.stdout.flush()


def _write(out: Path, text: str) -> None:
    _write_bytes(out, text.encode("utf-8", "surrogateescape"))


def _write_bytes(out: Path, data: bytes) -> None:
    with _writing(str(out)):
        write_whole(out, data)


def _append(out: Path, text: str) -> None:
    with _writing(str(out)):
        append(out, text.encode("utf-8", "surrogateescape"))


@contextmanager
def _writing(where: str) -> Iterator[None]:
    """A full disk and the like, as OutputError; a pipe that is closed ends the command without a word."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"{where} cannot be written: {error.strerror}.") from error
