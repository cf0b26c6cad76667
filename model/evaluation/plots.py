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
CURVE = "#2b6cb0"
CHANCE = "#a0aec0"


def plot_roc(tags: Sequence[str], labels: Floats, scores: Floats, path: Path) -> None:
    """Draw a ROC curve a tag; labels [N, T] hold nan where unknown, scores [N, T] are in [0, 1]."""
    figure, axes = _panels(tags, "false positive rate", "true positive rate")
    for axis, known, score in _known_columns(axes, labels, scores):
        axis.plot([0, 1], [0, 1], linestyle=":", color=CHANCE)
        if _has_both_classes(known):
            false_positives, true_positives, _ = roc_curve(known, score)
            axis.plot(false_positives, true_positives, color=CURVE)
    figure.savefig(path, dpi=DPI)


def plot_precision_recall(tags: Sequence[str], labels: Floats, scores: Floats, path: Path) -> None:
    """Draw a precision-recall curve a tag, beside chance (the share of clips that have the tag)."""
    figure, axes = _panels(tags, "recall", "precision")
    for axis, known, score in _known_columns(axes, labels, scores):
        if _has_both_classes(known):
            precision, recall, _ = precision_recall_curve(known, score)
            axis.axhline(known.mean(), linestyle=":", color=CHANCE)
            axis.step(recall, precision, where="post", color=CURVE)
    figure.savefig(path, dpi=DPI)


def plot_reliability(tags: Sequence[str], labels: Floats, scores: Floats, path: Path) -> None:
    """Draw what share of clips has the tag against the mean score of their bin; a dot's area is its clips."""
    figure, axes = _panels(tags, "mean score", "share that has the tag")
    for axis, known, score in _known_columns(axes, labels, scores):
        bins = calibration_bins(score)
        filled = [bins == number for number in range(CALIBRATION_BINS) if (bins == number).any()]
        axis.plot([0, 1], [0, 1], linestyle=":", color=CHANCE)
        means = [score[chosen].mean() for chosen in filled]
        shares = [known[chosen].mean() for chosen in filled]
        sizes = [10 + 400 * chosen.mean() for chosen in filled]
        axis.plot(means, shares, color=CURVE, linewidth=0.8)
        axis.scatter(means, shares, s=sizes, color=CURVE, alpha=0.6)
    figure.savefig(path, dpi=DPI)


def plot_sources(tags: Sequence[str], right: Mapping[str, NDArray[np.int64]], path: Path) -> None:
    """Draw, by source, the share of known labels that the thresholded scores meet.

    `right` maps a source to [T, 2]: how many labels are met, and how many are known.
    """
    names = sorted(right, reverse=True)
    figure = Figure(figsize=(PANEL_IN * (len(tags) + 1), 1.2 + BAR_IN * len(names)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(tags), sharey=True))
    for column, (axis, tag) in enumerate(zip(axes, tags, strict=True)):
        met = np.array([right[name][column, 0] for name in names], float)
        known = np.array([right[name][column, 1] for name in names], float)
        axis.barh(names, np.divide(met, known, out=np.zeros_like(met), where=known > 0), color=CURVE)
        for row, count in enumerate(known):
            axis.text(0.02, row, f"{count:.0f}" if count else "no label", fontsize=6, va="center")
        axis.set(title=tag, xlim=(0, 1), xlabel="labels met (number: known)")
        axis.tick_params(labelsize=6)
    figure.savefig(path, dpi=DPI)


def _panels(tags: Sequence[str], x: str, y: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(PANEL_IN * len(tags), PANEL_IN + 0.4), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, len(tags))))
    for axis, tag in zip(axes, tags, strict=True):
        axis.set(title=tag, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y, aspect="equal")
    return figure, axes


def _known_columns(
    axes: Sequence[Axes], labels: Floats, scores: Floats
) -> Iterator[tuple[Axes, NDArray[np.bool_], Floats]]:
    for axis, label, score in zip(axes, labels.T, scores.T, strict=True):
        known = ~np.isnan(label)
        yield axis, label[known] >= 0.5, score[known]


def _has_both_classes(labels: NDArray[np.bool_]) -> bool:
    return bool(labels.any() and not labels.all())
