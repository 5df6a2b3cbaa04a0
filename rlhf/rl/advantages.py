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
        if config.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = generalized_advantages(
            rewards, values, mask, discount=config.discount, decay=config.gae_decay
        )
    else:
        responses = config.rollout_batch_size if config.advantage == "reinforce" else config.samples_per_prompt
        groups = rewards.sum(axis=1).reshape(-1, responses)
        by_response = BY_RESPONSE[config.advantage](groups).reshape(-1, 1)
        advantages = jnp.where(mask, by_response, 0.0)
        metrics["objective/tied_groups"] = tied_share(groups)
    if config.whitens_advantages:
        advantages = whiten(advantages, mask)
    return advantages, returns, metrics
