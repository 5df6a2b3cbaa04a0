"""Intervals that cover, calibration computed by hand, accuracy by bins, ties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.errors import UserError
from rlhf.evaluation import metrics
from rlhf.evaluation.metrics import (
    accuracy_by_bins,
    accuracy_by_gap,
    bootstrap_interval,
    expected_calibration_error,
    pair_accuracy,
    pair_correctness,
    reliability_table,
)


def test_interval_is_that_of_the_normal_approximation_for_many_values():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=4000)
    interval = bootstrap_interval(values, resamples=4000)
    half_width = 1.96 * values.std() / np.sqrt(4000)
    assert interval["value"] == pytest.approx(values.mean())
    assert interval["low"] == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert interval["high"] == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)


def test_interval_covers_the_mean_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for seed in range(300):
        interval = bootstrap_interval(random.random(40), seed=seed, resamples=400, level=0.9)
        covered += interval["low"] <= 0.5 <= interval["high"]
    assert 0.83 < covered / 300 < 0.95


def test_interval_depends_on_the_seed_alone(monkeypatch):
    values = np.arange(10.0)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    whole = bootstrap_interval(values, seed=1)
    monkeypatch.setattr(metrics, "MOST_DRAWN_AT_ONCE", 70)
    assert bootstrap_interval(values, seed=1) == whole


def test_interval_of_truth_values_and_of_equal_values():
    assert bootstrap_interval(np.asarray([True, False]))["value"] == 0.5
    assert bootstrap_interval(np.full(5, 2.0)) == {"value": 2.0, "low": 2.0, "high": 2.0}


@pytest.mark.parametrize("values", [[], [1.0, np.nan]])
def test_interval_of_nothing_or_nan_is_refused(values):
    with pytest.raises(UserError, match="bootstrap_interval"):
        bootstrap_interval(np.asarray(values))


def test_calibration_error_by_hand():
    confidence = np.asarray([0.9, 0.6, 0.8, 0.7])
    correct = np.asarray([1.0, 0.0, 0.5, 1.0])
    # Bins {0.6, 0.7} and {0.8, 0.9}: accuracies 0.5 and 0.75, confidences 0.65 and 0.85.
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(0.5 * 0.15 + 0.5 * 0.10)
    assert reliability_table(confidence, correct, bins=2) == [
        {"low": 0.6, "high": 0.7, "confidence": pytest.approx(0.65), "accuracy": 0.5, "count": 2},
        {"low": 0.8, "high": 0.9, "confidence": pytest.approx(0.85), "accuracy": 0.75, "count": 2},
    ]


def test_bins_hold_equally_many_and_all_examples():
    confidence = np.random.default_rng(0).random(103) ** 4
    counts = [row["count"] for row in reliability_table(confidence, confidence > 0.5)]
    assert sum(counts) == 103 and set(counts) == {10, 11}


def test_calibrated_predictions_have_small_error_and_overconfident_ones_do_not():
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 1.0, size=20_000)
    correct = random.random(20_000) < confidence
    assert expected_calibration_error(confidence, correct) < 0.015
    assert expected_calibration_error(np.full(20_000, 0.95), correct) == pytest.approx(0.95 - correct.mean())


@settings(deadline=None)
@given(seed=st.integers(0, 99), bins=st.integers(1, 12))
def test_calibration_does_not_depend_on_the_order_of_examples(seed, bins):
    random = np.random.default_rng(seed)
    confidence, correct = random.integers(5, 9, size=20) / 10, random.random(20) < 0.5
    order = random.permutation(20)
    shuffled = expected_calibration_error(confidence[order], correct[order], bins=bins)
    assert shuffled == pytest.approx(expected_calibration_error(confidence, correct, bins=bins))


def test_accuracy_between_given_edges():
    rows = accuracy_by_bins(np.asarray([-5, 0, 1, 9, 10, 11]), np.asarray([1, 1, 0, 1, 0, 1]), bins=[0, 1, 5, 10])
    assert rows == [
        {"low": 0.0, "high": 1.0, "value": 0.0, "accuracy": 1.0, "count": 1},
        {"low": 1.0, "high": 5.0, "value": 1.0, "accuracy": 0.0, "count": 1},
        {"low": 5.0, "high": 10.0, "value": 9.5, "accuracy": 0.5, "count": 2},
    ]


@pytest.mark.parametrize("edges", [[1.0], [2.0, 1.0], [1.0, 1.0]])
def test_edges_must_ascend(edges):
    with pytest.raises(UserError, match="ascending"):
        accuracy_by_bins(np.ones(2), np.ones(2), bins=edges)


def test_shapes_must_agree():
    with pytest.raises(UserError, match="as many values as outcomes"):
        accuracy_by_bins(np.ones(2), np.ones(3))


def test_ties_count_one_half():
    chosen, rejected = np.asarray([2.0, 1.0, 0.0, 3.0]), np.asarray([1.0, 1.0, 1.0, 3.0])
    np.testing.assert_array_equal(pair_correctness(chosen, rejected), [1, 0.5, 0, 0.5])
    assert pair_accuracy(chosen, rejected) == 0.5


def test_accuracy_by_gap_follows_the_logistic_curve_for_calibrated_scores():
    random = np.random.default_rng(0)
    gap = random.exponential(2.0, size=40_000)
    right = random.random(40_000) < 1 / (1 + np.exp(-gap))
    rows = accuracy_by_gap(np.where(right, gap, -gap), np.zeros(40_000))
    assert [row["value"] for row in rows] == sorted(row["value"] for row in rows)
    for row in rows:
        assert row["accuracy"] == pytest.approx(row["expected"], abs=0.03)
    assert rows[0]["expected"] < 0.6 and rows[-1]["expected"] > 0.95
