"""Run a tagger over labelled clips and tell what it is worth: a table, and a Markdown report with plots.

The report's sections about rivals, robustness and what is no music are made by modules of their own.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from model.audio import AudioError
from model.bundle import Bundle
from model.evaluation.metrics import RESAMPLES, Floats, TagMetrics, plain, tag_metrics
from model.evaluation.plots import (
    MOST_SOURCES,
    plot_precision_recall,
    plot_reliability,
    plot_roc,
    plot_sources,
)
from model.tagger import Tagger
from model.training.corpus import Clip, ManifestError

WORST = 30
EVIDENCE = {
    "metadata": ("metadata",),
    "assumed": ("assumed",),
    "metadata or assumed": ("metadata", "assumed"),
    "taggers": ("taggers",),
}
HEADER = ("tag", "yes / no", "sources", "ROC-AUC", "average precision", "chance", "F1", "threshold", "ECE")

Progress = Callable[[Sequence[Clip]], Iterable[Clip]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Clips and what a tagger said of them, whoever ran it: `scores` [N, T] belongs to `clips` and `tags`."""

    title: str
    tags: tuple[str, ...]
    thresholds: tuple[float, ...]
    clips: tuple[Clip, ...]
    scores: Floats
    failures: tuple[tuple[Clip, str], ...] = ()

    @property
    def labels(self) -> Floats:
        """1, 0, or nan where unknown, [N, T]."""
        return label_array(self.clips, len(self.tags))

    @property
    def evidence(self) -> NDArray[np.str_]:
        """Where each label comes from, [N, T]."""
        return np.array([clip.evidence for clip in self.clips], np.str_).reshape(
            len(self.clips), len(self.tags)
        )

    @property
    def sources(self) -> NDArray[np.str_]:
        """The source of each clip, [N]."""
        return np.array([clip.source for clip in self.clips], np.str_)


def label_array(clips: Sequence[Clip], tags: int) -> Floats:
    """The clips' labels, nan where unknown: [len(clips), tags]."""
    rows = [[np.nan if label is None else label for label in clip.labels] for clip in clips]
    return np.array(rows, np.float64).reshape(len(clips), tags)


def check_generated(clips: Sequence[Clip], generated: Sequence[str]) -> None:
    """Check the names of generated sources before an hour of scoring is spent.

    Raises:
        ValueError: one of them is the source of no clip.
    """
    unknown = sorted(set(generated) - {clip.source for clip in clips})
    if unknown:
        raise ValueError(
            f"no clip has the source {', '.join(unknown)}: name sources as the manifest writes them"
        )


def score_clips(tagger: Tagger, clips: Sequence[Clip], progress: Progress = iter) -> Evaluation:
    """Tag every clip. One that cannot be read is noted in `failures` and does not stop the rest.

    Args:
        tagger: whose scores and thresholds are to be measured.
        clips: their labels in the order of the tagger's tags.
        progress: wraps the clips to show how far it is.
    """
    scored: list[Clip] = []
    rows: list[list[float]] = []
    failures: list[tuple[Clip, str]] = []
    for clip in progress(clips):
        try:
            scores = tagger.tag(clip.path).scores
        except (AudioError, OSError, ValueError) as error:  # ValueError: a name that no file can have
            failures.append((clip, str(error)))
            continue
        scored.append(clip)
        rows.append([scores[tag] for tag in tagger.bundle.tags])
    bundle = tagger.bundle
    return _evaluation(bundle, scored, rows, f"{bundle.name} {bundle.version}", failures)


def read_predictions(path: Path, clips: Sequence[Clip], bundle: Bundle) -> Evaluation:
    """Take the scores from a CSV instead of running a tagger: `id` and a column a tag, in [0, 1].

    Rows of other clips, and other columns, are ignored. The thresholds are the bundle's.

    Raises:
        ManifestError: the file cannot be read, lacks a column or all clips, names one twice, or holds a score
            that is no number in [0, 1]. A clip that it lacks is noted in `failures`.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:  # with Excel's mark, or without
            reader = csv.DictReader(handle)
            missing = [name for name in ("id", *bundle.tags) if name not in (reader.fieldnames or ())]
            if missing:
                raise ManifestError(f"{path}: no column {', '.join(missing)}; write id and a column a tag")
            lines = [(reader.reader.line_num, row) for row in reader]
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); give the path of a CSV") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: is no CSV UTF-8 ({error}); save it as that") from error
    scores: dict[str, list[float]] = {}
    wanted = {clip.id for clip in clips}
    for line, row in lines:
        if row["id"] not in wanted:
            continue
        if row["id"] in scores:
            raise ManifestError(f"{path}:{line}: the id {row['id']!r} stands twice; keep one row a clip")
        scores[row["id"]] = [_probability(path, line, tag, row[tag]) for tag in bundle.tags]
    scored = [clip for clip in clips if clip.id in scores]
    if not scored:
        raise ManifestError(f"{path}: no row for any of {len(clips)} clips; predict them, or choose others")
    failures = [(clip, f"{path.name} has no row for it") for clip in clips if clip.id not in scores]
    return _evaluation(bundle, scored, [scores[clip.id] for clip in scored], path.name, failures)


def _probability(path: Path, line: int, tag: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise ManifestError(f"{path}:{line}: {tag} is {text!r}; write a score from 0 to 1")
    return value


def _evaluation(
    bundle: Bundle,
    clips: Sequence[Clip],
    rows: Sequence[Sequence[float]],
    title: str,
    failures: Sequence[tuple[Clip, str]] = (),
) -> Evaluation:
    return Evaluation(
        title=title,
        tags=bundle.tags,
        thresholds=tuple(bundle.thresholds[tag] for tag in bundle.tags),
        clips=tuple(clips),
        scores=np.array(rows, np.float64).reshape(len(rows), len(bundle.tags)),
        failures=tuple(failures),
    )


def measure(
    evaluation: Evaluation,
    keep: NDArray[np.bool_] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[TagMetrics]:
    """Measure every tag, on the labels that `keep` [N, T] lets through (all of them without it)."""
    labels = evaluation.labels if keep is None else np.where(keep, evaluation.labels, np.nan)
    return [
        tag_metrics(
            tag,
            labels[:, column],
            evaluation.scores[:, column],
            evaluation.sources.tolist(),
            evaluation.thresholds[column],
            resamples=resamples,
            seed=seed,
        )
        for column, tag in enumerate(evaluation.tags)
    ]


def terminal_table(metrics: Sequence[TagMetrics], title: str) -> Table:
    """Lay the metrics out for a terminal."""
    table = Table(title=escape(title), caption=r"\[low, high]: 95% interval, bootstrapped by source")
    for column in HEADER:
        table.add_column(column, overflow="fold")
    for row in _metric_rows(metrics):
        table.add_row(*(escape(cell) for cell in row))
    return table


def metrics_json(metrics: Sequence[TagMetrics]) -> str:
    """Write the metrics as a JSON array; what is not defined is null."""
    return json.dumps([plain(item) for item in metrics], indent=2)


def write_report(
    evaluation: Evaluation, folder: Path, generated: Sequence[str] = (), sections: Sequence[str] = ()
) -> Path:
    """Write `report.md`, its plots and `scores.csv` into a folder, made if missing; return the report's path.

    Args:
        evaluation: what was scored.
        folder: where to write; files of an earlier report are replaced.
        generated: sources whose clips a music generator made; told apart if any is named.
        sections: lines of further sections, put before those about single sources and clips.
    """
    folder.mkdir(parents=True, exist_ok=True)
    labels, scores, right = evaluation.labels, evaluation.scores, labels_met(evaluation)
    plot_roc(evaluation.tags, labels, scores, folder / "roc.png")
    plot_precision_recall(evaluation.tags, labels, scores, folder / "precision_recall.png")
    plot_reliability(evaluation.tags, labels, scores, folder / "reliability.png")
    plot_sources(evaluation.tags, right, folder / "sources.png")
    _write_scores(evaluation, folder / "scores.csv")
    lines = [
        *_overview(evaluation),
        *_by_evidence(evaluation),
        *(_by_origin(evaluation, generated) if generated else ()),
        *sections,
        *_by_source(evaluation, right),
        *_worst(evaluation),
        *_failures(evaluation),
    ]
    report = folder / "report.md"
    report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return report


def labels_met(evaluation: Evaluation) -> dict[str, NDArray[np.int64]]:
    """Count, by source, the labels that the thresholded scores meet and those that are known: [T, 2] each."""
    known = ~np.isnan(evaluation.labels)
    met = known & ((evaluation.labels >= 0.5) == (evaluation.scores >= np.array(evaluation.thresholds)))
    names, rows = np.unique(evaluation.sources, return_inverse=True)
    counts = np.zeros((len(names), len(evaluation.tags), 2), np.int64)
    np.add.at(counts, rows, np.stack([met, known], axis=2))
    return dict(zip(names.tolist(), counts, strict=True))


def _metric_rows(metrics: Sequence[TagMetrics]) -> list[tuple[str, ...]]:
    return [
        (
            item.tag,
            f"{item.positives} / {item.negatives}",
            str(item.sources),
            str(item.roc_auc),
            str(item.average_precision),
            "n/a" if math.isnan(item.chance) else f"{item.chance:.3f}",
            str(item.f1),
            f"{item.threshold:.3f}",
            str(item.calibration_error),
        )
        for item in metrics
    ]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; every row has as many cells as the header."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(map(_in_a_cell, line)) + " |" for line in lines]


def _in_a_cell(text: str) -> str:
    """Names come from manifests: no line may end in one, and no tag begin."""
    return " ".join(text.split("\n")).replace("|", "\\|").replace("<", "&lt;")


def _overview(evaluation: Evaluation) -> list[str]:
    metrics = measure(evaluation)
    return [
        f"# Evaluation of {evaluation.title}",
        "",
        f"{len(evaluation.clips)} clips of {len(set(evaluation.sources.tolist()))} sources.",
        "A tag is measured on the clips whose label is known.",
        "[low, high] is the 95% interval, bootstrapped by source;",
        "chance is what random scores reach as average precision;",
        "ECE is the expected calibration error over ten bins.",
        "",
        *markdown_table(HEADER, _metric_rows(metrics)),
        "",
        f"Mean over the tags: ROC-AUC {_mean(item.roc_auc.value for item in metrics)}, "
        f"average precision {_mean(item.average_precision.value for item in metrics)}.",
        "",
        "![ROC curves](roc.png)",
        "![Precision-recall curves](precision_recall.png)",
        "![Reliability](reliability.png)",
    ]


def _mean(values: Iterable[float]) -> str:
    numbers = np.array(list(values))
    return "n/a (a tag has one class only)" if np.isnan(numbers).any() else f"{numbers.mean():.3f}"


def _by_evidence(evaluation: Evaluation) -> list[str]:
    lines = ["", "## By the labels' evidence"]
    for name, kinds in EVIDENCE.items():
        keep = np.isin(evaluation.evidence, kinds)
        if keep.any():
            lines += [
                "",
                f"### {name}",
                "",
                *markdown_table(HEADER, _metric_rows(measure(evaluation, keep))),
            ]
    return lines if len(lines) > 2 else []


def _by_origin(evaluation: Evaluation, generated: Sequence[str]) -> list[str]:
    of_generator = np.isin(evaluation.sources, generated)[:, None]
    lines = ["", "## Human and generated", "", f"Generated: {', '.join(sorted(generated))}."]
    for name, keep in (("human", ~of_generator), ("generated", of_generator)):
        lines += ["", f"### {name}", "", *markdown_table(HEADER, _metric_rows(measure(evaluation, keep)))]
    return [*lines, *_by_generator(evaluation, generated)]


def _by_generator(evaluation: Evaluation, generated: Sequence[str]) -> list[str]:
    """A row a generator; a single source gives no interval."""
    rows = []
    for source in sorted(generated):
        of_source = (evaluation.sources == source)[:, None]
        metrics = measure(evaluation, of_source, resamples=0)
        rows.append((source, str(int(of_source.sum())), *(_both(item) for item in metrics)))
    return [
        "",
        "### each generator",
        "",
        "ROC-AUC / average precision (yes / no).",
        "",
        *markdown_table(("generator", "clips", *evaluation.tags), rows),
    ]


def _both(item: TagMetrics) -> str:
    counts = f"({item.positives} / {item.negatives})"
    if item.roc_auc.reason:
        return f"n/a {counts}"
    return f"{item.roc_auc} / {item.average_precision} {counts}"


def _by_source(evaluation: Evaluation, right: dict[str, NDArray[np.int64]]) -> list[str]:
    clips = Counter(clip.source for clip in evaluation.clips)
    rows = [
        (
            source,
            str(clips[source]),
            *(f"{met} / {known}" for met, known in counts),
        )
        for source, counts in right.items()
    ]
    many = len(right) > MOST_SOURCES
    return [
        "",
        "## By source",
        "",
        "Labels that the thresholded scores meet, of those that are known."
        + (f" Of {len(right)} sources, the {MOST_SOURCES} largest are drawn." if many else ""),
        "",
        *markdown_table(("source", "clips", *evaluation.tags), rows),
        "",
        "![By source](sources.png)",
    ]


def _worst(evaluation: Evaluation) -> list[str]:
    wrong = np.nan_to_num(np.abs(evaluation.scores - evaluation.labels), nan=-1.0)
    present = evaluation.scores >= np.array(evaluation.thresholds)
    mistaken = (wrong >= 0) & (present != (evaluation.labels >= 0.5))
    order = np.argsort(-np.where(mistaken, wrong, -1.0), axis=None, kind="stable")[
        : min(WORST, int(mistaken.sum()))
    ]
    rows = []
    for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True):
        clip = evaluation.clips[row]
        rows.append(
            (
                evaluation.tags[column],
                f"{clip.labels[column]:g}",
                f"{evaluation.scores[row, column]:.3f}",
                clip.evidence[column] or "-",
                clip.id,
                clip.source,
            )
        )
    if not rows:
        return []
    table = markdown_table(("tag", "label", "score", "evidence", "clip", "source"), rows)
    return ["", f"## The {len(rows)} worst mistakes", "", *table]


def _failures(evaluation: Evaluation) -> list[str]:
    if not evaluation.failures:
        return []
    rows = [(clip.id, clip.source, message) for clip, message in evaluation.failures]
    return ["", "## Clips that could not be read", "", *markdown_table(("clip", "source", "why"), rows)]


def _write_scores(evaluation: Evaluation, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "source", *evaluation.tags, *(f"{tag}_label" for tag in evaluation.tags)])
        for clip, scores in zip(evaluation.clips, evaluation.scores, strict=True):
            writer.writerow(
                [clip.id, clip.source, *(f"{score:.6f}" for score in scores), *map(_text, clip.labels)]
            )


def _text(label: float | None) -> str:
    return "" if label is None else f"{label:g}"
