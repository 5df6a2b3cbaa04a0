"""Advantages of a rollout by each estimator, against loops over responses in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlhf.rewards.lagrangian import lagrangian_reward
from rlhf.rl.advantages import constrained_advantages, estimate_advantages
from rlhf.rl.config import PPOConfig

RANDOM = np.random.default_rng(0)
LENGTHS = (3, 1, 4, 2, 4, 4, 1, 2)
MASK = np.arange(4) < np.array(LENGTHS)[:, None]
SCORE = RANDOM.normal(size=8).astype(np.float32)
KL, VALUES = np.where(MASK, RANDOM.normal(size=(2, *MASK.shape)), 0.0).astype(np.float32)
COEFFICIENT = 0.3
CONFIG = PPOConfig(rollout_batch_size=8, minibatch_size=8, samples_per_prompt=4, response_length=4)
REWARDS = SCORE.astype(np.float64) - COEFFICIENT * KL.sum(axis=1)


def by_loop(kind: str) -> np.ndarray:
    """The advantage of each response."""
    group = 8 if kind == "reinforce" else 4
    advantages = np.zeros(8)
    for row, reward in enumerate(REWARDS):
        start = row // group * group
        others = REWARDS[start : start + group]
        if kind in ("rloo", "reinforce"):
            advantages[row] = reward - np.mean([other for i, other in enumerate(others, start) if i != row])
        else:
            advantages[row] = (reward - others.mean()) / (others.std() if kind == "grpo" else 1)
    return advantages


@pytest.mark.parametrize("kind", ["rloo", "grpo", "dr_grpo", "reinforce"])
def test_every_token_gets_its_responses_advantage(kind):
    config = replace(CONFIG, advantage=kind)
    advantages, returns, metrics = estimate_advantages(config, SCORE, KL, None, MASK, COEFFICIENT)
    np.testing.assert_allclose(advantages, np.where(MASK, by_loop(kind)[:, None], 0), atol=1e-5)
    assert returns is None and metrics["objective/tied_groups"] == 0


def test_whitening_is_on_for_gae_alone_unless_said():
    def spread(**changes):
        advantages, *_ = estimate_advantages(replace(CONFIG, **changes), SCORE, KL, VALUES, MASK, COEFFICIENT)
        return np.asarray(advantages)[MASK].std()

    assert spread() == pytest.approx(1, abs=1e-4)
    assert abs(spread(whiten_advantages=False) - 1) > 0.01
    assert abs(spread(advantage="rloo") - 1) > 0.01
    assert spread(advantage="rloo", whiten_advantages=True) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", ["gae", "rloo"])
def test_a_penalty_in_the_loss_is_not_in_the_reward(kind):
    config = replace(CONFIG, advantage=kind)
    with_kl, without_kl = (
        estimate_advantages(config, SCORE, kl, VALUES, MASK, 0.0)[0] for kl in (KL, np.zeros_like(KL))
    )
    np.testing.assert_array_equal(with_kl, without_kl)


MULTIPLIER = 2.5
COST, COST_VALUES = SCORE[::-1].copy(), np.where(MASK, RANDOM.normal(size=MASK.shape), 0.0).astype(np.float32)


def test_reward_and_cost_have_advantages_of_their_own():
    """Sums of temporal differences in float64, with the penalty taken off the reward and added to the cost."""
    config = replace(CONFIG, whiten_advantages=False, discount=0.9, gae_decay=0.8)
    found = constrained_advantages(
        config, SCORE, COST, KL, VALUES, COST_VALUES, MASK, np.float32(COEFFICIENT), np.float32(MULTIPLIER)
    )
    expected, returns = [], []
    for final, sign, values in ((SCORE, -1, VALUES), (COST, 1, COST_VALUES)):
        rewards = torch.tensor(sign * COEFFICIENT * KL, dtype=torch.float64)
        advantages = torch.zeros_like(rewards)
        values = torch.tensor(values, dtype=torch.float64)
        for row, length in enumerate(LENGTHS):
            rewards[row, length - 1] += float(final[row])
            later = following = 0.0
            for t in reversed(range(length)):
                later = rewards[row, t] + 0.9 * following - values[row, t] + 0.9 * 0.8 * later
                advantages[row, t], following = later, values[row, t]
        expected.append(advantages)
        returns.append((advantages + values)[torch.tensor(MASK)])
    combined = (expected[0] - MULTIPLIER * expected[1]) / (1 + MULTIPLIER)
    np.testing.assert_allclose(found[0], combined, atol=1e-5)
    for actual, wanted in zip(found[1:], returns, strict=True):
        np.testing.assert_allclose(np.asarray(actual)[MASK], wanted, atol=1e-5)


def test_two_value_models_that_agree_with_one_give_its_advantages():
    """Estimation is linear: one value model of the combined return is the case of (V_R − λ V_C) / (1 + λ)."""
    combined, values = (
        np.asarray(lagrangian_reward(reward, cost, MULTIPLIER))
        for reward, cost in ((SCORE, COST), (VALUES, COST_VALUES))
    )
    for config in (CONFIG, replace(CONFIG, whiten_advantages=False)):
        one, *_ = estimate_advantages(config, combined, KL, values, MASK, COEFFICIENT)
        two, *_ = constrained_advantages(
            config, SCORE, COST, KL, VALUES, COST_VALUES, MASK, np.float32(COEFFICIENT), np.float32(MULTIPLIER)
        )
        np.testing.assert_allclose(two, one, atol=1e-5)
