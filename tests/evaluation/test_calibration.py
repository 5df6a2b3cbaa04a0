"""The fitted temperature against a search, and on scores whose unit is known."""

import numpy as np
import pytest

from rlhf.errors import UserError
from rlhf.evaluation.calibration import fit_temperature


def negative_log_likelihood(gap, preference, temperature):
    return np.mean(
        preference * np.log1p(np.exp(-gap / temperature)) + (1 - preference) * np.log1p(np.exp(gap / temperature))
    )


@pytest.mark.parametrize("soft", [False, True])
def test_no_other_temperature_is_likelier(soft):
    random = np.random.default_rng(0)
    gap = random.normal(0.8, 2, size=300)
    preference = random.uniform(0.5, 1, size=300) if soft else np.ones(300)
    found = fit_temperature(gap, preference)
    losses = [negative_log_likelihood(gap, preference, found * factor) for factor in (0.99, 1.0, 1.01)]
    assert losses[1] == min(losses)
    grid = np.geomspace(0.2, 20, 4001)
    assert found == pytest.approx(
        grid[np.argmin([negative_log_likelihood(gap, preference, t) for t in grid])], rel=2e-3
    )


def test_scores_in_another_unit_are_brought_back_to_log_odds():
    random = np.random.default_rng(1)
    log_odds = random.normal(0, 2, size=60_000)
    right = random.uniform(size=len(log_odds)) < 1 / (1 + np.exp(-log_odds))
    gap = np.where(right, log_odds, -log_odds)
    assert fit_temperature(3.0 * gap) == pytest.approx(3.0, rel=0.03)


def test_perfect_and_useless_scores_meet_the_bounds_and_bad_ones_are_refused():
    assert fit_temperature(np.ones(5)) == pytest.approx(0.01, rel=1e-3)
    assert fit_temperature(-np.ones(5)) == pytest.approx(100, rel=1e-3)
    for gap in (np.array([]), np.array([np.nan])):
        with pytest.raises(UserError):
            fit_temperature(gap)
