"""Values between points, the grid on which runs meet, and who is ahead."""

import math

import numpy as np
import pytest

from rlhf.errors import UserError
from rlhf.evaluation.equal_kl import Point, compare_at_equal_kl, shared_grid, value_at

SLOW = [Point(0.0, 1.0, 0.1), Point(4.0, 3.0, 0.2), Point(16.0, 2.0, 0.3)]
FAST = [Point(9.0, 4.0, 0.1), Point(-0.2, 1.0, 0.1)]


def test_values_are_linear_in_the_root_of_kl():
    distances = np.sqrt([point.kl for point in SLOW])
    for kl in (0.0, 0.3, 4.0, 7.0, 16.0):
        point = value_at(SLOW, kl)
        assert point.value == pytest.approx(np.interp(math.sqrt(kl), distances, [1.0, 3.0, 2.0]))
        assert point.error == pytest.approx(np.interp(math.sqrt(kl), distances, [0.1, 0.2, 0.3]))
    assert value_at(SLOW, 16.1) is None and value_at([], 1.0) is None
    assert value_at([Point(1.0, 0.0), Point(4.0, 1.0, 0.1)], 2.0).error is None


def test_the_grid_spans_what_two_runs_reach():
    grid = shared_grid({"slow": SLOW, "fast": FAST, "far": [Point(25.0, 0.0), Point(36.0, 0.0)]})
    assert grid[-1] == pytest.approx(9.0) and min(grid) > 0
    np.testing.assert_allclose(np.diff(np.sqrt(grid)), np.diff(np.sqrt(grid))[0])
    assert shared_grid({"slow": SLOW}) == [] == shared_grid({"slow": SLOW, "far": [Point(25.0, 0.0), Point(36.0, 0.0)]})


def test_the_lead_is_clear_where_it_is_larger_than_noise():
    (far, near) = compare_at_equal_kl({"slow": SLOW, "fast": FAST}, [9.0, 4.0])
    assert far["winner"] == "fast" and far["lead"] == pytest.approx(4.0 - 2.5) and far["clear"] is True
    assert near["winner"] == "slow" and near["lead"] == pytest.approx(3.0 - (1 + 3 * 2 / 3))  # exactly level: no lead
    assert near["clear"] is False
    (unknown,) = compare_at_equal_kl({"slow": SLOW, "bare": [Point(0.0, 0.0), Point(9.0, 1.0)]}, [4.0, 10.0])
    assert unknown["kl"] == 4.0 and unknown["clear"] is None
    with pytest.raises(UserError, match="not below 0"):
        compare_at_equal_kl({}, [-1.0])
