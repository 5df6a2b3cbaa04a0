"""Advantages without a value model against loops straight from the papers' formulas, in float64."""

import numpy as np
import pytest

from rlhf.losses import (
    centred_group_advantages,
    leave_one_out_advantages,
    normalised_group_advantages,
    tied_share,
)

REWARDS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


@pytest.mark.parametrize("k", [2, 4])
def test_leave_one_out_is_the_reward_less_the_mean_of_the_others(k):
    rewards = REWARDS[:, :k].astype(np.float64)
    expected = [[row[i] - np.mean(np.delete(row, i)) for i in range(k)] for row in rewards]
    np.testing.assert_allclose(leave_one_out_advantages(REWARDS[:, :k]), expected, atol=1e-6)
    np.testing.assert_allclose(expected, k / (k - 1) * (rewards - rewards.mean(axis=1, keepdims=True)), atol=1e-12)


def test_group_advantages_are_centred_and_normalised():
    rewards = REWARDS.astype(np.float64)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(centred_group_advantages(REWARDS), centred, atol=1e-6)
    np.testing.assert_allclose(
        normalised_group_advantages(REWARDS), centred / rewards.std(axis=1, keepdims=True), atol=1e-5
    )


@pytest.mark.parametrize(
    "advantages", [leave_one_out_advantages, centred_group_advantages, normalised_group_advantages]
)
def test_a_group_of_equal_rewards_teaches_nothing(advantages):
    rewards = np.vstack([np.full(4, 0.75, np.float32), REWARDS[0]])
    assert not np.any(advantages(rewards)[0])
    assert np.all(np.isfinite(advantages(rewards)))
    assert tied_share(rewards) == 0.5
