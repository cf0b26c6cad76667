"""Metrics against numbers worked by hand, against scikit-learn, and against what must hold for any scores."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from model.evaluation.metrics import (
    Floats,
    roc_auc,
    source_weights,
    tag_metrics,
    weighted_average_precision,
    weighted_calibration_error,
    weighted_f1,
    weighted_roc_auc,
)

# Ranked: yes .9, no .8, yes .7, no .3. Of the 2 x 2 pairs of a yes and a no, 3 stand the right way round.
LABELS = [1.0, 0.0, 1.0, 0.0]
SCORES = [0.9, 0.8, 0.7, 0.3]
SOURCES = ["a", "a", "b", "b"]


def cases(min_size: int = 2) -> st.SearchStrategy[list[tuple[bool, float, int]]]:
    """Clips as (label, score, weight), of both classes; scores on a grid, so that ties occur."""
    clip = st.tuples(st.booleans(), st.integers(0, 20).map(lambda step: step / 20), st.integers(1, 3))
    return st.lists(clip, min_size=min_size, max_size=30).filter(
        lambda clips: len({clip[0] for clip in clips}) == 2
    )


def columns(clips: list[tuple[bool, float, int]]) -> tuple[np.ndarray, Floats, Floats]:
    labels, scores, weights = zip(*clips, strict=True)
    return np.array(labels), np.array(scores), np.array([weights], np.float64)


def test_worked_example() -> None:
    metrics = tag_metrics("vocal", LABELS, SCORES, SOURCES, threshold=0.75)

    assert (metrics.positives, metrics.negatives, metrics.sources, metrics.chance) == (2, 2, 2, 0.5)
    assert metrics.roc_auc.value == pytest.approx(3 / 4)
    # Precision 1/1 at the first yes, 2/3 at the second, each a recall step of 1/2.
    assert metrics.average_precision.value == pytest.approx((1 + 2 / 3) / 2)
    # At 0.75: one hit, one false alarm, one miss.
    assert metrics.f1.value == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    # Each score is alone in its bin: |.9 - 1|, |.8 - 0|, |.7 - 1|, |.3 - 0|, averaged.
    assert metrics.calibration_error.value == pytest.approx((0.1 + 0.8 + 0.3 + 0.3) / 4)


def test_scores_of_one_bin_are_averaged_before_they_are_compared() -> None:
    labels, scores = np.array([True, False]), np.array([0.52, 0.58])

    error = weighted_calibration_error(labels, scores, np.ones((1, 2)))

    assert error == pytest.approx([0.05])


def test_perfect_ranking_scores_one_and_reversed_ranking_zero() -> None:
    perfect = tag_metrics("vocal", LABELS, LABELS, SOURCES, 0.5)
    reversed_ = tag_metrics("vocal", LABELS, [1 - label for label in LABELS], SOURCES, 0.5)

    assert (perfect.roc_auc.value, perfect.average_precision.value, perfect.f1.value) == (1, 1, 1)
    assert perfect.calibration_error.value == 0
    assert (reversed_.roc_auc.value, reversed_.f1.value, reversed_.calibration_error.value) == (0, 0, 1)


def test_unknown_labels_change_nothing() -> None:
    known = tag_metrics("vocal", LABELS, SCORES, SOURCES, 0.75)
    masked = tag_metrics("vocal", [*LABELS, math.nan], [*SCORES, 0.99], [*SOURCES, "c"], 0.75)

    assert masked == known


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([1.0, 1.0], "every clip has the tag"),
        ([0.0, 0.0], "no clip has the tag"),
        ([math.nan, math.nan], "no label is known"),
    ],
)
def test_one_class_is_not_a_number_and_says_why(labels: list[float], reason: str) -> None:
    metrics = tag_metrics("vocal", labels, [0.1, 0.9], ["a", "b"], 0.5)

    assert math.isnan(metrics.roc_auc.value)
    assert metrics.roc_auc.reason == reason
    assert str(metrics.average_precision) == f"n/a ({reason})"


def test_area_is_told_of_logits_too() -> None:
    assert roc_auc([1, 0, 1, 0], [4.0, 2.5, 1.0, -3.0]) == pytest.approx(3 / 4)
    assert math.isnan(roc_auc([1, 1], [0.0, 1.0]))


def test_f1_needs_a_positive_but_no_negative() -> None:
    metrics = tag_metrics("vocal", [1.0, 1.0], [0.1, 0.9], ["a", "b"], 0.5)

    assert metrics.f1.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1.0], [0.5, 0.5], "1 labels, 2 scores"),
        ([1.0, 0.0], [0.5, 1.2], "not logits"),
        ([1.0], [math.nan], "not in"),
    ],
)
def test_unusable_input_is_refused(labels: list[float], scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tag_metrics("vocal", labels, scores, ["a"] * len(scores), 0.5)


def test_sources_are_drawn_whole() -> None:
    weights = source_weights(np.array(["a", "a", "b", "c", "c", "c"]), resamples=200, seed=1)

    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()


def test_interval_is_wider_when_the_same_clips_come_from_fewer_sources() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(200) < 0.4).astype(float)
    scores = np.clip(0.3 * labels + rng.random(200) * 0.7, 0, 1)

    many = tag_metrics("vocal", labels, scores, [str(clip) for clip in range(200)], 0.5).roc_auc
    # Sorted by score, so that clips of a source resemble each other, as they do in life.
    rank = np.argsort(np.argsort(scores))
    few = tag_metrics("vocal", labels, scores, [str(clip // 20) for clip in rank], 0.5).roc_auc

    assert few.value == many.value
    assert few.high - few.low > 1.5 * (many.high - many.low)


def test_interval_of_many_clips_covers_what_the_normal_approximation_says() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat([1.0, 0.0], 300)
    scores = np.clip(rng.normal(0.45 + 0.1 * labels, 0.1), 0, 1)

    estimate = tag_metrics("vocal", labels, scores, [str(clip) for clip in range(600)], 0.5).roc_auc

    # Hanley & McNeil (1982), the standard error of an area A from n positives and m negatives.
    area, n, m = estimate.value, 300, 300
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (n - 1) * (q1 - area**2) + (m - 1) * (q2 - area**2)) / (n * m)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.15)


def test_same_seed_same_interval() -> None:
    rng = np.random.default_rng(5)
    labels, scores, sources = rng.integers(0, 2, 40), rng.random(40), [str(clip) for clip in range(40)]

    first, again, other = (
        tag_metrics("vocal", labels, scores, sources, 0.5, seed=seed) for seed in (7, 7, 8)
    )

    assert first == again
    assert first.roc_auc.value == other.roc_auc.value
    assert first.roc_auc.low != other.roc_auc.low


@pytest.mark.parametrize("resamples", [0, 1000])
def test_interval_is_left_out_when_many_resamples_lack_a_class(resamples: int) -> None:
    # Two sources, one class each: half of the resamples draw one of them twice.
    metrics = tag_metrics("vocal", [1.0, 0.0], [0.9, 0.1], ["a", "b"], 0.5, resamples=resamples)

    assert math.isnan(metrics.roc_auc.low)
    assert str(metrics.roc_auc) == "1.000"


def test_one_source_gives_no_interval() -> None:
    metrics = tag_metrics("vocal", LABELS, SCORES, ["a"] * 4, 0.75)

    assert metrics.sources == 1
    assert [str(metrics.roc_auc), str(metrics.calibration_error)] == ["0.750", "0.375"]


@given(cases())
def test_resampled_metrics_are_those_of_sklearn(clips: list[tuple[bool, float, int]]) -> None:
    labels, scores, weights = columns(clips)

    assert weighted_roc_auc(labels, scores, weights) == pytest.approx(
        [roc_auc_score(labels, scores, sample_weight=weights[0])]
    )
    assert weighted_average_precision(labels, scores, weights) == pytest.approx(
        [average_precision_score(labels, scores, sample_weight=weights[0])]
    )
    assert weighted_f1(labels, scores >= 0.5, weights) == pytest.approx(
        [f1_score(labels, scores >= 0.5, sample_weight=weights[0], zero_division=0.0)]
    )


@given(cases())
def test_a_weight_is_the_clip_repeated(clips: list[tuple[bool, float, int]]) -> None:
    labels, scores, weights = columns(clips)
    times = weights[0].astype(int)
    repeated = np.repeat(labels, times), np.repeat(scores, times), np.ones((1, times.sum()))

    assert weighted_calibration_error(labels, scores, weights) == pytest.approx(
        weighted_calibration_error(*repeated)
    )
    assert weighted_roc_auc(labels, scores, weights) == pytest.approx(weighted_roc_auc(*repeated))


@given(cases())
def test_ranking_metrics_ignore_how_scores_are_stretched(clips: list[tuple[bool, float, int]]) -> None:
    labels, scores, weights = columns(clips)
    stretched = 1 / (1 + np.exp(-6 * (scores - 0.3)))

    assert weighted_roc_auc(labels, stretched, weights) == pytest.approx(
        weighted_roc_auc(labels, scores, weights)
    )
    assert weighted_average_precision(labels, stretched, weights) == pytest.approx(
        weighted_average_precision(labels, scores, weights)
    )


@given(cases())
def test_turning_labels_and_scores_over_keeps_the_area(clips: list[tuple[bool, float, int]]) -> None:
    labels, scores, weights = columns(clips)

    assert weighted_roc_auc(~labels, 1 - scores, weights) == pytest.approx(
        weighted_roc_auc(labels, scores, weights)
    )


@given(cases())
def test_metrics_are_fractions(clips: list[tuple[bool, float, int]]) -> None:
    labels, scores, weights = columns(clips)

    for values in (
        weighted_roc_auc(labels, scores, weights),
        weighted_average_precision(labels, scores, weights),
        weighted_f1(labels, scores >= 0.5, weights),
        weighted_calibration_error(labels, scores, weights),
    ):
        assert 0 <= values[0] <= 1 + 1e-12
