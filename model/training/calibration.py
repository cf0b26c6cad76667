"""From logits to probabilities: pooling over windows, Platt scaling, thresholds; on held-out clips."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve

from model.bundle import Calibration
from model.evaluation.metrics import roc_auc
from model.tagger import pool_logits, score

logger = logging.getLogger(__name__)

SHARPNESS: Final = (0.0, -1.0, -0.5, 0.5, 1.0, 2.0)
"""Poolings to choose from: the mean of the windows' logits, towards their minimum, towards their maximum.

No sharper one: clips of half a minute choose, and of a song's fifty windows one that errs must not decide.
"""
WORTH: Final = 0.003
"""Another pooling than the mean must earn this much ROC-AUC: less is luck on a few hundred clips."""

SMALLEST_SCALE: Final = 0.01
"""Of a tag whose logits do not rank: the scores hardly differ, and never say the opposite of the network."""
FLAT: Final = 0.02
"""Thresholds whose F1 is within this of the best count as equally good."""


def pool_clips(
    windows: Sequence[NDArray[np.float64]],
    sharpness: float,
    weights: Sequence[NDArray[np.float64]] | None = None,
) -> NDArray[np.float64]:
    """`pool_logits` of N clips: windows' logits [W] each, what they count [W] each -> [N]."""
    counts = weights or [np.ones(len(z)) for z in windows]
    return np.array([pool_logits(z, sharpness, w) for z, w in zip(windows, counts, strict=True)])


def calibrate(
    windows: Sequence[NDArray[np.float64]],
    labels: NDArray[np.float32],
    tag: str = "this tag",
    weights: Sequence[NDArray[np.float64]] | None = None,
) -> tuple[Calibration, float]:
    """One tag: windows' logits of N clips, labels [N] (NaN unknown) -> calibration, best F1 threshold.

    `weights` are what the windows count, all the same without. Of a `tag` that the logits do not rank, a
    warning tells.
    """
    known = ~np.isnan(labels)
    truth = labels[known]
    candidates = [pool_clips(windows, a, weights)[known] for a in SHARPNESS]
    aucs = [
        roc_auc(truth, pooled) - (WORTH if a else 0.0)
        for a, pooled in zip(SHARPNESS, candidates, strict=True)
    ]
    choice = int(np.argmax(aucs))
    pooled = candidates[choice]
    scale, bias = platt(pooled, truth, tag)
    calibration = Calibration(SHARPNESS[choice], scale, bias)
    return calibration, best_f1_threshold(score(pooled, calibration), truth)


def platt(
    logits: NDArray[np.float64], labels: NDArray[np.float32], tag: str = "this tag"
) -> tuple[float, float]:
    """Scale and bias by logistic regression on one feature, towards Platt's targets (1999).

    These are not 1 and 0 but (P + 1) / (P + 2) and 1 / (N + 2) with P positives and N negatives: few clips
    that happen to be told apart well do not make the scores extreme.

    The scale is above 0: one below would turn a tagger that is worse than chance into one that looks good on
    these very clips. Where that fits best, only the bias is fitted.
    """
    applies = labels >= 0.5
    positives = int(applies.sum())
    low, high = 1 / (len(labels) - positives + 2), (positives + 1) / (positives + 2)
    targets = np.where(applies, high, low)
    model = LogisticRegression(C=10.0).fit(
        np.concatenate([logits, logits])[:, None],
        np.repeat([1, 0], len(logits)),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    if model.coef_[0, 0] > 0:
        return float(model.coef_[0, 0]), float(model.intercept_[0])
    logger.warning(
        "the logits do not rank %s on the clips that calibrate it: its scores tell nothing; give it more"
        " clips, of more sources",
        tag,
    )
    scale = SMALLEST_SCALE / max(1.0, float(logits.std()))
    share = float(targets.mean())
    return scale, float(np.log(share / (1 - share)) - scale * logits.mean())


def best_f1_threshold(scores: NDArray[np.float64], labels: NDArray[np.float32]) -> float:
    """The score from which on a clip counts as positive: of those of almost the best F1, the nearest to 0.5.

    On a few hundred clips F1 is flat and jagged, its peak luck. A threshold lies halfway between two scores.
    """
    precision, recall, reached = precision_recall_curve(labels >= 0.5, scores)
    f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-9))[:-1]
    halfway = (reached + np.concatenate([[0.0], reached[:-1]])) / 2
    good = halfway[f1 >= f1.max() - FLAT]
    return float(f"{good[np.argmin(np.abs(good - 0.5))]:.4g}")  # a rare tag's lies near 0


def read_calibration(path: Path, tags: Sequence[str]) -> tuple[dict[str, Calibration], dict[str, float]]:
    """What `cross_validate` wrote into `calibration.json`: calibration and threshold by tag.

    Raises:
        OSError, ValueError, KeyError, TypeError: it cannot be read, lacks a tag, or holds a number that
            cannot be.
    """
    fitted = json.loads(path.read_text(encoding="utf-8"))
    calibrations, thresholds = {}, {}
    for tag in tags:
        numbers = {name: float(value) for name, value in dict(fitted[tag]).items()}
        thresholds[tag] = numbers.pop("threshold")
        calibrations[tag] = Calibration(**numbers)
        if not (
            np.isfinite([*numbers.values()]).all() and numbers["scale"] > 0 and 0 <= thresholds[tag] <= 1
        ):
            raise ValueError(f"{tag}: {fitted[tag]}")
    return calibrations, thresholds
