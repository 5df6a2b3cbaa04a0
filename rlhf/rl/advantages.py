"""Advantages of a rollout, by a value model or by comparing responses with one another."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf.losses.advantages import generalized_advantages, whiten
from rlhf.losses.kl import kl_shaped_rewards
from rlhf.losses.response_advantages import (
    centred_group_advantages,
    leave_one_out_advantages,
    normalised_group_advantages,
    tied_share,
)
from rlhf.rewards.lagrangian import lagrangian_reward
from rlhf.rl.config import PPOConfig

BY_RESPONSE = {
    "rloo": leave_one_out_advantages,
    "grpo": normalised_group_advantages,
    "dr_grpo": centred_group_advantages,
    "reinforce": leave_one_out_advantages,
}


def estimate_advantages(
    config: PPOConfig,
    score: Float[Array, " batch"],
    kl: Float[Array, "batch response_time"],
    values: Float[Array, "batch response_time"] | None,
    mask: Bool[Array, "batch response_time"],
    kl_coefficient: Float[Array, ""],
) -> tuple[
    Float[Array, "batch response_time"], Float[Array, "batch response_time"] | None, dict[str, Float[Array, ""]]
]:
    """What each token was better than expected.

    Args:
        config: which estimator, and its settings.
        score: of each response; the responses to one prompt stand beside each other.
        kl: penalty of each token before its coefficient.
        values: of the states before each token; None for estimators without a value model.
        mask: True on response tokens.
        kl_coefficient: weight of the penalty in the reward.

    Returns:
        Advantages, returns (None without a value model), and metrics.
    """
    rewards = kl_shaped_rewards(score, kl, mask, kl_coefficient)
    returns, metrics = None, {}
    if config.needs_value_model:
        advantages, returns = _by_value_model(config, rewards, values, mask)
    else:
        responses = config.rollout_batch_size if config.advantage == "reinforce" else config.samples_per_prompt
        groups = rewards.sum(axis=1).reshape(-1, responses)
        by_response = BY_RESPONSE[config.advantage](groups).reshape(-1, 1)
        advantages = jnp.where(mask, by_response, 0.0)
        metrics["objective/tied_groups"] = tied_share(groups)
    if config.whitens_advantages:
        advantages = whiten(advantages, mask)
    return advantages, returns, metrics


def constrained_advantages(
    config: PPOConfig,
    score: Float[Array, " batch"],
    cost: Float[Array, " batch"],
    kl: Float[Array, "batch response_time"],
    values: Float[Array, "batch response_time"],
    cost_values: Float[Array, "batch response_time"],
    mask: Bool[Array, "batch response_time"],
    kl_coefficient: Float[Array, ""],
    cost_multiplier: Float[Array, ""],
) -> tuple[
    Float[Array, "batch response_time"], Float[Array, "batch response_time"], Float[Array, "batch response_time"]
]:
    """(A_R − λ A_C) / (1 + λ) with a value model each for reward and cost (2310.12773, section 3.3).

    The penalty is taken off the reward and added to the cost, so that it keeps its weight whatever λ is.

    Args:
        config: discount, decay, whitening.
        score: reward of each response.
        cost: cost of each response.
        kl: penalty of each token before its coefficient.
        values: of the states before each token, under the value model.
        cost_values: the same under the cost critic.
        mask: True on response tokens.
        kl_coefficient: weight of the penalty.
        cost_multiplier: λ.

    Returns:
        Advantages, and the returns of reward and of cost.
    """
    rewards = kl_shaped_rewards(score, kl, mask, kl_coefficient)
    costs = -kl_shaped_rewards(-cost, kl, mask, kl_coefficient)
    reward_advantages, returns = _by_value_model(config, rewards, values, mask)
    cost_advantages, cost_returns = _by_value_model(config, costs, cost_values, mask)
    advantages = lagrangian_reward(reward_advantages, cost_advantages, cost_multiplier)
    if config.whitens_advantages:
        advantages = whiten(advantages, mask)
    return advantages, returns, cost_returns


def _by_value_model(
    config: PPOConfig,
    rewards: Float[Array, "batch response_time"],
    values: Float[Array, "batch response_time"],
    mask: Bool[Array, "batch response_time"],
) -> tuple[Float[Array, "batch response_time"], Float[Array, "batch response_time"]]:
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    return generalized_advantages(rewards, values, mask, discount=config.discount, decay=config.gae_decay)
