"""Per-tag metrics, each with an interval bootstrapped by source.

Clips of one source (a package, an album, a generator) resemble each other, so resampling clips would promise
too much: whole sources are resampled, and a clip weighs as often as its source was drawn. Point estimates are
scikit-learn's; the resampled ones are the same formulas over a matrix of weights, so that 1,000 resamples are
a few passes over one array.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

Floats = NDArray[np.float64]

RESAMPLES = 1000
CONFIDENCE = 0.95
CALIBRATION_BINS = 10
MIN_USABLE_RESAMPLES = 0.8
"""Share of resamples in which a metric must be defined; of fewer, an interval would tell of lucky draws only.
A class that stands in k of many sources is missing from about exp(-k) of the draws: two sources suffice."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95% percentile interval. What is not defined is nan, and `reason` says why.

    The interval alone is nan where all clips are of one source, or too few resamples hold both classes (see
    `MIN_USABLE_RESAMPLES`).
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    reason: str = ""

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"n/a ({self.reason})"
        if math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class TagMetrics:
    """One tag on the clips whose label is known. `chance` is what a coin reaches as average precision."""

    tag: str
    threshold: float
    positives: int
    negatives: int
    sources: int
    chance: float
    roc_auc: Estimate
    average_precision: Estimate
    f1: Estimate
    calibration_error: Estimate


def tag_metrics(
    tag: str,
    labels: ArrayLike,
    scores: ArrayLike,
    sources: Sequence[str],
    threshold: float,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> TagMetrics:
    """Measure one tag.

    Args:
        tag: its name, handed through.
        labels: [N], 1 applies, 0 does not, nan is unknown. A soft label counts as 1 from 0.5.
        scores: [N] in [0, 1].
        sources: [N], what is resampled as a whole.
        threshold: the score from which the tag counts as present.
        resamples: how many bootstrap resamples; 0 leaves the intervals out.
        seed: of the resampling.

    Raises:
        ValueError: the three differ in length, or a score is not in [0, 1].
    """
    y, p, groups = _known(labels, scores, sources)
    positives = int(y.sum())
    number = len(np.unique(groups))
    # One source resampled is always itself: it would promise a certainty that is not there.
    weights = source_weights(groups, resamples if number > 1 else 0, seed)
    reason = _degenerate(positives, len(y))
    return TagMetrics(
        tag=tag,
        threshold=threshold,
        positives=positives,
        negatives=len(y) - positives,
        sources=number,
        chance=positives / len(y) if len(y) else math.nan,
        roc_auc=_estimate(reason, lambda: roc_auc(y, p), lambda: weighted_roc_auc(y, p, weights)),
        average_precision=_estimate(
            reason, lambda: average_precision_score(y, p), lambda: weighted_average_precision(y, p, weights)
        ),
        f1=_estimate(
            "" if positives else "no clip has the tag",
            lambda: f1_score(y, p >= threshold, zero_division=0.0),
            lambda: weighted_f1(y, p >= threshold, weights),
        ),
        calibration_error=_estimate(
            "" if len(y) else "no label is known",
            lambda: weighted_calibration_error(y, p, np.ones((1, len(y))))[0],
            lambda: weighted_calibration_error(y, p, weights),
        ),
    )


def plain(metrics: TagMetrics) -> dict[str, Any]:
    """Write the metrics as JSON values; what is not defined is None."""
    return {key: _without_nan(value) for key, value in asdict(metrics).items()}


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: labels [N] in {0, 1}, scores [N] of any scale; nan if a class is missing."""
    y = np.asarray(labels) >= 0.5
    return math.nan if _degenerate(int(y.sum()), len(y)) else float(roc_auc_score(y, scores))


def source_weights(sources: NDArray[np.str_], resamples: int, seed: int) -> Floats:
    """Draw whole sources with replacement, as many as there are: how often a clip counts, [resamples, N]."""
    names, index = np.unique(sources, return_inverse=True)
    if not len(names):
        return np.zeros((resamples, 0))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return drawn[:, index].astype(np.float64)


def weighted_roc_auc(labels: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve, ties halved: weights [R, N] -> [R]; nan where a class was not drawn."""
    hits, misses = _cumulated(labels, scores, weights)
    area = (np.diff(misses, axis=1) * (hits[:, 1:] + hits[:, :-1]) / 2).sum(axis=1)
    return _divide(area, hits[:, -1] * misses[:, -1])


def weighted_average_precision(labels: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Precision summed over recall's steps, not interpolated: weights [R, N] -> [R]; nan with one class."""
    hits, misses = _cumulated(labels, scores, weights)
    precision = np.nan_to_num(_divide(hits[:, 1:], hits[:, 1:] + misses[:, 1:]))
    found = _divide((np.diff(hits, axis=1) * precision).sum(axis=1), hits[:, -1])
    return np.where(misses[:, -1] > 0, found, np.nan)  # without a negative it would be 1, whatever the scores


def weighted_f1(labels: NDArray[np.bool_], present: NDArray[np.bool_], weights: Floats) -> Floats:
    """2 TP / (2 TP + FP + FN): weights [R, N] -> [R]; nan where no positive was drawn."""
    positives = weights @ labels
    f1 = _divide(2 * (weights @ (labels & present)), weights @ present + positives)
    return np.where(positives > 0, f1, np.nan)


def weighted_calibration_error(labels: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Expected calibration error over ten bins of equal width (Guo et al., 2017): weights [R, N] -> [R].

    The mean over clips of how far the mean score of a bin is from the share of its clips that have the tag.
    """
    bins = calibration_bins(scores)[:, None] == np.arange(CALIBRATION_BINS)
    gaps = (weights * (scores - labels)) @ bins.astype(np.float64)
    return _divide(np.abs(gaps).sum(axis=1), weights.sum(axis=1))


def calibration_bins(scores: Floats) -> NDArray[np.int64]:
    """The bin of each score: [0, 0.1) is 0, [0.9, 1] is 9."""
    return np.minimum((scores * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def _known(
    labels: ArrayLike, scores: ArrayLike, sources: Sequence[str]
) -> tuple[NDArray[np.bool_], Floats, NDArray[np.str_]]:
    y, p, groups = (
        np.asarray(labels, np.float64),
        np.asarray(scores, np.float64),
        np.asarray(sources, np.str_),
    )
    if not len(y) == len(p) == len(groups):
        raise ValueError(
            f"{len(y)} labels, {len(p)} scores and {len(groups)} sources: give one of each a clip"
        )
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("a score is not in [0, 1]: pass probabilities, not logits")
    known = ~np.isnan(y)
    return y[known] >= 0.5, p[known], groups[known]


def _degenerate(positives: int, clips: int) -> str:
    if not clips:
        return "no label is known"
    if not positives:
        return "no clip has the tag"
    return "every clip has the tag" if positives == clips else ""


def _estimate(reason: str, value: Callable[[], float], resampled: Callable[[], Floats]) -> Estimate:
    if reason:
        return Estimate(math.nan, reason=reason)
    return Estimate(float(value()), *interval(resampled()))


def interval(draws: Floats) -> tuple[float, float]:
    """95% percentile interval of resampled values [R]; nan where too few are defined."""
    usable = draws[~np.isnan(draws)]
    if len(usable) == 0 or len(usable) < MIN_USABLE_RESAMPLES * len(draws):
        return math.nan, math.nan
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(usable, [tail, 100 - tail])
    return float(low), float(high)


def _cumulated(labels: NDArray[np.bool_], scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """True and false positives at every distinct threshold, from none to all: two of [R, thresholds + 1]."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    weights, labels = weights[:, order], labels[order]

    def curve(of_class: NDArray[np.bool_]) -> Floats:
        sums = np.cumsum(weights * of_class, axis=1)[:, last_of_tie]
        return np.concatenate([np.zeros((len(sums), 1)), sums], axis=1)

    return curve(labels), curve(~labels)


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    quotient = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient
