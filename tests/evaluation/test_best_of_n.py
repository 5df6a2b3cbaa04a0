"""Best-of-n against all subsets one by one, and its divergence against exact distributions."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.errors import UserError
from rlhf.evaluation.best_of_n import (
    best_of_n_estimate,
    best_of_n_kl_bound,
    best_of_n_kl_estimate,
    best_of_n_variance,
)


def mean_over_all_subsets(proxy, gold, n):
    winners = []
    for subset in combinations(range(len(proxy)), n):
        best = max(proxy[member] for member in subset)
        winners.append(np.mean([gold[member] for member in subset if proxy[member] == best]))
    return np.mean(winners)


def test_published_example():
    proxy, gold = np.asarray([0.1, 0.5, 0.3, 0.9]), np.asarray([1.0, 2.0, 0.0, -1.0])
    assert best_of_n_estimate(proxy, gold, 2) == pytest.approx(1 / 6)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), samples=st.integers(1, 7))
def test_equals_the_mean_over_all_subsets_with_ties_shared(data, samples):
    numbers = st.lists(st.integers(0, 3), min_size=samples, max_size=samples)
    proxy, gold = (np.asarray(data.draw(numbers), float) for _ in range(2))
    n = data.draw(st.integers(1, samples))
    expected = mean_over_all_subsets(proxy, gold, n)
    assert best_of_n_estimate(proxy, gold, n) == pytest.approx(expected, abs=1e-12)
    order = np.random.default_rng(0).permutation(samples)
    assert best_of_n_estimate(proxy[order], gold[order], n) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), samples=st.integers(2, 7))
def test_variance_is_that_of_leaving_out_each_sample_in_turn(data, samples):
    numbers = st.lists(st.integers(0, 3), min_size=samples, max_size=samples)
    proxy, gold = (np.asarray(data.draw(numbers), float) for _ in range(2))
    n = data.draw(st.integers(1, samples - 1))
    kept = [[other for other in range(samples) if other != left_out] for left_out in range(samples)]
    without = np.array([mean_over_all_subsets(proxy[rest], gold[rest], n) for rest in kept])
    expected = (samples - 1) / samples * np.sum(np.square(without - without.mean()))
    assert best_of_n_variance(proxy, gold, n) == pytest.approx(expected, abs=1e-12)


def test_variance_is_the_means_own_for_one_and_close_to_the_truth_for_more():
    random = np.random.default_rng(0)
    proxy = random.normal(size=(4000, 16))
    gold = 0.6 * proxy + random.normal(size=proxy.shape)
    np.testing.assert_allclose(best_of_n_variance(proxy, gold, 1), gold.var(axis=1, ddof=1) / 16)
    assert np.isnan(best_of_n_variance(proxy, gold, 16)).all()
    # All rows are draws of one prompt, so that the scatter of their estimates is the variance itself.
    truth = best_of_n_estimate(proxy, gold, 4).var()
    assert truth * 0.95 < best_of_n_variance(proxy, gold, 4).mean() < truth * 1.25


def test_prompts_are_estimated_each_for_itself_and_the_extremes_are_mean_and_winner():
    random = np.random.default_rng(0)
    proxy, gold = random.normal(size=(2, 3, 5, 8))
    estimate = best_of_n_estimate(proxy, gold, 3)
    assert estimate.shape == (3, 5)
    assert estimate[2, 4] == pytest.approx(mean_over_all_subsets(proxy[2, 4], gold[2, 4], 3))
    np.testing.assert_allclose(best_of_n_estimate(proxy, gold, 1), gold.mean(axis=-1))
    winners = np.take_along_axis(gold, proxy.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(best_of_n_estimate(proxy, gold, 8), winners)


def test_hundreds_of_samples_do_not_overflow():
    scores = np.arange(1000.0)
    expected = 500 / 501 * 1001 - 1  # the mean of the largest of n numbers drawn from 1 … N is n (N + 1) / (n + 1)
    assert best_of_n_estimate(scores, scores, 500) == pytest.approx(expected, rel=1e-9)


def test_wrong_arguments_are_refused():
    scores = np.zeros((2, 4))
    for n in (0, 5):
        with pytest.raises(UserError, match="from 1 to 4"):
            best_of_n_estimate(scores, scores, n)
    with pytest.raises(UserError, match="shape"):
        best_of_n_estimate(scores, np.zeros((2, 3)), 1)
    with pytest.raises(UserError, match="NaN"):
        best_of_n_estimate(scores * np.nan, scores, 1)


# Probabilities from the worst response to the best, n, then exact divergence, bound and plug-in estimate to four
# decimals.
DISTRIBUTIONS = [
    (np.full(3, 1 / 3), 2, 0.1617, 0.1931, 0.1894),
    (np.full(4, 1 / 4), 4, 0.5903, 0.6363, 0.6159),
    (np.asarray([0.5, 0.3, 0.2]), 8, 1.0685, 1.2044, 1.1048),
    (np.full(100, 1 / 100), 4, 0.6362, 0.6363, 0.6363),
    (np.asarray([0.9, 0.1]), 4, 0.2174, 0.6363, 0.2870),
]


@pytest.mark.parametrize(("probabilities", "n", "exact", "bound", "estimate"), DISTRIBUTIONS)
def test_divergence_of_known_distributions(probabilities, n, exact, bound, estimate):
    reached = np.cumsum(probabilities)
    winner = reached**n - (reached - probabilities) ** n
    assert np.sum(winner * np.log(winner / probabilities)) == pytest.approx(exact, abs=1e-4)
    assert best_of_n_kl_bound(n) == pytest.approx(bound, abs=1e-4)
    assert np.sum(winner * best_of_n_kl_estimate(np.log(probabilities), n)) == pytest.approx(estimate, abs=1e-4)


def test_estimate_goes_from_nothing_for_a_certain_response_to_the_bound_for_an_unlikely_one():
    np.testing.assert_allclose(best_of_n_kl_estimate(np.asarray([0.0, -1e-17]), 16), [0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(
        best_of_n_kl_estimate(np.asarray([-40.0, -2000.0]), 16), best_of_n_kl_bound(16), rtol=1e-9
    )


@given(log_prob=st.floats(-50, 0), n=st.integers(1, 1000))
def test_estimate_lies_between_nothing_and_the_bound(log_prob, n):
    estimate = best_of_n_kl_estimate(np.asarray(log_prob), n)
    assert -1e-9 <= estimate <= best_of_n_kl_bound(n) + 1e-9


def test_one_sample_moves_nothing():
    assert best_of_n_kl_bound(1) == 0
    np.testing.assert_allclose(best_of_n_kl_estimate(np.log([0.1, 0.9]), 1), [0, 0], atol=1e-12)
    np.testing.assert_allclose(best_of_n_kl_bound(np.asarray([1, 2])), [0, np.log(2) - 0.5])
