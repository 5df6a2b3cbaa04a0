"""Advantages of a rollout by each estimator, against loops over responses in float64."""

from dataclasses import replace

import numpy as np
import pytest

from rlhf.rl.advantages import estimate_advantages
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
