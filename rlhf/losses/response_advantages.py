"""Advantages of whole responses without a value model: a response against the others that were sampled beside it.

Rewards come as [groups, k], the k responses to one prompt in a row. A response is one action, so each of its tokens gets the
response's advantage.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

DEVIATION_FLOOR = 1e-6


def leave_one_out_advantages(rewards: Float[Array, "groups k"]) -> Float32[Array, "groups k"]:
    """A_i = R_i − mean of the other k − 1 rewards of the group (RLOO, 2402.14740, equation 7): unbiased, k of at least 2.

    With all responses of a batch as one group it is REINFORCE with the batch's mean as baseline, which no response is in.

    Args:
        rewards: of whole responses, with the KL penalty summed over their tokens where the reward has one.
    """
    rewards = rewards.astype(jnp.float32)
    k = rewards.shape[1]
    others = (jnp.sum(rewards, axis=1, keepdims=True) - rewards) / (k - 1)
    return rewards - others


def normalised_group_advantages(rewards: Float[Array, "groups k"]) -> Float32[Array, "groups k"]:
    """A_i = (R_i − mean) / standard deviation of the group (GRPO, 2402.03300, section 4.1.2).

    The deviation is the population's, with a floor of 1e-6: a group of equal rewards has advantage 0.

    Args:
        rewards: of whole responses.
    """
    centred = centred_group_advantages(rewards)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=1, keepdims=True) + DEVIATION_FLOOR**2)


def centred_group_advantages(rewards: Float[Array, "groups k"]) -> Float32[Array, "groups k"]:
    """A_i = R_i − mean of the group (Dr. GRPO, 2503.20783, section 3.2): no division that makes easy and hard prompts weigh more.

    Args:
        rewards: of whole responses.
    """
    rewards = rewards.astype(jnp.float32)
    return rewards - jnp.mean(rewards, axis=1, keepdims=True)


def tied_share(rewards: Float[Array, "groups k"]) -> Float32[Array, ""]:
    """Share of groups whose rewards are all equal, from which nothing is learned."""
    return jnp.mean(jnp.all(rewards == rewards[:, :1], axis=1), dtype=jnp.float32)
