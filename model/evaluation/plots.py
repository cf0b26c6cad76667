"""Curves and bars as PNG: ROC, precision-recall, reliability, and how often each source's labels are met."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from model.evaluation.metrics import CALIBRATION_BINS, Floats, calibration_bins

DPI = 120
PANEL_IN = 3.2
BAR_IN = 0.2
MOST_SOURCES = 60
"""That are drawn: of thousands, the picture would be too large to be made or looked at."""
CURVE = "#2b6cb0"
BAR = "#90cdf4"
CHANCE = "#718096"
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def plot_roc(tags: Sequence[str], labels: Floats, scores: Floats, path: Path) -> None:
    """Draw a ROC curve a tag; labels [N, T] hold nan where unknown, scores [N, T] are in [0, 1]."""
    figure, axes = _panels(tags, "false positive rate", "true positive rate", "dotted: chance")
    for axis, known, score in _known_columns(axes, labels, scores):
        axis.plot([0, 1], [0, 1], linestyle=":", color=CHANCE)
        if _has_both_classes(known):
            false_positives, true_positives, _ = roc_curve(known, score)
            axis.plot(false_positives, true_positives, color=CURVE)
    figure.savefig(path, dpi=DPI)


def plot_precision_recall(tags: Sequence[str], labels: Floats, scores: Floats, path: Path) -> None:
    """Draw a precision-recall curve a tag, beside chance (the share of clips that have the tag)."""
    figure, axes = _panels(
        tags, "recall", "precision", "dotted: chance, the share of clips that have the tag"
    )
    for axis, known, score in _known_columns(axes, labels, scores):
        if _has_both_classes(known):
            precision, recall, _ = precision_recall_curve(known, score)
            axis.axhline(known.mean(), linestyle=":", color=CHANCE)
            axis.step(recall, precision, where="post", color=CURVE)
    figure.savefig(path, dpi=DPI)


def plot_reliability(tags: Sequence[str], labels: Floats, scores: Floats, path: Path) -> None:
    """Draw what share of clips has the tag against the mean score of their bin; a dot's area is its clips."""
    figure, axes = _panels(
        tags,
        "mean score",
        "share that has the tag",
        "a dot: the clips of a tenth of the scale, its area: how many; dotted: scores as they should be",
    )
    for axis, known, score in _known_columns(axes, labels, scores):
        bins = calibration_bins(score)
        filled = [bins == number for number in range(CALIBRATION_BINS) if (bins == number).any()]
        axis.plot([0, 1], [0, 1], linestyle=":", color=CHANCE)
        means = [score[chosen].mean() for chosen in filled]
        shares = [known[chosen].mean() for chosen in filled]
        sizes = [10 + 400 * chosen.mean() for chosen in filled]
        axis.plot(means, shares, color=CURVE, linewidth=0.8)
        axis.scatter(means, shares, s=sizes, color=CURVE, alpha=0.6, clip_on=False)
    figure.savefig(path, dpi=DPI)


def plot_sources(tags: Sequence[str], right: Mapping[str, NDArray[np.int64]], path: Path) -> None:
    """Draw, by source, the share of known labels that the thresholded scores meet, of the largest sources.

    Large are those of many known labels. `right` maps a source to [T, 2]: how many labels are met, and how
    many are known.
    """
    names = sorted(largest_sources(right), reverse=True)
    figure = Figure(figsize=(PANEL_IN * (len(tags) + 1), 1.0 + BAR_IN * len(names)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(tags), sharey=True))
    for column, (axis, tag) in enumerate(zip(axes, tags, strict=True)):
        met = np.array([right[name][column, 0] for name in names], float)
        known = np.array([right[name][column, 1] for name in names], float)
        axis.barh(
            [_plain(name) for name in names],
            np.divide(met, known, out=np.zeros_like(met), where=known > 0),
            color=BAR,
        )
        for row, (hits, count) in enumerate(zip(met, known, strict=True)):
            text = f"{hits:.0f} of {count:.0f}" if count else "no label"
            axis.text(0.02, row, text, fontsize=7, va="center")
        axis.set(
            title=_plain(tag), xlim=(0, 1), xticks=TICKS, ylim=(-0.6, len(names) - 0.4), xlabel="labels met"
        )
        axis.tick_params(labelsize=7)
    if len(names) < len(right):
        figure.suptitle(f"the {len(names)} largest of {len(right)} sources", fontsize=9)
    figure.savefig(path, dpi=DPI)


def largest_sources(right: Mapping[str, NDArray[np.int64]]) -> list[str]:
    """The sources that are drawn: at most 60, those of the most known labels first."""
    return sorted(right, key=lambda name: (-int(right[name][:, 1].sum()), name))[:MOST_SOURCES]


def _plain(name: str) -> str:
    """A name as it is: Matplotlib would read a formula between two dollars."""
    return name.replace("$", r"\$")


def _panels(tags: Sequence[str], x: str, y: str, note: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(PANEL_IN * len(tags), PANEL_IN + 0.2), layout="constrained")
    figure.suptitle(note, fontsize=9)
    axes = list(np.atleast_1d(figure.subplots(1, len(tags))))
    for axis, tag in zip(axes, tags, strict=True):
        axis.set(
            title=_plain(tag), xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y, aspect="equal"
        )
        axis.set(xticks=TICKS, yticks=TICKS)
    return figure, axes


def _known_columns(
    axes: Sequence[Axes], labels: Floats, scores: Floats
) -> Iterator[tuple[Axes, NDArray[np.bool_], Floats]]:
    for axis, label, score in zip(axes, labels.T, scores.T, strict=True):
        known = ~np.isnan(label)
        yield axis, label[known] >= 0.5, score[known]


def _has_both_classes(labels: NDArray[np.bool_]) -> bool:
    return bool(labels.any() and not labels.all())
