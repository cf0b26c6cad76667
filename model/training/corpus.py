"""The manifest: a CSV with one row per clip, its labels and where they come from.

Columns: `id`, `file` (relative to the manifest's folder), `source` (what must stay on one side of a split: a
package, an album, an artist; a mix names several, with ` + ` between them), `split` (`train`, `val`, or
another that only `evaluate` reads), `train_ok` (1 or nothing: may train weights that are given away; 0: may
not), and a column a tag: 1, 0, a number between for how likely it is, or nothing (unknown). `TAG_evidence`
columns are optional; other columns are ignored.
"""

import csv
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REQUIRED = ("id", "file")
DEFAULTS = {"source": "", "split": "train", "train_ok": "1"}
COLUMNS = (*REQUIRED, *DEFAULTS)
SPLITS = ("train", "val", "test")
REST = "more fields than the header"
SEPARATOR = " + "
"""Between the sources of a mix."""


class ManifestError(ValueError):
    """A manifest that cannot be used; the message names the file, the line and what to do."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One row of a manifest. `labels` and `evidence` follow the order of the tags that were asked for."""

    id: str
    path: Path
    split: str
    train_ok: bool
    source: str
    labels: tuple[float | None, ...]
    evidence: tuple[str, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """Of all that is in it: one, but for a mix."""
        return tuple(self.source.split(SEPARATOR))


def read_manifest(path: Path, tags: Sequence[str]) -> list[Clip]:
    """Read every row of a manifest.

    Raises:
        ManifestError: the file is missing, empty, not UTF-8 or no CSV, lacks a column, or holds a label other
            than 1, 0, a soft label between them, or nothing, or a `train_ok` other than 1, 0 or nothing.
    """
    try:
        # With the mark that Excel writes, or without.
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, restkey=REST)
            lines = reader.reader  # whose line_num also counts empty lines, and one that is no CSV
            _check_columns(path, reader.fieldnames or (), tags)
            rows = [(lines.line_num, _clip(path, lines.line_num, row, tags)) for row in reader]
    except OSError as error:
        raise ManifestError(
            f"{path}: cannot be read ({error.strerror}); give the path of a manifest CSV"
        ) from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: is not UTF-8 ({error.reason}); save it as CSV UTF-8") from error
    except csv.Error as error:
        raise ManifestError(f"{path}:{lines.line_num}: is no CSV ({error}); save it anew") from error
    if not rows:
        raise ManifestError(f"{path}: no rows below the header; add one row per clip")
    _check_ids(path, rows)
    return [clip for _, clip in rows]


def write_manifest(path: Path, clips: Sequence[Clip], tags: Sequence[str]) -> None:
    """Write what `read_manifest` reads: a row a clip, its labels in the order of the tags."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        rows = csv.writer(handle)
        rows.writerow([*COLUMNS, *tags, *(f"{tag}_evidence" for tag in tags)])
        for clip in clips:
            place = clip.path.resolve(), clip.source, clip.split, int(clip.train_ok)
            rows.writerow([clip.id, *place, *clip.labels, *clip.evidence])  # csv writes None as nothing


def _check_columns(path: Path, columns: Sequence[str], tags: Sequence[str]) -> None:
    twice = [name for name, times in Counter(columns).items() if times > 1 and name in (*COLUMNS, *tags)]
    if twice:
        raise ManifestError(f"{path}: column {twice[0]} stands twice; leave one of them out")
    missing = [name for name in (*REQUIRED, *tags) if name not in columns]
    if missing:
        raise ManifestError(
            f"{path}: no column {', '.join(missing)}; the header has {', '.join(columns) or 'nothing'}."
            " Name your own tags by --tags, or by --weights and their bundle"
        )


def _check_ids(path: Path, rows: Sequence[tuple[int, Clip]]) -> None:
    seen: set[str] = set()
    for line, clip in rows:
        if clip.id in seen:
            raise ManifestError(
                f"{path}:{line}: the id {clip.id!r} stands twice; give every clip an id of its own"
            )
        seen.add(clip.id)


def _clip(path: Path, line: int, row: dict[str, str], tags: Sequence[str]) -> Clip:
    if any(row.get(REST, ())):  # tables write empty ones behind the last column
        raise ManifestError(
            f"{path}:{line}: has more fields than the header; put one that holds a comma into quotes"
        )
    value = {**DEFAULTS, **{key: text for key, text in row.items() if text}}
    value |= {name: unicodedata.normalize("NFC", value[name].strip()) for name in ("source", "split")}
    split = value["split"].lower()
    if split in SPLITS and split != value["split"]:
        raise ManifestError(f"{path}:{line}: split is {value['split']!r}; write {split}")
    if "\0" in value.get("file", ""):
        raise ManifestError(f"{path}:{line}: file holds a NUL, so it is no path; write the clip's path")
    for name in REQUIRED:
        if name not in value:
            raise ManifestError(f"{path}:{line}: {name} is empty; every clip needs one")
    return Clip(
        id=value["id"],
        path=path.parent / value["file"],
        split=value["split"] or DEFAULTS["split"],
        train_ok=_train_ok(path, line, value["train_ok"]),
        source=value["source"] or value["id"],
        labels=tuple(_label(path, line, tag, row[tag]) for tag in tags),
        evidence=tuple(row.get(f"{tag}_evidence") or "" for tag in tags),
    )


def _train_ok(path: Path, line: int, text: str) -> bool:
    meant = {"1": True, "1.0": True, "0": False, "0.0": False}.get(text.strip())
    if meant is None:
        raise ManifestError(f"{path}:{line}: train_ok is {text!r}; write 1 or 0, or leave it empty for 1")
    return meant


def _label(path: Path, line: int, tag: str, text: str | None) -> float | None:
    if not text:
        return None
    try:
        label = float(text)
    except ValueError:
        label = -1.0
    if not 0.0 <= label <= 1.0:
        raise ManifestError(
            f"{path}:{line}: {tag} is {text!r}; write 1, 0, a number between, or leave it empty for unknown"
        )
    return label
